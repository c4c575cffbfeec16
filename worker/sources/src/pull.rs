//! All files of a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use llamero_checkpoint::{LlamaConfig, Progress};

use super::partial::part;
use super::{FetchError, Listing, Origin, RemoteFile};

/// Files downloaded at once.
const AT_ONCE: usize = 4;
/// Time between two reports.
const REPORT: Duration = Duration::from_millis(100);

impl Origin {
    /// Download the checkpoint of `listing` into `folder`: the small files first, and if they are no Llama nothing else.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn pull(
        &self,
        listing: &Listing,
        folder: &Path,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), FetchError> {
        create(folder)?;
        self.download_all(listing, &listing.small()?, folder, &mut |_| {})
            .await?;
        LlamaConfig::read(&folder.join("config.json"))
            .map_err(|error| FetchError::Checkpoint(Box::new(error.into())))?;
        let weights = listing.weights(folder)?;
        self.download_all(listing, &weights, folder, report).await?;
        Ok(())
    }

    /// Download one file into `folder`, under the last part of its name.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn pull_file(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        folder: &Path,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), FetchError> {
        create(folder)?;
        self.download_all(listing, std::slice::from_ref(file), folder, report)
            .await
    }

    pub(super) async fn download_all(
        &self,
        listing: &Listing,
        files: &[RemoteFile],
        folder: &Path,
        report: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), FetchError> {
        let total: u64 = files.iter().filter_map(|file| file.bytes).sum();
        check_space(files, folder)?;
        let done = AtomicU64::new(0);
        let mut downloads = Vec::new();
        for file in files {
            let (target, done) = (target(file, folder), &done);
            downloads.push(async move { self.download(listing, file, &target, done).await });
        }
        let downloads = stream::iter(downloads)
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>();
        let mut downloads = std::pin::pin!(downloads);
        let mut ticks = tokio::time::interval(REPORT);
        loop {
            let ended = tokio::select! {
                ended = &mut downloads => Some(ended),
                _ = ticks.tick() => None,
            };
            let done = done.load(Ordering::Relaxed);
            match ended {
                // Where no sizes are told, the total is what has come.
                Some(ended) => {
                    ended?;
                    report(Progress { done, total: done });
                    return Ok(());
                }
                None if total > 0 => report(Progress {
                    done: done.min(total),
                    total,
                }),
                None => {}
            }
        }
    }
}

pub(super) fn create(folder: &Path) -> Result<(), FetchError> {
    std::fs::create_dir_all(folder).map_err(|source| FetchError::Io {
        path: folder.to_owned(),
        source,
    })
}

/// Rather before the first byte than after hours.
fn check_space(files: &[RemoteFile], folder: &Path) -> Result<(), FetchError> {
    let Ok(disk) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    let missing = |file: &RemoteFile| {
        let target = target(file, folder);
        let here = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
        let here = here(&target).max(here(&part(&target)));
        file.bytes.unwrap_or(0).saturating_sub(here)
    };
    let needed: u64 = files.iter().map(missing).sum();
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed <= free {
        return Ok(());
    }
    Err(FetchError::NoSpace {
        path: folder.to_owned(),
        free: free / 1_000_000,
        needed: needed / 1_000_000,
    })
}

/// Where a file comes to lie.
fn target(file: &RemoteFile, folder: &Path) -> PathBuf {
    folder.join(file.path.rsplit('/').next().unwrap_or(&file.path))
}
