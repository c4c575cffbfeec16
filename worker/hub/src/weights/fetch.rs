//! One range of a file, however often the connection breaks.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::header::ETAG;
use reqwest::{StatusCode, Url};

use super::file::Body;
use super::{heads, lock};
use crate::client::{Answer, Part, answer, host, text};
use crate::download::extent;
use crate::patience::Tries;
use crate::{Hub, HubError, Listing, RemoteFile};

/// Bytes of a file that are fetched when it is opened: the header of a file of some hundred tensors fits.
pub(super) const HEAD_BYTES: u64 = 64 << 10;
/// As many bytes count as progress, after which failures are counted anew.
const PROGRESS: usize = 256 << 10;

/// A commit and the connection to it.
#[derive(Debug)]
pub(super) struct Remote {
    hub: Hub,
    repository: String,
    commit: String,
    received: AtomicU64,
}

/// What is known of a file.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path in the repository.
    pub(super) path: String,
    /// SHA-256, if the Hub tells it.
    pub(super) sha256: Option<String>,
    /// Where the Hub redirected to last, and the ETag there. Asking the Hub for each range would exhaust its rate limit.
    link: Mutex<Option<Link>>,
}

#[derive(Debug, Clone)]
struct Link {
    url: Url,
    etag: Option<String>,
}

impl Remote {
    pub(super) fn new(hub: Hub, listing: &Listing) -> Self {
        Self {
            hub,
            repository: listing.repository.clone(),
            commit: listing.commit.clone(),
            received: AtomicU64::new(0),
        }
    }

    /// Bytes received so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Open a file: its size and its first bytes, which `folder` may have.
    pub(super) async fn head(&self, file: &RemoteFile, folder: &Path) -> Result<Body, HubError> {
        let source = Source {
            path: file.path.clone(),
            sha256: file.sha256.clone(),
            link: Mutex::default(),
        };
        if let (Some(head), Some(bytes)) = (heads::read(folder, file), file.bytes) {
            return Ok(Body { source, bytes, head });
        }
        let end = file.bytes.unwrap_or(HEAD_BYTES).min(HEAD_BYTES);
        let (head, bytes) = self.fetch(&source, 0..end, file.bytes).await?;
        heads::keep(folder, file, &head);
        Ok(Body { source, bytes, head })
    }

    /// The bytes of `range`, and the size of the whole file, which must be `bytes` where that is known.
    pub(super) async fn fetch(
        &self,
        source: &Source,
        range: Range<u64>,
        bytes: Option<u64>,
    ) -> Result<(Vec<u8>, u64), HubError> {
        let mut buffer = Vec::with_capacity((range.end - range.start) as usize);
        let mut size = bytes;
        if range.is_empty() {
            return Ok((buffer, size.unwrap_or(0)));
        }
        let mut tries = Tries::new(self.hub.patience, self.hub.audience);
        loop {
            let before = buffer.len();
            let tried = self.attempt(source, &range, &mut size, &mut buffer).await;
            self.received
                .fetch_add((buffer.len() - before) as u64, Ordering::Relaxed);
            match tried {
                Ok(()) => return Ok((buffer, size.unwrap_or(range.end))),
                Err(error) => {
                    if buffer.len() - before >= PROGRESS {
                        tries.progressed();
                    }
                    tries.failed(error).await?;
                }
            }
        }
    }

    /// Read as far as one connection goes, after what `buffer` has.
    async fn attempt(
        &self,
        source: &Source,
        range: &Range<u64>,
        size: &mut Option<u64>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), HubError> {
        let what = format!("{} of {}@{}", source.path, self.repository, self.commit);
        let from = range.start + buffer.len() as u64;
        let link = lock(&source.link).clone();
        let url = match &link {
            Some(link) => link.url.clone(),
            None => self.hub.file_url(&self.repository, &self.commit, &source.path),
        };
        let asked = self.hub.get(url, Part::Of(from..range.end), &what).await;
        let found = match asked {
            // A link lasts for an hour or so. What its host says then differs; the Hub gives a new one.
            Err(HubError::Status { host, status, .. }) if link.is_some() && (400..500).contains(&status) => {
                *lock(&source.link) = None;
                let reason = format!("a link has expired ({status})");
                return Err(HubError::Network { host, reason });
            }
            found => found?,
        };
        self.check(source, &found, from..range.end, size, &what)?;
        self.remember(source, &found, link.as_ref(), &what)?;
        let Answer { mut response, .. } = found;
        let from_where = response.url().clone();
        // A server may send less than it announced, or more: neither gets past this.
        let wanted = (range.end.min(size.unwrap_or(range.end)) - range.start) as usize;
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.hub.network(&from_where, &error))?
        {
            if buffer.len() + chunk.len() > wanted {
                return Err(answer(&from_where, &what, "it sends more than it was asked for"));
            }
            buffer.extend_from_slice(&chunk);
        }
        if buffer.len() < wanted {
            return Err(HubError::Network {
                host: host(&from_where),
                reason: "the connection ended before the range did".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether this is the asked range of the file that was promised.
    fn check(
        &self,
        source: &Source,
        found: &Answer,
        asked: Range<u64>,
        size: &mut Option<u64>,
        what: &str,
    ) -> Result<(), HubError> {
        let url = found.response.url();
        let changed = |reason: String| HubError::Changed {
            host: host(url),
            what: what.to_owned(),
            reason,
        };
        if let Some(commit) = found.commit.as_ref().filter(|commit| **commit != self.commit) {
            return Err(changed(format!("it is of commit {commit} now")));
        }
        if let (Some(now), Some(then)) = (&found.sha256, &source.sha256)
            && now != then
        {
            return Err(changed(format!("its SHA-256 is {now} now, it was {then}")));
        }
        let (starts, total) = extent(found.response.status(), found.response.headers());
        let total = total.or(found.size);
        if let (Some(total), Some(bytes)) = (total, *size)
            && total != bytes
        {
            return Err(changed(format!("it has {total} bytes now, it had {bytes}")));
        }
        *size = size.or(total);
        if size.is_none() {
            return Err(answer(url, what, "it does not say how long the file is"));
        }
        let is_whole =
            found.response.status() == StatusCode::OK && size.is_some_and(|bytes| bytes > asked.end);
        if is_whole || starts != asked.start {
            return Err(answer(
                url,
                what,
                "it does not answer with the range that was asked for; weights are read by ranges, so take a mirror that \
                 knows them, or download the repository and serve it from a claim",
            ));
        }
        Ok(())
    }

    /// Go to the same place the next time, and have the same there.
    fn remember(
        &self,
        source: &Source,
        found: &Answer,
        link: Option<&Link>,
        what: &str,
    ) -> Result<(), HubError> {
        let url = found.response.url();
        let etag = text(found.response.headers(), ETAG.as_str()).map(str::to_owned);
        if let Some(link) = link
            && let (Some(now), Some(then)) = (&etag, &link.etag)
            && now != then
        {
            return Err(HubError::Changed {
                host: host(url),
                what: what.to_owned(),
                reason: format!("its ETag is {now} now, it was {then}"),
            });
        }
        if link.is_none() && !self.hub.is_hub(url) {
            *lock(&source.link) = Some(Link {
                url: url.clone(),
                etag,
            });
        }
        Ok(())
    }
}
