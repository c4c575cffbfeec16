//! Safetensors files: header first, data by byte range, never the whole file.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. A little-endian u64 header length, a JSON object
//! `{name: {dtype, shape, data_offsets: [begin, end]}}` with offsets relative to the end of the header, then the data
//! without holes.

mod file;
mod header;
mod index;
mod output;
mod writer;

pub use file::SafetensorsFile;
pub use header::{Header, TensorInfo};
pub use index::{INDEX_NAME, SINGLE_NAME, WeightIndex};
pub use output::{OutputDir, OutputError};
pub(crate) use writer::header_bytes;
pub use writer::{ShardedWriter, TensorSpec};

use std::path::PathBuf;

use crate::dtype::Dtype;
use crate::io_error::IoError;
use crate::lfs::LfsPointer;

/// Why a safetensors file or its index is refused.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The file ends inside the header.
    #[error("{}: the file is cut off: it has {size} bytes, the header needs {needed}; download it again", path.display())]
    HeaderCutOff {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Bytes the header ends at.
        needed: u64,
    },
    /// The header length is beyond the limit.
    #[error(
        "{}: the first 8 bytes ask for a header of {length} bytes, more than the {limit} that safetensors allows; \
         this is not a safetensors file or it is damaged", path.display()
    )]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// The length asked for.
        length: u64,
        /// The format's limit, or a lower one for files that need less.
        limit: u64,
    },
    /// The header is not what the format says.
    #[error("{}: the header is damaged: {reason}; download the file again", path.display())]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data is shorter than the header says.
    #[error(
        "{}: the file is cut off: it has {size} bytes, its header describes {needed}; download it again", path.display()
    )]
    DataCutOff {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The size that the header describes.
        needed: u64,
    },
    /// The index is not what it should be.
    #[error("{}: the index is damaged: {reason}; download it again", path.display())]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file named by the index is not there.
    #[error(
        "{}: the index names the file {file}, which is not there ({missing} of {total} files are missing); \
         finish the download", path.display()
    )]
    MissingFile {
        /// The index file.
        path: PathBuf,
        /// The first missing file.
        file: String,
        /// How many are missing.
        missing: usize,
        /// How many the index names.
        total: usize,
    },
    /// A tensor is not in the file that the index names for it.
    #[error(
        "{}: the index says that tensor {tensor} is in this file, but its header does not list it; \
         index and files are from different downloads", path.display()
    )]
    NotInFile {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// No safetensors file at all.
    #[error(
        "{} has neither {SINGLE_NAME} nor {INDEX_NAME}; give the folder of a Hugging Face checkpoint \
         (a GGUF file becomes one with `llamero-worker convert`)", path.display()
    )]
    NothingThere {
        /// The folder.
        path: PathBuf,
    },
    /// A range outside a tensor was asked for, or a tensor that the file does not have.
    #[error("{}: bytes {start}..{end} of tensor {tensor} were asked for; it has {size}", path.display())]
    OutOfRange {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte asked for.
        start: u64,
        /// End of the range asked for.
        end: u64,
        /// Bytes of the tensor (0 when it does not exist).
        size: u64,
    },
    /// What was written does not match what was announced.
    #[error("tensor {tensor} ({dtype}) was announced with {announced} bytes but {written} were written")]
    WrongLength {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Bytes announced.
        announced: u64,
        /// Bytes written.
        written: u64,
    },
    /// Only its Git-LFS pointer is there.
    #[error(transparent)]
    Lfs(#[from] LfsPointer),
    /// The folder for it cannot be made.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
}
