//! Failures of the operating system, with the path they are about.

use std::fs;
use std::io::{self, ErrorKind};
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
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self { action, path, source }
    }

    /// Whether a disk or a network failed, or a resource was short, so that another try may help although nobody changes
    /// anything. What only a change helps against is listed here; everything else passes: an error of a disk (EIO), of a
    /// network file system (ESTALE, a time-out) or of a kind that is not known yet. A file that ends too early passes too: it is
    /// just being replaced, and the next try finds out how long it is.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        !matches!(
            self.source.kind(),
            ErrorKind::NotFound
                | ErrorKind::PermissionDenied
                | ErrorKind::AlreadyExists
                | ErrorKind::NotADirectory
                | ErrorKind::IsADirectory
                | ErrorKind::DirectoryNotEmpty
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::FileTooLarge
                | ErrorKind::InvalidFilename
                | ErrorKind::InvalidInput
                | ErrorKind::InvalidData
                | ErrorKind::Unsupported
        )
    }

    fn is_absence(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
    }
}

/// Whether there is a file at `path`. Unlike [`Path::is_file`], a file system that does not answer is no absence.
///
/// # Errors
/// It cannot be told.
pub(crate) fn is_file(path: &Path) -> Result<bool, IoError> {
    match fs::metadata(path).map_err(IoError::at("inspect", path)) {
        Ok(facts) => Ok(facts.is_file()),
        Err(error) if error.is_absence() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The content of a file that need not be there.
///
/// # Errors
/// It is there, or may be, and cannot be read.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, IoError> {
    match fs::read(path).map_err(IoError::at("read", path)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of errno(3) on Linux.
    const EIO: i32 = 5;
    const ETIMEDOUT: i32 = 110;
    const ESTALE: i32 = 116;
    const EMFILE: i32 = 24;

    #[test]
    fn what_a_disk_or_a_network_does_passes_and_what_a_person_must_change_does_not() {
        let error = |source| IoError {
            action: "read",
            path: "model.safetensors".into(),
            source,
        };
        for number in [EIO, ETIMEDOUT, ESTALE, EMFILE] {
            assert!(
                error(io::Error::from_raw_os_error(number)).is_passing(),
                "{number}"
            );
        }
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset] {
            assert!(error(kind.into()).is_passing(), "{kind}");
        }
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::PermissionDenied,
            ErrorKind::IsADirectory,
        ] {
            assert!(!error(kind.into()).is_passing(), "{kind}");
        }
    }
}
