//! The crate's error: one variant a module, each with a message that says what to do.
//!
//! Readers and writers of files (`config`, `gguf`, `safetensors`) have errors of their own and know nothing of this module; the errors
//! of what is built on an open checkpoint are here.

mod convert;
mod layout;
mod presharded;
mod shard;

pub use convert::ConvertError;
pub use layout::LayoutError;
pub use presharded::PreshardedError;
pub use shard::ShardError;

use crate::config::ConfigError;
use crate::gguf::GgufError;
use crate::io_error::IoError;
use crate::safetensors::{OutputError, SafetensorsError};

/// Everything that can go wrong between a checkpoint on disk and a rank's weights.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A safetensors file or its index is damaged or incomplete.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// A folder cannot be made.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// `config.json` or `generation_config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tensors do not fit the configuration.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The model cannot be split as asked.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A folder with one file a rank is damaged, or cannot serve here.
    #[error(transparent)]
    Presharded(#[from] PreshardedError),
    /// A GGUF file is damaged or of a kind that is not supported.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Conversion or quantisation cannot be done.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A file is not there, only its Git-LFS pointer.
    #[error(transparent)]
    Lfs(#[from] crate::lfs::LfsPointer),
    /// Whoever watched the load ended it.
    #[error("loading was cancelled")]
    Cancelled,
    /// The consumer of loaded weights failed.
    #[error("loading stopped: {0}")]
    Sink(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Whether a disk or a network did not answer, so that another try may help although nobody changes anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Layout(LayoutError::Unreadable(error)) => error.is_passing(),
            Self::Io(error)
            | Self::Safetensors(
                SafetensorsError::Io(error) | SafetensorsError::Output(OutputError::Io(error)),
            )
            | Self::Output(OutputError::Io(error))
            | Self::Config(ConfigError::Io(error))
            | Self::Gguf(GgufError::Io(error)) => error.is_passing(),
            _ => false,
        }
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
