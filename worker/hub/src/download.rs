//! One file, however often the connection breaks.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::StatusCode;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap};

use super::client::{Answer, Part, answer, host, text};
use super::partial::Partial;
use super::patience::Tries;
use super::{Hub, HubError, Listing, RemoteFile};

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

impl Hub {
    /// Download `file` to `target`, going on where an earlier try ended. `done` counts its bytes, those that were there
    /// before included.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn download(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        target: &Path,
        done: &AtomicU64,
    ) -> Result<(), HubError> {
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
        let mut tries = Tries::new(self.patience, self.audience);
        let mut damaged = false;
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
            if damaged {
                return Err(self.damaged(listing, file, again));
            }
            damaged = true;
        }
    }

    /// A file that is wrong for the second time: other bytes than announced, or more of them.
    fn damaged(&self, listing: &Listing, file: &RemoteFile, sums: Option<(String, String)>) -> HubError {
        let file = file.path.clone();
        match sums {
            Some((announced, found)) => HubError::Damaged {
                file,
                announced,
                found,
            },
            None => HubError::Answer {
                host: self.endpoint().to_owned(),
                what: format!("{file} of {}", listing.repository),
                reason: "it is longer than announced".to_owned(),
            },
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
    ) -> Result<Tried, HubError> {
        match announced.bytes {
            Some(bytes) if part.bytes() > bytes => return Ok(Tried::TooLong),
            // Only the digest may still be missing, and the bytes cannot tell it.
            Some(bytes) if part.bytes() == bytes && bytes > 0 => return Ok(Tried::Whole),
            _ => {}
        }
        let what = format!("{} of {}", file.path, listing.repository);
        let url = self.file_url(&listing.repository, &listing.commit, &file.path);
        let from = part.bytes();
        let Answer {
            mut response,
            sha256,
            size,
            ..
        } = match self.get(url, Part::From(from), &what).await {
            // There is nothing behind what is here, though nobody had told how much there is.
            Err(HubError::Status { status: 416, .. }) if from > 0 => return Ok(Tried::TooLong),
            answered => answered?,
        };
        let from_where = response.url().clone();
        let headers = response.headers();
        let (starts, total) = extent(response.status(), headers);
        announced.sha256 = announced.sha256.take().or(sha256);
        let bytes = announced.bytes.or(size).or(total);
        announced.bytes = bytes;
        if let (Some(total), Some(bytes)) = (total, bytes)
            && total != bytes
        {
            let reason = format!("it has {total} bytes, announced are {bytes}");
            return Err(answer(&from_where, &what, reason));
        }
        if starts != from {
            if starts != 0 {
                let reason = format!("it begins at byte {starts} instead of {from}");
                return Err(answer(&from_where, &what, reason));
            }
            // The server does not know ranges.
            done.fetch_sub(from, Ordering::Relaxed);
            part.clear()?;
        }
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.network(&from_where, &error))?
        {
            part.write(&chunk)?;
            done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if bytes.is_some_and(|bytes| part.bytes() > bytes) {
                return Ok(Tried::TooLong);
            }
        }
        if bytes.is_some_and(|bytes| part.bytes() < bytes) {
            return Err(HubError::Network {
                host: host(&from_where),
                reason: "the connection ended before the file did".to_owned(),
            });
        }
        Ok(Tried::Whole)
    }
}

/// Where the bytes of an answer begin, and how many the whole file has.
pub(super) fn extent(status: StatusCode, headers: &HeaderMap) -> (u64, Option<u64>) {
    if status == StatusCode::PARTIAL_CONTENT {
        // bytes 5-9/10
        let range = text(headers, CONTENT_RANGE.as_str()).and_then(|range| range.strip_prefix("bytes "));
        if let Some((range, total)) = range.and_then(|range| range.split_once('/')) {
            let starts = range.split('-').next().and_then(|start| start.parse().ok());
            return (starts.unwrap_or(u64::MAX), total.parse().ok());
        }
        return (u64::MAX, None);
    }
    let length = text(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
    (0, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        let headers = |name: &'static str, value: &str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let partial = StatusCode::PARTIAL_CONTENT;
        assert_eq!(
            extent(partial, &headers("content-range", "bytes 5-9/10")),
            (5, Some(10))
        );
        assert_eq!(
            extent(partial, &headers("content-range", "bytes 5-9/*")),
            (5, None)
        );
        assert_eq!(
            extent(partial, &headers("content-range", "lines 5-9/10")),
            (u64::MAX, None)
        );
        assert_eq!(
            extent(StatusCode::OK, &headers("content-length", "7")),
            (0, Some(7))
        );
    }
}
