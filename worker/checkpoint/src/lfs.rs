//! Git-LFS pointers: what a clone without Git LFS leaves in place of large files.
//!
//! Format: <https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>.
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

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// What every pointer begins with.
const START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// A file is not there, only its Git-LFS pointer is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is a Git-LFS pointer of a few bytes, not the file itself: run `git lfs pull` in the folder, or download the \
     checkpoint with `hf download`", path.display()
)]
pub struct LfsPointer {
    /// The file.
    pub path: PathBuf,
}

impl LfsPointer {
    /// Refuse the file at `path` if it is a pointer. A file that is not there or cannot be read is left to whoever needs it.
    ///
    /// # Errors
    /// It is one.
    pub fn refuse(path: &Path) -> Result<(), Self> {
        let mut start = [0; START.len()];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
        if read.is_ok() && start == START {
            return Err(Self {
                path: path.to_path_buf(),
            });
        }
        Ok(())
    }
}
