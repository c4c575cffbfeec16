//! The configuration of a Llama checkpoint: `config.json` and `generation_config.json` of Hugging Face.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

mod generation;
mod llama;
mod quantization;
mod rope;
mod shapes;
mod unsupported;

pub use generation::GenerationConfig;
pub use llama::LlamaConfig;
pub use quantization::{QuantMethod, Quantization};
pub use rope::Llama3Rope;

use std::path::PathBuf;

use crate::io_error::IoError;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The folder is not one of a checkpoint.
    #[error(
        "{} is not there; give the folder of a Hugging Face checkpoint (a GGUF file becomes one with \
         `llamero-worker convert`)", path.display()
    )]
    NotThere {
        /// Where `config.json` should be.
        path: PathBuf,
    },
    /// Not JSON, or a value of the wrong type.
    #[error("{}: {source}; this must be the file of a Hugging Face checkpoint", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A model of another kind.
    #[error("the model is of the kind {found:?}; Llamero serves Llama models (model_type \"llama\")")]
    Architecture {
        /// `model_type` or `architectures`.
        found: String,
    },
    /// A field that is needed is not there.
    #[error("config.json lacks {field}; take the config.json that belongs to the weights")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A value that makes no sense or is not supported.
    #[error("config.json: {field} is {value}: {reason}")]
    Value {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// Why it is refused and what would be taken.
        reason: &'static str,
    },
    /// Advice that no request could follow.
    #[error("generation_config.json: {field} is {value}: {reason}; correct it or delete the field")]
    Generation {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What would be taken.
        reason: &'static str,
    },
    /// A quantisation scheme that is not supported.
    #[error("the weights are quantised as {found}, which is not supported; {hint}")]
    Scheme {
        /// The scheme.
        found: String,
        /// What to use instead.
        hint: &'static str,
    },
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
}

fn value(field: &'static str, value: impl ToString, reason: &'static str) -> ConfigError {
    ConfigError::Value {
        field,
        value: value.to_string(),
        reason,
    }
}
