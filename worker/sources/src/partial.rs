//! A file that is not whole yet: its bytes so far, and their digest.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::FetchError;
use crate::client::hex;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// `NAME.part`, which becomes `NAME` when it is whole.
#[derive(Debug)]
pub(super) struct Partial {
    target: PathBuf,
    path: PathBuf,
    file: File,
    digest: Sha256,
    bytes: u64,
}

/// Where the bytes of `target` are until it is whole.
pub(super) fn part(target: &Path) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(".part");
    path.into()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FetchError + '_ {
    |source| FetchError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Partial {
    /// Open what an earlier try has left, or begin.
    pub(super) fn open(target: &Path) -> Result<Self, FetchError> {
        let path = part(target);
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(&path);
        let mut partial = Self {
            target: target.to_owned(),
            file: file.map_err(at(&path))?,
            path,
            digest: Sha256::new(),
            bytes: 0,
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = partial.file.read(&mut chunk).map_err(at(&partial.path))?;
            if read == 0 {
                return Ok(partial);
            }
            partial.digest.update(chunk.get(..read).unwrap_or_default());
            partial.bytes += read as u64;
        }
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Begin again.
    pub(super) fn clear(&mut self) -> Result<(), FetchError> {
        self.file.set_len(0).map_err(at(&self.path))?;
        self.digest = Sha256::new();
        self.bytes = 0;
        Ok(())
    }

    /// Append.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(bytes).map_err(at(&self.path))?;
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// SHA-256 of the bytes so far.
    pub(super) fn sha256(&self) -> String {
        hex(&self.digest.clone().finalize())
    }

    /// It is whole.
    pub(super) fn finish(self) -> Result<(), FetchError> {
        fs::rename(&self.path, &self.target).map_err(at(&self.target))
    }
}
