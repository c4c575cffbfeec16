//! The first bytes of weight files, kept beside the small files: a rank that finds its weights in memory starts again while the
//! source cannot be reached.

use std::fs;
use std::path::{Path, PathBuf};

use super::fetch::HEAD_BYTES;
use crate::RemoteFile;

/// Read what an earlier process has kept; none if it is not whole.
pub(crate) fn read(folder: &Path, file: &RemoteFile) -> Option<Vec<u8>> {
    let head = fs::read(path(folder, file)).ok()?;
    (head.len() as u64 == file.bytes?.min(HEAD_BYTES)).then_some(head)
}

/// Keep it for the next one. That it cannot be kept costs a request later, no more.
pub(crate) fn keep(folder: &Path, file: &RemoteFile, head: &[u8]) {
    let path = path(folder, file);
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let kept = fs::write(&part, head).and_then(|()| fs::rename(&part, &path));
    if let Err(error) = kept {
        tracing::warn!(path = %path.display(), %error, "the header is not kept");
    }
}

fn path(folder: &Path, file: &RemoteFile) -> PathBuf {
    let name = file.path.rsplit('/').next().unwrap_or(&file.path);
    folder.join(format!("{name}.head"))
}
