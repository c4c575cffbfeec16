//! A folder that appears whole or not at all.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::io_error::IoError;

/// Why a folder cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The target exists.
    #[error("{} exists and is not empty; name a new folder or delete it first", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// Another process makes it.
    #[error("{} is being made by another process; wait for that, or end it", path.display())]
    Busy {
        /// The target.
        path: PathBuf,
    },
    /// A value cannot be written as JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Files are written into a hidden folder beside the target, which takes the target's name only when everything is on
/// disk. Dropped before [`OutputDir::commit`], it leaves nothing, unless it is one that can be gone on with.
#[derive(Debug)]
pub struct OutputDir {
    target: PathBuf,
    partial: PathBuf,
    committed: bool,
    /// Held while a folder is made that a later run can go on with.
    lock: Option<File>,
}

/// What says from what a folder is made.
const ORIGIN: &str = "made-from";
const LOCK: &str = "lock";

impl OutputDir {
    /// Start the folder `target`, which must not exist or be empty.
    pub fn create(target: &Path) -> Result<Self, OutputError> {
        let (target, parent, name) = place(target)?;
        let partial = parent.join(format!(".{name}.partial-{}", std::process::id()));
        fs::create_dir(&partial).map_err(IoError::at("create", &partial))?;
        Ok(Self {
            target,
            partial,
            committed: false,
            lock: None,
        })
    }

    /// Start the folder `target`, or go on with what an earlier run has left of it if that was made from the same: `origin`
    /// describes it in a line. What was made from something else is thrown away.
    pub fn resume(target: &Path, origin: &str) -> Result<Self, OutputError> {
        let (target, parent, name) = place(target)?;
        let partial = parent.join(format!(".{name}.partial"));
        fs::create_dir_all(&partial).map_err(IoError::at("create", &partial))?;
        let path = partial.join(LOCK);
        let lock = File::create(&path).map_err(IoError::at("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OutputError::Busy { path: target }),
            Err(TryLockError::Error(error)) => return Err(IoError::at("lock", &path)(error).into()),
        }
        let output = Self {
            target,
            partial,
            committed: false,
            lock: Some(lock),
        };
        let made_from = fs::read_to_string(output.partial.join(ORIGIN)).unwrap_or_default();
        if made_from != origin {
            output.clear()?;
            output.write(ORIGIN, origin.as_bytes())?;
        }
        Ok(output)
    }

    /// Remove what an earlier run has left.
    fn clear(&self) -> Result<(), OutputError> {
        let entries = fs::read_dir(&self.partial).map_err(IoError::at("list", &self.partial))?;
        for entry in entries {
            let path = entry.map_err(IoError::at("list", &self.partial))?.path();
            if path.file_name().is_none_or(|name| name != LOCK) {
                fs::remove_file(&path).map_err(IoError::at("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Where to write for now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Write a small file and flush it to disk.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), OutputError> {
        let path = self.partial.join(name);
        fs::write(&path, contents).map_err(IoError::at("write", &path))?;
        sync(&path)
    }

    /// Write a value as indented JSON.
    pub fn write_json(&self, name: &str, value: &impl serde::Serialize) -> Result<(), OutputError> {
        let mut text = serde_json::to_vec_pretty(value).map_err(OutputError::Json)?;
        text.push(b'\n');
        self.write(name, &text)
    }

    /// Copy `source` into the folder and flush it to disk.
    pub fn copy(&self, name: &str, source: &Path) -> Result<(), OutputError> {
        let path = self.partial.join(name);
        fs::copy(source, &path).map_err(IoError::at("copy", source))?;
        sync(&path)
    }

    /// Give the folder its name.
    pub fn commit(mut self) -> Result<(), OutputError> {
        if self.lock.is_some() {
            for name in [ORIGIN, LOCK] {
                let path = self.partial.join(name);
                fs::remove_file(&path).map_err(IoError::at("remove", &path))?;
            }
        }
        sync(&self.partial)?;
        // `rename` replaces an empty folder and fails on one that has got files in the meantime.
        fs::rename(&self.partial, &self.target).map_err(IoError::at("rename into", &self.target))?;
        self.committed = true;
        self.target.parent().map_or(Ok(()), sync)
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if self.lock.is_some() && !self.committed {
            tracing::info!(path = %self.partial.display(), "what is made so far is kept: the same command goes on with it");
            return;
        }
        if !self.committed
            && let Err(error) = fs::remove_dir_all(&self.partial)
        {
            tracing::warn!(path = %self.partial.display(), %error, "a partial folder is left behind; delete it");
        }
    }
}

/// The target, which must not exist or be empty, its parent, which is made, and its name.
fn place(target: &Path) -> Result<(PathBuf, PathBuf, String), OutputError> {
    let taken = || OutputError::NotEmpty {
        path: target.to_path_buf(),
    };
    if let Ok(mut entries) = fs::read_dir(target)
        && entries.next().is_some()
    {
        return Err(taken());
    }
    let absolute = std::path::absolute(target).map_err(IoError::at("resolve", target))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(taken());
    };
    fs::create_dir_all(parent).map_err(IoError::at("create", parent))?;
    let (parent, name) = (parent.to_path_buf(), name.to_string_lossy().into_owned());
    Ok((absolute, parent, name))
}

fn sync(path: &Path) -> Result<(), OutputError> {
    Ok(File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(IoError::at("flush", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appears_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        let abandoned = OutputDir::create(&target).unwrap();
        abandoned.write("a", b"1").unwrap();
        drop(abandoned);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

        fs::create_dir(&target).unwrap();
        let kept = OutputDir::create(&target).unwrap();
        kept.write("a", b"1").unwrap();
        assert!(!target.join("a").exists());
        kept.commit().unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);

        let refused = OutputDir::resume(&target, "x").unwrap_err().to_string();
        assert!(refused.contains("not empty"), "{refused}");
        let refused = OutputDir::create(&target).unwrap_err().to_string();
        assert!(refused.contains("not empty"), "{refused}");
    }

    #[test]
    fn what_was_made_from_the_same_is_gone_on_with() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("model");
        let first = OutputDir::resume(&target, "a").unwrap();
        first.write("x", b"1").unwrap();
        let busy = OutputDir::resume(&target, "a").unwrap_err().to_string();
        assert!(busy.contains("another process"), "{busy}");
        drop(first);
        let again = OutputDir::resume(&target, "a").unwrap();
        assert!(again.path().join("x").exists());
        drop(again);
        let other = OutputDir::resume(&target, "b").unwrap();
        assert!(!other.path().join("x").exists());
        other.write("y", b"2").unwrap();
        other.commit().unwrap();
        let names: Vec<_> = fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["y"]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
