//! GGUF files: header, metadata, tensor list, and dequantisation of the common block formats.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod dequantize;
mod file;
mod parse;
mod permute;
mod value;

pub use dequantize::GgmlType;
pub use file::{GgufFile, GgufTensor};
pub use permute::unpermuted_row;
pub use value::GgufValue;

use std::path::PathBuf;

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
        "{}: tensor {tensor} has the ggml type {code}; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q6_K can be \
         converted: take the file in one of these (F16 or BF16 lose nothing)", path.display()
    )]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The number of the type.
        code: u32,
    },
    /// Metadata or a tensor that is needed is not there.
    #[error("{}: {what} is missing or of the wrong type; this GGUF file cannot be converted", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key or tensor.
        what: String,
    },
}
