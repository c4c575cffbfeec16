//! A place that can be asked: one answer with bytes, whatever the protocol.

use std::path::Path;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LAST_MODIFIED};
use reqwest::{Response, StatusCode, Url};

use crate::client::{Answer, Part, host, text};
use crate::patience::Tries;
use crate::{Access, Audience, Bucket, FetchError, Hub, Listing, Patience, Place, RemoteFile, Web};

/// A place, and how it is spoken to.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A Hub.
    Hub(Hub),
    /// Files below a URL.
    Web(Web),
    /// A bucket.
    Bucket(Bucket),
}

/// An answer to a request for a part of a file.
pub(crate) struct Opened {
    /// Who sends it.
    pub(crate) host: String,
    /// The first byte that comes.
    pub(crate) starts: u64,
    /// Size of the whole file, as the sender tells it.
    pub(crate) total: Option<u64>,
    /// The same, as the place told it on the way to the sender.
    pub(crate) promised: Option<u64>,
    /// Whether it is a part, not the whole file.
    pub(crate) is_part: bool,
    /// What changes when the file does.
    pub(crate) tag: Option<String>,
    /// SHA-256 of the file.
    pub(crate) sha256: Option<String>,
    /// The commit that the file belongs to.
    pub(crate) commit: Option<String>,
    /// Where the place redirected to, if anywhere.
    pub(crate) link: Option<Url>,
    body: Body,
}

enum Body {
    Http(Box<Response>, Audience),
    Bucket(BoxStream<'static, object_store::Result<Bytes>>, Bucket),
}

impl Opened {
    /// Of an answer over HTTP.
    pub(crate) fn http(answer: Answer, is_place: bool, audience: Audience) -> Self {
        let Answer {
            response,
            sha256,
            size,
            commit,
        } = answer;
        let headers = response.headers();
        let (starts, total) = extent(response.status(), headers);
        Self {
            host: host(response.url()),
            starts,
            total,
            promised: size,
            is_part: response.status() == StatusCode::PARTIAL_CONTENT,
            tag: tag(headers),
            sha256,
            commit,
            link: (!is_place).then(|| response.url().clone()),
            body: Body::Http(Box::new(response), audience),
        }
    }

    /// Of an answer of a bucket.
    pub(crate) fn bucket(found: object_store::GetResult, is_part: bool, bucket: &Bucket) -> Self {
        Self {
            host: bucket.host().to_owned(),
            starts: found.range.start,
            total: Some(found.meta.size),
            promised: None,
            is_part,
            tag: found.meta.e_tag.as_deref().map(crate::bucket::quoted),
            sha256: None,
            commit: None,
            link: None,
            body: Body::Bucket(found.into_stream(), bucket.clone()),
        }
    }

    /// The next bytes; none at the end.
    ///
    /// # Errors
    /// The connection breaks.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        match &mut self.body {
            Body::Http(response, audience) => {
                let chunk = response.chunk().await;
                chunk.map_err(|error| crate::client::network(response.url(), &error, *audience))
            }
            Body::Bucket(stream, bucket) => match stream.next().await {
                Some(chunk) => chunk.map(Some).map_err(|error| bucket.broken(&error)),
                None => Ok(None),
            },
        }
    }
}

impl Origin {
    /// Make `place` ready to be asked.
    ///
    /// # Errors
    /// Its address or what opens it cannot be used.
    pub fn connect(place: &Place, access: &Access) -> Result<Self, FetchError> {
        let access = &Access {
            audience: place.audience(access.audience),
            ..access.clone()
        };
        match place {
            Place::Hub { endpoint, .. } => Hub::with(endpoint, access).map(Self::Hub),
            Place::Web { url } => Web::with(url, access).map(Self::Web),
            Place::Bucket {
                uri,
                endpoint,
                region,
            } => Bucket::with(uri, endpoint.as_deref(), region.as_deref(), access).map(Self::Bucket),
        }
    }

    /// The files of `place`, which this is. What is read of their headers on the way is kept in `folder`.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(crate) async fn list(&self, place: &Place, folder: &Path) -> Result<Listing, FetchError> {
        match (self, place) {
            (Self::Hub(hub), Place::Hub { repository, .. }) => hub.list(repository).await,
            (Self::Hub(hub), _) => Err(FetchError::Unusable {
                repository: hub.endpoint().to_owned(),
                reason: "no repository of it is named".to_owned(),
            }),
            (Self::Web(web), _) => web.list(folder).await,
            (Self::Bucket(bucket), _) => bucket.list().await,
        }
    }

    /// How often something is tried again.
    pub(crate) fn patience(&self) -> Patience {
        match self {
            Self::Hub(hub) => hub.http.patience,
            Self::Web(web) => web.http.patience,
            Self::Bucket(bucket) => bucket.patience,
        }
    }

    /// Who reads errors.
    pub(crate) fn audience(&self) -> Audience {
        match self {
            Self::Hub(hub) => hub.http.audience,
            Self::Web(web) => web.http.audience,
            Self::Bucket(bucket) => bucket.audience,
        }
    }

    /// Attempts that fail are counted with these.
    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.patience(), self.audience())
    }

    /// Ask for a part of `file`, once; over `link` where an earlier answer told of one.
    ///
    /// # Errors
    /// It is refused, or changed.
    pub(crate) async fn open(
        &self,
        listing: &Listing,
        file: &RemoteFile,
        part: Part,
        link: Option<Url>,
    ) -> Result<Opened, FetchError> {
        let what = listing.what(&file.path);
        let (http, url) = match self {
            Self::Bucket(bucket) => return bucket.open(file, part, &what).await,
            Self::Hub(hub) => (&hub.http, hub.file_url(listing, &file.path)),
            Self::Web(web) => (&web.http, web.file_url(&file.path)),
        };
        let url = link.unwrap_or(url);
        let answer = http.get(url, part, file.tag.as_deref(), &what).await?;
        let is_place = http.is_place(answer.response.url());
        Ok(Opened::http(answer, is_place, http.audience))
    }
}

/// What changes when a file does: its ETag, else the time of its last change.
fn tag(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, ETAG.as_str()).map(str::to_owned);
    etag.or_else(|| text(headers, LAST_MODIFIED.as_str()).map(|date| format!("of {date}")))
}

/// Where the bytes of an answer begin, and how many the whole file has.
fn extent(status: StatusCode, headers: &HeaderMap) -> (u64, Option<u64>) {
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
    fn ranges_and_tags_are_read() {
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
        assert_eq!(tag(&headers("etag", "\"a\"")).as_deref(), Some("\"a\""));
        let date = "Fri, 27 Nov 2026 00:00:00 GMT";
        assert_eq!(tag(&headers("last-modified", date)), Some(format!("of {date}")));
        assert_eq!(tag(&headers("date", date)), None);
    }
}
