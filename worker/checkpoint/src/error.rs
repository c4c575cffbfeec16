//! The crate's error: one variant a module, each with a message that says what to do.

use std::io;
use std::path::{Path, PathBuf};

/// A file or folder could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct IoError {
    /// What was tried: `open`, `read`, `create`, ...
    pub action: &'static str,
    /// What it was tried on.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl IoError {
    /// For `map_err`: `File::open(path).map_err(IoError::at("open", path))`.
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { action, path, source }
    }
}

/// Everything that can go wrong between a checkpoint on disk and a rank's weights.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A safetensors file or its index is damaged or incomplete.
    #[error(transparent)]
    Safetensors(#[from] crate::safetensors::SafetensorsError),
    /// `config.json` or `generation_config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The tensors do not fit the configuration.
    #[error(transparent)]
    Layout(#[from] crate::layout::error::LayoutError),
    /// The model cannot be split as asked.
    #[error(transparent)]
    Shard(#[from] crate::shard::error::ShardError),
    /// A GGUF file is damaged or of a kind that is not supported.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// Conversion or quantisation cannot be done.
    #[error(transparent)]
    Convert(#[from] crate::convert::error::ConvertError),
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

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
