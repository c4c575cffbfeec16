//! Why tensors do not fit the configuration.

use crate::dtype::Dtype;

/// Why tensors do not fit the configuration.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A tensor is not there.
    #[error(
        "the checkpoint lacks the tensor {name}; it is incomplete or config.json belongs to another model"
    )]
    Missing {
        /// Its name.
        name: String,
    },
    /// A shape that does not follow from the configuration.
    #[error("{name} has the shape {found:?}, config.json asks for {expected:?}{hint}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape that follows from the configuration.
        expected: Vec<u64>,
        /// What may have happened.
        hint: &'static str,
    },
    /// An element type that cannot be used there.
    #[error("{name} has the element type {found}; {wanted} can be used there")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        found: Dtype,
        /// What can be used.
        wanted: &'static str,
    },
    /// A tensor that is no part of this Llama.
    #[error("{name} is not a tensor of this Llama: {hint}")]
    Unknown {
        /// Its name.
        name: String,
        /// What it means.
        hint: String,
    },
    /// A scale of another shape.
    #[error(
        "{name} has the shape {found:?}; one scale for the matrix or one for each of its {rows} rows can be used \
         (block-wise scales are not supported)"
    )]
    ScaleShape {
        /// The scale.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// Rows of the matrix.
        rows: u64,
    },
    /// A tied model with another head of its own.
    #[error(
        "config.json says tie_word_embeddings, so {embedding} is the head, but the checkpoint also has a {head} that \
         differs from it: set tie_word_embeddings to false if that is the head, else remove the tensor"
    )]
    OwnHead {
        /// The head that the configuration does not know.
        head: String,
        /// The table that it names.
        embedding: String,
    },
    /// A tensor that had to be compared could not be read.
    #[error(transparent)]
    Unreadable(Box<super::Error>),
}
