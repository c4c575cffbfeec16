//! Why an adapter cannot be used.

use std::path::PathBuf;

use crate::io_error::IoError;
use crate::safetensors::SafetensorsError;

/// An adapter that cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file is missing.
    #[error(
        "{} is not there: an adapter is a folder with adapter_config.json and adapter_model.safetensors, as \
         PEFT's save_pretrained writes it", path.display()
    )]
    NotThere {
        /// The file.
        path: PathBuf,
    },
    /// The weights are a pickle.
    #[error(
        "{} is a pickle, which can run code when it is read: save the adapter with safe_serialization=True", path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// The configuration is no JSON object of PEFT's.
    #[error("adapter_config.json cannot be read: {0}")]
    Config(String),
    /// The configuration wants something that is not built.
    #[error("adapter_config.json has {field} = {value}, which is not supported: {advice}")]
    Unsupported {
        /// Of the configuration.
        field: String,
        /// What it says, shortened.
        value: String,
        /// What to do.
        advice: &'static str,
    },
    /// A tensor that is none of a LoRA of this model.
    #[error(
        "the adapter's tensor {0} is none that this server knows: it takes lora_A and lora_B of q_proj, k_proj, v_proj, \
         o_proj, gate_proj, up_proj and down_proj in the layers of the model"
    )]
    Tensor(String),
    /// A tensor has another shape than the model and the rank ask for.
    #[error(
        "the adapter's tensor {name} has the shape {shape:?}, and {wanted}: it was made for another model, or is damaged"
    )]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
        /// What it should be.
        wanted: String,
    },
    /// Half of a pair is missing.
    #[error("the adapter has {have} and not {missing}: the file is damaged, save it again")]
    Half {
        /// The tensor that is there.
        have: String,
        /// The one that is not.
        missing: String,
    },
    /// No tensor at all.
    #[error("the adapter has no tensors, so it would change nothing")]
    Empty,
    /// The rank is larger than was agreed on.
    #[error(
        "the adapter has rank {rank} in {module}, and this server takes ranks up to {most}: raise the largest rank of adapters"
    )]
    Rank {
        /// Where.
        module: String,
        /// The rank.
        rank: u64,
        /// The largest that is taken.
        most: u32,
    },
    /// The elements are of a type that factors do not have.
    #[error("the adapter's tensor {name} is of type {dtype}; F32, F16 and BF16 can be read")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: &'static str,
    },
    /// An element is infinite or no number.
    #[error(
        "the adapter's tensor {0} holds values that are not finite numbers; the file is damaged, or its training diverged"
    )]
    NotFinite(String),
    /// This rank's part does not lie in the tensor.
    #[error(
        "the adapter's tensor {0} ends before this rank's part of it: it was made for another model, or is damaged"
    )]
    Outside(String),
    /// The header is larger than that of any adapter.
    #[error(
        "the adapter's weights ask for a header of {length} bytes, and an adapter's has at most {limit}: the file is damaged, \
         save it again"
    )]
    Header {
        /// The length asked for.
        length: u64,
        /// The most.
        limit: u64,
    },
    /// Somebody writes the weights in place.
    #[error("the adapter's weights changed while they were read: load it again once they are written")]
    Changed,
    /// The weights' file.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The operating system.
    #[error(transparent)]
    Io(#[from] IoError),
}
