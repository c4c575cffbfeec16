//! Locks between processes, on files of their own, which the kernel gives back when a process ends.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use super::{CacheError, at};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Share it with others that use the same; `wait` is called before waiting for one that changes it.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn shared(path: &Path, wait: &mut dyn FnMut()) -> Result<Self, CacheError> {
        let file = open(path)?;
        if !taken(file.try_lock_shared(), path)? {
            wait();
            file.lock_shared().map_err(at(path))?;
        }
        Ok(Self { _file: file })
    }

    /// Have it alone; `wait` is called before waiting for others.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn exclusive(path: &Path, wait: &mut dyn FnMut()) -> Result<Self, CacheError> {
        let file = open(path)?;
        if !taken(file.try_lock(), path)? {
            wait();
            file.lock().map_err(at(path))?;
        }
        Ok(Self { _file: file })
    }

    /// Have it alone if nobody else has it.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>, CacheError> {
        let file = open(path)?;
        let taken = taken(file.try_lock(), path)?;
        Ok(taken.then_some(Self { _file: file }))
    }
}

fn open(path: &Path) -> Result<File, CacheError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(at(folder))?;
    }
    // The file stays: whoever removed it could lock another one than those who still have this one open.
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at(path))
}

fn taken(outcome: Result<(), TryLockError>, path: &Path) -> Result<bool, CacheError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(at(path)(error)),
    }
}
