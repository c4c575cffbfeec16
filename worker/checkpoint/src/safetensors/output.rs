//! A folder that appears whole or not at all.

use std::fs::{self, File};
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
    /// A value cannot be written as JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// The operating system refuses.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Files are written into a hidden folder beside the target, which takes the target's name only when everything is on
/// disk. Dropped before [`OutputDir::commit`], it leaves nothing.
#[derive(Debug)]
pub struct OutputDir {
    target: PathBuf,
    partial: PathBuf,
    committed: bool,
}

impl OutputDir {
    /// Start the folder `target`, which must not exist or be empty.
    pub fn create(target: &Path) -> Result<Self, OutputError> {
        if let Ok(mut entries) = fs::read_dir(target)
            && entries.next().is_some()
        {
            return Err(OutputError::NotEmpty {
                path: target.to_path_buf(),
            });
        }
        let absolute = std::path::absolute(target).map_err(IoError::at("resolve", target))?;
        let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
            return Err(OutputError::NotEmpty {
                path: target.to_path_buf(),
            });
        };
        fs::create_dir_all(parent).map_err(IoError::at("create", parent))?;
        let partial = parent.join(format!(
            ".{}.partial-{}",
            name.to_string_lossy(),
            std::process::id()
        ));
        fs::create_dir(&partial).map_err(IoError::at("create", &partial))?;
        Ok(Self {
            target: absolute,
            partial,
            committed: false,
        })
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
        sync(&self.partial)?;
        // `rename` replaces an empty folder and fails on one that has got files in the meantime.
        fs::rename(&self.partial, &self.target).map_err(IoError::at("rename into", &self.target))?;
        self.committed = true;
        self.target.parent().map_or(Ok(()), sync)
    }
}

impl Drop for OutputDir {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_dir_all(&self.partial)
        {
            tracing::warn!(path = %self.partial.display(), %error, "a partial folder is left behind; delete it");
        }
    }
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

        let refused = OutputDir::create(&target).unwrap_err().to_string();
        assert!(refused.contains("not empty"), "{refused}");
    }
}
