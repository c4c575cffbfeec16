//! One file, however often the connection breaks.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::Part;
use super::partial::Partial;
use super::{FetchError, Listing, Origin, RemoteFile};

/// As many bytes count as progress, after which failures are counted anew. Less would let a server that cuts every
/// connection at once keep a download going for ever.
const PROGRESS: u64 = 1 << 20;

/// What a try ended with.
enum Tried {
    /// The file is whole, as far as its size tells.
    Whole,
    /// What is here is longer than what is there: begin again.
    TooLong,
}

/// What is known of a file before and after the first answer.
struct Announced {
    bytes: Option<u64>,
    sha256: Option<String>,
}

impl Origin {
    /// Download `file` to `target`, going on where an earlier try ended. `done` counts its bytes, those that were there
    /// before included.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn download(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        target: &Path,
        done: &AtomicU64,
    ) -> Result<(), FetchError> {
        if let Ok(found) = std::fs::metadata(target) {
            // It got its name only when it was whole.
            done.fetch_add(found.len(), Ordering::Relaxed);
            return Ok(());
        }
        let mut announced = Announced {
            bytes: file.bytes,
            sha256: file.sha256.clone(),
        };
        let mut part = Partial::open(target)?;
        done.fetch_add(part.bytes(), Ordering::Relaxed);
        let mut tries = self.tries();
        let mut was_damaged = false;
        loop {
            let before = part.bytes();
            let tried = self.attempt(listing, file, &mut announced, &mut part, done).await;
            if part.bytes().saturating_sub(before) >= PROGRESS {
                tries.progressed();
            }
            let again = match tried {
                Err(error) => {
                    tries.failed(error).await?;
                    continue;
                }
                Ok(Tried::TooLong) => None,
                Ok(Tried::Whole) => {
                    let found = part.sha256();
                    match announced.sha256.as_ref().filter(|wanted| **wanted != found) {
                        None => return part.finish(),
                        Some(wanted) => Some((wanted.clone(), found)),
                    }
                }
            };
            done.fetch_sub(part.bytes(), Ordering::Relaxed);
            part.clear()?;
            if was_damaged {
                return Err(damaged(listing, file, again));
            }
            was_damaged = true;
        }
    }

    /// Read as far as the connection goes.
    async fn attempt(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        announced: &mut Announced,
        part: &mut Partial,
        done: &AtomicU64,
    ) -> Result<Tried, FetchError> {
        match announced.bytes {
            Some(bytes) if part.bytes() > bytes => return Ok(Tried::TooLong),
            // Only the digest may still be missing, and the bytes cannot tell it.
            Some(bytes) if part.bytes() == bytes && bytes > 0 => return Ok(Tried::Whole),
            _ => {}
        }
        let from = part.bytes();
        let mut opened = match self.open(listing, file, Part::From(from), None).await {
            // There is nothing behind what is here, though nobody had told how much there is.
            Err(FetchError::Status { status: 416, .. }) if from > 0 => return Ok(Tried::TooLong),
            opened => opened?,
        };
        let senseless = |host: &str, reason: String| FetchError::Answer {
            host: host.to_owned(),
            what: listing.what(&file.path),
            reason,
        };
        announced.sha256 = announced.sha256.take().or(opened.sha256.take());
        let bytes = announced.bytes.or(opened.promised).or(opened.total);
        announced.bytes = bytes;
        if let (Some(total), Some(bytes)) = (opened.total, bytes)
            && total != bytes
        {
            let reason = format!("it has {total} bytes, announced are {bytes}");
            return Err(senseless(&opened.host, reason));
        }
        if opened.starts != from {
            if opened.starts != 0 {
                let reason = format!("it begins at byte {} instead of {from}", opened.starts);
                return Err(senseless(&opened.host, reason));
            }
            // The server does not know ranges.
            done.fetch_sub(from, Ordering::Relaxed);
            part.clear()?;
        }
        while let Some(chunk) = opened.chunk().await? {
            part.write(&chunk)?;
            done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if bytes.is_some_and(|bytes| part.bytes() > bytes) {
                return Ok(Tried::TooLong);
            }
        }
        if bytes.is_some_and(|bytes| part.bytes() < bytes) {
            return Err(FetchError::Network {
                host: opened.host,
                reason: "the connection ended before the file did".to_owned(),
            });
        }
        Ok(Tried::Whole)
    }
}

/// A file that is wrong for the second time: other bytes than announced, or more of them.
fn damaged(listing: &Listing, file: &RemoteFile, sums: Option<(String, String)>) -> FetchError {
    let file = file.path.clone();
    match sums {
        Some((announced, found)) => FetchError::Damaged {
            file,
            announced,
            found,
        },
        None => FetchError::Answer {
            host: listing.repository.clone(),
            what: listing.what(&file),
            reason: "it is longer than announced".to_owned(),
        },
    }
}
