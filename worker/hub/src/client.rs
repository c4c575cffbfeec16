//! One request: redirects, the token, the Hub's error codes.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};

use super::{Audience, HubError, Patience};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 10;
/// Time for a connection to be made.
const CONNECT: Duration = Duration::from_secs(15);

/// Where certificates of authorities lie on the systems that this program runs on. Images that hold nothing but the program
/// have none of these.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted/pem",
    "/usr/share/ca-certificates",
];

/// How a Hub is spoken to.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Its base URL.
    pub endpoint: String,
    /// Access token of an account.
    pub token: Option<String>,
    /// A PEM file with further certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// How often something is tried again.
    pub patience: Patience,
    /// Who reads errors.
    pub audience: Audience,
}

/// A Hub and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Hub {
    http: reqwest::Client,
    endpoint: Url,
    token: Option<HeaderValue>,
    pub(super) patience: Patience,
    pub(super) audience: Audience,
}

/// Which bytes of a file are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// From there to the end.
    From(u64),
    /// These.
    Of(Range<u64>),
}

/// An answer with success, and what the Hub told on the way to it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// SHA-256 of a file in LFS.
    pub(super) sha256: Option<String>,
    /// Size of a file that another host has.
    pub(super) size: Option<u64>,
    /// The commit that the file belongs to.
    pub(super) commit: Option<String>,
}

impl Hub {
    /// The Hub at `endpoint`, as the owner of `token`, for somebody at a terminal. Proxies are taken from the usual variables.
    ///
    /// # Errors
    /// [`HubError::Endpoint`], [`HubError::Token`].
    pub fn new(endpoint: &str, token: Option<&str>, patience: Patience) -> Result<Self, HubError> {
        Self::with(&HubOptions {
            endpoint: endpoint.to_owned(),
            token: token.map(str::to_owned),
            patience,
            ..HubOptions::default()
        })
    }

    /// The Hub that `options` describe.
    ///
    /// # Errors
    /// [`HubError::Endpoint`], [`HubError::Token`], [`HubError::Bundle`].
    pub fn with(options: &HubOptions) -> Result<Self, HubError> {
        let (audience, patience) = (options.audience, options.patience);
        let wrong = || HubError::Endpoint {
            endpoint: options.endpoint.clone(),
            audience,
        };
        let mut url = Url::parse(&options.endpoint).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.query().is_some() {
            return Err(wrong());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        let token = options.token.as_ref();
        let token = token.map(|token| HeaderValue::try_from(format!("Bearer {token}")));
        let mut token = token.transpose().map_err(|_| HubError::Token { audience })?;
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
            .tls_certs_merge(roots(options)?)
            .build()
            .map_err(|error| HubError::Network {
                host: options.endpoint.clone(),
                reason: reason(&error),
            })?;
        Ok(Self {
            http,
            endpoint: url,
            token,
            patience,
            audience,
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

    /// `{endpoint}/{repository}/resolve/{commit}/{path}`.
    pub(super) fn file_url(&self, repository: &str, commit: &str, path: &str) -> Url {
        self.url(
            repository
                .split('/')
                .chain(["resolve", commit])
                .chain(path.split('/')),
        )
    }

    /// GET a part of `url`, following redirects. The token goes to the Hub only, never to where it redirects to.
    pub(super) async fn get(&self, mut url: Url, part: Part, what: &str) -> Result<Answer, HubError> {
        let (mut sha256, mut size, mut commit) = (None, None, None);
        let range = match part {
            Part::From(0) => None,
            Part::From(from) => Some(format!("bytes={from}-")),
            Part::Of(range) => Some(format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
        };
        for _ in 0..=REDIRECTS {
            let at_hub = self.is_hub(&url);
            let mut request = self.http.get(url.clone());
            if let (Some(token), true) = (&self.token, at_hub) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Some(range) = &range {
                request = request.header(RANGE, range);
            }
            let response = request.send().await.map_err(|error| self.network(&url, &error))?;
            let headers = response.headers();
            sha256 = sha256.or_else(|| text(headers, "x-linked-etag").and_then(digest));
            size = size.or_else(|| text(headers, "x-linked-size")?.parse().ok());
            commit = commit.or_else(|| text(headers, "x-repo-commit").map(str::to_owned));
            let status = response.status();
            if status.is_success() {
                return Ok(Answer {
                    response,
                    sha256,
                    size,
                    commit,
                });
            }
            if !status.is_redirection() {
                return Err(self.refusal(&response, &url, at_hub, what));
            }
            url = next(&response, &url, what)?;
        }
        Err(answer(&url, what, "it redirects for ever"))
    }

    /// Whether this is the Hub itself, not a host that it redirects to.
    pub(super) fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// What a connection failed with.
    pub(super) fn network(&self, url: &Url, error: &reqwest::Error) -> HubError {
        let (host, reason) = (host(url), reason(error));
        match causes(error).any(is_certificate) {
            true => HubError::Certificate {
                host,
                reason,
                audience: self.audience,
            },
            false => HubError::Network { host, reason },
        }
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
                audience: self.audience,
            },
            // Where the Hub redirects to, a refusal means that the link has expired: the next attempt gets a new one.
            status if !at_hub => HubError::Status {
                host,
                status: status.as_u16(),
                what,
            },
            StatusCode::FORBIDDEN => self.gated(host, what),
            StatusCode::UNAUTHORIZED if code == "GatedRepo" && self.token.is_some() => self.gated(host, what),
            StatusCode::UNAUTHORIZED if self.token.is_none() => HubError::NoToken {
                host,
                what,
                audience: self.audience,
            },
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
        HubError::Gated {
            host,
            what,
            url,
            audience: self.audience,
        }
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

/// Hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

/// The certificates that are trusted beside the system's: those that are named, and Mozilla's where the system has none.
fn roots(options: &HubOptions) -> Result<Vec<reqwest::Certificate>, HubError> {
    let mut roots = Vec::new();
    if let Some(path) = &options.ca_file {
        let wrong = |reason: String| HubError::Bundle {
            path: path.clone(),
            reason,
        };
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let named = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(reason(&error)))?;
        if named.is_empty() {
            return Err(wrong("it holds no certificate in PEM form".to_owned()));
        }
        roots.extend(named);
    }
    let named = |name: &str| std::env::var_os(name).is_some();
    let has_system = SYSTEM_ROOTS
        .iter()
        .any(|path| std::path::Path::new(path).exists());
    if !has_system && !named("SSL_CERT_FILE") && !named("SSL_CERT_DIR") {
        let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        roots.extend(known.filter_map(|root| reqwest::Certificate::from_der(root).ok()));
    }
    Ok(roots)
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

/// Whether a certificate was refused. An I/O error does not give what it carries as its source, and may carry another one.
fn is_certificate(cause: &Cause) -> bool {
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        return error.get_ref().is_some_and(|carried| is_certificate(carried));
    }
    matches!(
        cause.downcast_ref(),
        Some(tokio_rustls::rustls::Error::InvalidCertificate(_))
    )
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
            assert!(matches!(hub(wrong), Err(HubError::Endpoint { .. })), "{wrong}");
        }
        let token = Hub::new("http://h", Some("a\nb"), Patience::default());
        assert!(matches!(token, Err(HubError::Token { .. })));
        let sum = "A".repeat(64);
        assert_eq!(digest(&format!("\"{sum}\"")), Some("a".repeat(64)));
        assert_eq!(digest(&"a".repeat(40)), None);
    }
}
