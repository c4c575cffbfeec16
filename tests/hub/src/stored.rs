//! The files that are sent.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes that are sent at a time.
const CHUNK: usize = 1 << 20;
/// The largest file of a folder whose SHA-256 is told: hashing it takes time before the server answers.
const HASHED: u64 = 2 << 30;

/// A file of the repository.
#[derive(Debug)]
pub(crate) struct Stored {
    body: Body,
    pub(crate) size: u64,
    pub(crate) sha256: Option<String>,
}

#[derive(Debug)]
enum Body {
    Bytes(Vec<u8>),
    File(File),
}

impl Stored {
    pub(crate) fn bytes(bytes: Vec<u8>) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: Some(sha256(&bytes)),
            body: Body::Bytes(bytes),
        }
    }

    pub(crate) fn file(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let size = file.metadata().unwrap().len();
        let mut stored = Self {
            body: Body::File(file),
            size,
            sha256: None,
        };
        if size <= HASHED {
            let mut digest = Sha256::new();
            stored.send(0..size, |bytes| {
                digest.update(bytes);
                Some(())
            });
            stored.sha256 = Some(hex(&digest.finalize()));
        }
        stored
    }

    /// Call `to` with the bytes of `range`, some at a time.
    pub(crate) fn send(&self, range: Range<u64>, mut to: impl FnMut(&mut [u8]) -> Option<()>) -> Option<()> {
        let mut at = range.start;
        let mut buffer = vec![0; CHUNK];
        while at < range.end {
            let some = (range.end - at).min(CHUNK as u64) as usize;
            match &self.body {
                Body::Bytes(bytes) => buffer[..some].copy_from_slice(&bytes[at as usize..at as usize + some]),
                Body::File(file) => file.read_exact_at(&mut buffer[..some], at).unwrap(),
            }
            to(&mut buffer[..some])?;
            at += some as u64;
        }
        Some(())
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
