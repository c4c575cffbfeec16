//! GGUF files: header, metadata, tensor list, and dequantisation of the common block formats.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod dequantize;
mod file;
mod ggml_type;
mod parse;
mod permute;
mod value;

pub use file::{GgufFile, GgufTensor};
pub use ggml_type::GgmlType;
pub use permute::unpermuted_row;
pub use value::GgufValue;

use std::path::PathBuf;

use crate::io_error::IoError;

/// Why a GGUF file is refused.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file is not what the format says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A tensor in a format that is not supported.
    #[error(
        "{}: tensor {tensor} has the ggml type {found}, which cannot be converted; take the file in F16 or BF16, which \
         lose nothing, or in F32, Q8_0, Q2_K to Q6_K (such as Q4_K_M), Q4_0, Q4_1, Q5_0 or Q5_1", path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name of the type, or its number.
        found: String,
    },
    /// One of several files.
    #[error(
        "{}: this is part {part} of a model in {parts} files; join them first with llama.cpp's `llama-gguf-split \
         --merge FIRST-PART OUT.gguf`", path.display()
    )]
    Split {
        /// The file.
        path: PathBuf,
        /// Which part, from 1.
        part: u32,
        /// How many.
        parts: u32,
    },
    /// Metadata or a tensor that is needed is not there.
    #[error("{}: {what} is missing or of the wrong type; this GGUF file cannot be converted", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key or tensor.
        what: String,
    },
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
}
