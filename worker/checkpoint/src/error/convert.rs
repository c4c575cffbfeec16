//! Why a checkpoint cannot be made.

use crate::dtype::Dtype;

/// Why a checkpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A tensor of another size than the metadata says.
    #[error(
        "tensor {tensor} has {rows} x {cols} elements; the file's metadata asks for {wanted_rows} x {wanted_cols}"
    )]
    Shape {
        /// The tensor's name in the GGUF file.
        tensor: String,
        /// Its rows.
        rows: u64,
        /// Its columns.
        cols: u64,
        /// Rows that follow from the metadata.
        wanted_rows: u64,
        /// Columns that follow from the metadata.
        wanted_cols: u64,
    },
    /// A GGUF model of another kind.
    #[error("{what} is {found:?}; {supported}")]
    Unsupported {
        /// What is meant.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What can be converted.
        supported: &'static str,
    },
    /// The source is quantised already.
    #[error("{tensor} is {dtype} already; give the folder of the bf16 weights")]
    AlreadyQuantized {
        /// A tensor of the source.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Every matrix is to be left as it is.
    #[error("with these options no matrix of the {layers} layers is quantised; use the source as it is")]
    NothingToQuantize {
        /// Layers of the model.
        layers: u32,
    },
    /// A weight that has no finite value.
    #[error("row {row} of {tensor} has a value that is not finite; the weights are damaged")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row.
        row: u64,
    },
}
