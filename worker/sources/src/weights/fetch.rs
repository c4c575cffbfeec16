//! One range of a file, however often the connection breaks.

use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Url;

use super::file::Body;
use super::{heads, lock};
use crate::client::Part;
use crate::origin::Opened;
use crate::{FetchError, Listing, Origin, RemoteFile};

/// Bytes of a file that are fetched when it is opened: the header of a file of some hundred tensors fits.
pub(crate) const HEAD_BYTES: u64 = 64 << 10;
/// As many bytes count as progress, after which failures are counted anew.
const PROGRESS: usize = 256 << 10;

/// A checkpoint's files and the connection to them.
#[derive(Debug)]
pub(super) struct Remote {
    origin: Origin,
    listing: Listing,
    received: AtomicU64,
}

/// What is known of a file.
#[derive(Debug)]
pub(super) struct Source {
    /// As it was listed.
    pub(super) file: RemoteFile,
    /// Where the place redirected to last, and the ETag there. Asking a Hub for each range would exhaust its rate limit.
    link: Mutex<Option<Link>>,
}

#[derive(Debug, Clone)]
struct Link {
    url: Url,
    tag: Option<String>,
}

impl Remote {
    pub(super) fn new(origin: Origin, listing: Listing) -> Self {
        Self {
            origin,
            listing,
            received: AtomicU64::new(0),
        }
    }

    /// Bytes received so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Open a file: its size and its first bytes, which `folder` may have.
    pub(super) async fn head(&self, file: &RemoteFile, folder: &Path) -> Result<Body, FetchError> {
        let source = Source {
            file: file.clone(),
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
    ) -> Result<(Vec<u8>, u64), FetchError> {
        let bytes_of_range = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0);
        let mut buffer = Vec::with_capacity(bytes_of_range);
        let mut size = bytes;
        if range.is_empty() {
            return Ok((buffer, size.unwrap_or(0)));
        }
        let mut tries = self.origin.tries();
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
    ) -> Result<(), FetchError> {
        let from = range.start + buffer.len() as u64;
        let link = lock(&source.link).clone();
        let url = link.as_ref().map(|link| link.url.clone());
        let asked = Part::Of(from..range.end);
        let mut opened = match self.origin.open(&self.listing, &source.file, asked, url).await {
            // A link lasts for an hour or so. What its host says then differs; the place gives a new one.
            Err(FetchError::Status { host, status, .. })
                if link.is_some() && (400..500).contains(&status) =>
            {
                *lock(&source.link) = None;
                let reason = format!("a link has expired ({status})");
                return Err(FetchError::Network { host, reason });
            }
            opened => opened?,
        };
        self.check(source, &opened, from..range.end, size)?;
        self.remember(source, &opened, link.as_ref())?;
        // A server may send less than it announced, or more: neither gets past this.
        let wanted = range
            .end
            .min(size.unwrap_or(range.end))
            .saturating_sub(range.start);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        while let Some(chunk) = opened.chunk().await? {
            if buffer.len() + chunk.len() > wanted {
                return Err(self.senseless(&opened, source, "it sends more than it was asked for"));
            }
            buffer.extend_from_slice(&chunk);
        }
        if buffer.len() < wanted {
            return Err(FetchError::Network {
                host: opened.host,
                reason: "the connection ended before the range did".to_owned(),
            });
        }
        Ok(())
    }

    /// Whether this is the asked range of the file that was promised.
    fn check(
        &self,
        source: &Source,
        opened: &Opened,
        asked: Range<u64>,
        size: &mut Option<u64>,
    ) -> Result<(), FetchError> {
        let changed = |reason: String| Err(self.changed(opened, source, reason));
        if let (Some(now), Some(then)) = (&opened.commit, &self.listing.commit)
            && now != then
        {
            return changed(format!("it is of commit {now} now"));
        }
        if let (Some(now), Some(then)) = (&opened.sha256, &source.file.sha256)
            && now != then
        {
            return changed(format!("its SHA-256 is {now} now, it was {then}"));
        }
        if let Some(then) = &source.file.tag
            && opened.tag.as_ref() != Some(then)
        {
            let now = opened.tag.as_deref().unwrap_or("none");
            return changed(format!("its ETag is {now} now, it was {then}"));
        }
        let total = opened.total.or(opened.promised);
        if let (Some(total), Some(bytes)) = (total, *size)
            && total != bytes
        {
            return changed(format!("it has {total} bytes now, it had {bytes}"));
        }
        *size = size.or(total);
        if size.is_none() {
            return Err(self.senseless(opened, source, "it does not say how long the file is"));
        }
        let is_whole = !opened.is_part && size.is_some_and(|bytes| bytes > asked.end);
        if is_whole || opened.starts != asked.start {
            return Err(self.senseless(
                opened,
                source,
                "it does not answer with the range that was asked for; weights are read by ranges, so take a mirror that \
                 knows them, or download the repository and serve it from a claim",
            ));
        }
        Ok(())
    }

    /// Go to the same place the next time, and have the same there.
    fn remember(&self, source: &Source, opened: &Opened, link: Option<&Link>) -> Result<(), FetchError> {
        if let Some(link) = link
            && let (Some(now), Some(then)) = (&opened.tag, &link.tag)
            && now != then
        {
            return Err(self.changed(opened, source, format!("its ETag is {now} now, it was {then}")));
        }
        if let (None, Some(url)) = (link, &opened.link) {
            *lock(&source.link) = Some(Link {
                url: url.clone(),
                tag: opened.tag.clone(),
            });
        }
        Ok(())
    }

    fn changed(&self, opened: &Opened, source: &Source, reason: String) -> FetchError {
        FetchError::Changed {
            host: opened.host.clone(),
            what: self.listing.what(&source.file.path),
            reason,
            audience: self.origin.audience(),
        }
    }

    fn senseless(&self, opened: &Opened, source: &Source, reason: &str) -> FetchError {
        FetchError::Answer {
            host: opened.host.clone(),
            what: self.listing.what(&source.file.path),
            reason: reason.to_owned(),
        }
    }
}
