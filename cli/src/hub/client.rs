//! One request: redirects, the token, the Hub's error codes.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};

use super::{HubError, Patience};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;
/// Time for a connection to be made.
const CONNECT: Duration = Duration::from_secs(15);

/// A Hub and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Hub {
    http: reqwest::Client,
    endpoint: Url,
    token: Option<HeaderValue>,
    pub(super) patience: Patience,
}

/// An answer with success, and what the Hub told on the way to it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// SHA-256 of a file in LFS.
    pub(super) sha256: Option<String>,
    /// Size of a file that another host has.
    pub(super) size: Option<u64>,
}

impl Hub {
    /// The Hub at `endpoint`, as the owner of `token`. Proxies are taken from the usual variables.
    ///
    /// # Errors
    /// [`HubError::Endpoint`], [`HubError::Token`].
    pub fn new(endpoint: &str, token: Option<&str>, patience: Patience) -> Result<Self, HubError> {
        let wrong = || HubError::Endpoint(endpoint.to_owned());
        let mut url = Url::parse(endpoint).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.query().is_some() {
            return Err(wrong());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        let token = token.map(|token| HeaderValue::try_from(format!("Bearer {token}")));
        let mut token = token.transpose().map_err(|_| HubError::Token)?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        // Another call has set the same one before, or this one does.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("llamero/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT)
            .read_timeout(patience.silence)
            .build()
            .map_err(|error| HubError::Network {
                host: endpoint.to_owned(),
                reason: reason(&error),
            })?;
        Ok(Self {
            http,
            endpoint: url,
            token,
            patience,
        })
    }

    /// Base URL without a slash at its end.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    /// `{endpoint}/segments…`, each segment encoded.
    pub(super) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// GET `url` from byte `from` on, following redirects. The token goes to the Hub only, never to where it redirects to.
    pub(super) async fn get(&self, mut url: Url, from: u64, what: &str) -> Result<Answer, HubError> {
        let (mut sha256, mut size) = (None, None);
        for _ in 0..=REDIRECTS {
            let at_hub = url.origin() == self.endpoint.origin();
            let mut request = self.http.get(url.clone());
            if let (Some(token), true) = (&self.token, at_hub) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.send().await.map_err(|error| network(&url, &error))?;
            let headers = response.headers();
            sha256 = sha256.or_else(|| text(headers, "x-linked-etag").and_then(digest));
            size = size.or_else(|| text(headers, "x-linked-size")?.parse().ok());
            let status = response.status();
            if status.is_success() {
                return Ok(Answer {
                    response,
                    sha256,
                    size,
                });
            }
            if !status.is_redirection() {
                return Err(self.refusal(&response, &url, at_hub, what));
            }
            url = next(&response, &url, what)?;
        }
        Err(answer(&url, what, "it redirects for ever"))
    }

    /// What an answer without success means.
    fn refusal(&self, response: &Response, url: &Url, at_hub: bool, what: &str) -> HubError {
        let (host, what) = (host(url), what.to_owned());
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => HubError::RateLimited {
                host,
                after: text(headers, RETRY_AFTER.as_str())
                    .and_then(|seconds| seconds.parse().ok())
                    .map(Duration::from_secs),
            },
            // Where the Hub redirects to, a refusal means that the link has expired: the next attempt gets a new one.
            status if !at_hub => HubError::Status {
                host,
                status: status.as_u16(),
                what,
            },
            StatusCode::FORBIDDEN => self.gated(host, what),
            StatusCode::UNAUTHORIZED if code == "GatedRepo" && self.token.is_some() => self.gated(host, what),
            StatusCode::UNAUTHORIZED if self.token.is_none() => HubError::NoToken { host, what },
            StatusCode::UNAUTHORIZED => HubError::BadToken { host, what },
            StatusCode::NOT_FOUND => HubError::NotFound {
                host,
                what,
                hint: match code {
                    "RevisionNotFound" => ": the repository is there, but not this revision",
                    "EntryNotFound" => ": the repository is there, but not this file",
                    _ => "; a folder or file of this name is not here either",
                },
            },
            status => HubError::Status {
                host,
                status: status.as_u16(),
                what,
            },
        }
    }

    fn gated(&self, host: String, what: String) -> HubError {
        let repository = what.split(['@', ' ']).next().unwrap_or_default();
        let url = format!("{}/{repository}", self.endpoint());
        HubError::Gated { host, what, url }
    }
}

/// Where a redirect leads to. Encryption once begun is not given up.
fn next(response: &Response, url: &Url, what: &str) -> Result<Url, HubError> {
    let location = text(response.headers(), LOCATION.as_str());
    let next = location
        .and_then(|location| url.join(location).ok())
        .ok_or_else(|| answer(url, what, "it redirects to nowhere"))?;
    if url.scheme() == "https" && next.scheme() != "https" {
        return Err(answer(url, what, "it redirects to an address without encryption"));
    }
    Ok(next)
}

/// The digest in an ETag, if it is SHA-256; files outside LFS have the 40 digits of Git.
fn digest(etag: &str) -> Option<String> {
    let digest = etag.trim_start_matches("W/").trim_matches('"');
    is_sha256(digest).then(|| digest.to_ascii_lowercase())
}

/// Whether this is SHA-256 in hexadecimal.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A header as text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Host and port.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn answer(url: &Url, what: &str, reason: impl ToString) -> HubError {
    HubError::Answer {
        host: host(url),
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

/// What a connection failed with.
pub(super) fn network(url: &Url, error: &reqwest::Error) -> HubError {
    let (host, reason) = (host(url), reason(error));
    match causes(error).any(is_certificate) {
        true => HubError::Certificate { host, reason },
        false => HubError::Network { host, reason },
    }
}

/// The innermost cause, which is the one that says something. Addresses with signatures in them are not shown.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it takes too long".to_owned();
    }
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

type Cause = dyn std::error::Error + 'static;

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &Cause> {
    std::iter::successors(Some(error as &Cause), |cause| cause.source())
}

/// Whether a certificate was refused. An I/O error does not give what it carries as its source.
fn is_certificate(cause: &Cause) -> bool {
    let carried = cause
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    let tls = match carried {
        Some(carried) => carried.downcast_ref(),
        None => cause.downcast_ref(),
    };
    matches!(tls, Some(tokio_rustls::rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_digests() {
        let hub = |endpoint| Hub::new(endpoint, None, Patience::default());
        let url = hub("http://h:1/mirror/").unwrap().url(["org", "m", "refs/pr/1"]);
        assert_eq!(url.as_str(), "http://h:1/mirror/org/m/refs%2Fpr%2F1");
        assert_eq!(hub("https://h").unwrap().url(["a"]).as_str(), "https://h/a");
        assert_eq!(hub("https://h/").unwrap().endpoint(), "https://h");
        for wrong in ["h", "ftp://h", "", "https://h?x=1"] {
            assert!(matches!(hub(wrong), Err(HubError::Endpoint(_))), "{wrong}");
        }
        let token = Hub::new("http://h", Some("a\nb"), Patience::default());
        assert!(matches!(token, Err(HubError::Token)));
        let sum = "A".repeat(64);
        assert_eq!(digest(&format!("\"{sum}\"")), Some("a".repeat(64)));
        assert_eq!(digest(&"a".repeat(40)), None);
    }
}
