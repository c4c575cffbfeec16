//! One request over HTTP: redirects, the token, what refusals mean.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue, IF_MATCH, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode, Url};

use super::{Access, Audience, FetchError, Patience};

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

/// A server over HTTP, and how it is spoken to.
#[derive(Debug, Clone)]
pub(super) struct Http {
    http: reqwest::Client,
    base: Url,
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

/// An answer with success, and what a Hub told on the way to it.
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

impl Http {
    /// The server at `base`, a URL with a scheme and a host; none if it is no such URL. Proxies are taken from the usual
    /// variables.
    ///
    /// # Errors
    /// The token or the certificates cannot be used.
    pub(super) fn with(base: &str, access: &Access) -> Result<Option<Self>, FetchError> {
        let Some(base) = base_url(base) else {
            return Ok(None);
        };
        let audience = access.audience;
        let token = access.token.as_ref();
        let token = token.map(|token| HeaderValue::try_from(format!("Bearer {token}")));
        let mut token = token.transpose().map_err(|_| FetchError::Token { audience })?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        Ok(Some(Self {
            http: transport(access, Policy::none())?,
            base,
            token,
            patience: access.patience,
            audience,
        }))
    }

    /// Base URL without a slash at its end.
    pub(super) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// `{base}/segments…`, each segment encoded.
    pub(super) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// GET a part of `url`, following redirects, if it still has the ETag `tag`. The token goes to this server only, never to
    /// where it redirects to.
    pub(super) async fn get(
        &self,
        mut url: Url,
        part: Part,
        tag: Option<&str>,
        what: &str,
    ) -> Result<Answer, FetchError> {
        let (mut sha256, mut size, mut commit) = (None, None, None);
        let range = match part {
            Part::From(0) => None,
            Part::From(from) => Some(format!("bytes={from}-")),
            Part::Of(range) => Some(format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
        };
        for _ in 0..=REDIRECTS {
            let is_place = self.is_place(&url);
            let mut request = self.http.get(url.clone());
            if let (Some(token), true) = (&self.token, is_place) {
                request = request.header(AUTHORIZATION, token.clone());
            }
            if let Some(range) = &range {
                request = request.header(RANGE, range);
            }
            // A weak ETag never matches; it is compared with that of the answer.
            if let Some(tag) = tag.filter(|tag| tag.starts_with('"')) {
                request = request.header(IF_MATCH, tag);
            }
            let response = request
                .send()
                .await
                .map_err(|error| network(&url, &error, self.audience))?;
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
                return Err(self.refusal(&response, &url, is_place, what));
            }
            url = next(&response, &url, what)?;
        }
        Err(answer(&url, what, "it redirects for ever"))
    }

    /// Whether this is the server itself, not a host that it redirects to.
    pub(super) fn is_place(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// What an answer without success means.
    fn refusal(&self, response: &Response, url: &Url, is_place: bool, what: &str) -> FetchError {
        let (host, what) = (host(url), what.to_owned());
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => FetchError::RateLimited {
                host,
                after: text(headers, RETRY_AFTER.as_str())
                    .and_then(|asked| retry_after(asked, text(headers, DATE.as_str()))),
                audience: self.audience,
            },
            StatusCode::PRECONDITION_FAILED => FetchError::Changed {
                host,
                what,
                reason: "its ETag is another one now".to_owned(),
                audience: self.audience,
            },
            // Elsewhere a refusal means that the link has expired: the next attempt gets a new one.
            status if !is_place => FetchError::Status {
                host,
                status: status.as_u16(),
                what,
            },
            status @ (StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED)
                if self.audience == Audience::Https =>
            {
                FetchError::Refused {
                    host,
                    what,
                    status: status.as_u16(),
                    words: String::new(),
                    audience: self.audience,
                }
            }
            StatusCode::FORBIDDEN => self.gated(host, what),
            StatusCode::UNAUTHORIZED if code == "GatedRepo" && self.token.is_some() => self.gated(host, what),
            StatusCode::UNAUTHORIZED if self.token.is_none() => FetchError::NoToken {
                host,
                what,
                audience: self.audience,
            },
            StatusCode::UNAUTHORIZED => FetchError::BadToken { host, what },
            StatusCode::NOT_FOUND => FetchError::NotFound {
                host,
                what,
                hint: match code {
                    "RevisionNotFound" => ": the repository is there, but not this revision",
                    "EntryNotFound" => ": the repository is there, but not this file",
                    _ if self.audience == Audience::Https => " and the folder",
                    _ => "; a folder or file of this name is not here either",
                },
            },
            status => FetchError::Status {
                host,
                status: status.as_u16(),
                what,
            },
        }
    }

    fn gated(&self, host: String, what: String) -> FetchError {
        let repository = what.split(['@', ' ']).next().unwrap_or_default();
        let url = format!("{}/{repository}", self.base());
        FetchError::Gated {
            host,
            what,
            url,
            audience: self.audience,
        }
    }
}

/// The pause that a server asks for: seconds, or the time at which to come again (RFC 9110, 10.2.3). That is compared with the time of the answer by
/// the same clock, which is not ours, where the server tells it.
fn retry_after(asked: &str, answered: Option<&str>) -> Option<Duration> {
    let asked = asked.trim();
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(asked).ok()?;
    let answered = answered.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    let now = answered.unwrap_or_else(SystemTime::now);
    Some(at.duration_since(now).unwrap_or_default())
}

/// A base URL without a slash at its end, if this is one.
pub fn base_url(text: &str) -> Option<Url> {
    let mut url = Url::parse(text).ok()?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.query().is_some() {
        return None;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Some(url)
}

/// A client with the certificates that are trusted.
pub(super) fn transport(access: &Access, redirects: Policy) -> Result<reqwest::Client, FetchError> {
    // Another call has set the same one before, or this one does.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .user_agent(concat!("llamero/", env!("CARGO_PKG_VERSION")))
        .redirect(redirects)
        .connect_timeout(CONNECT)
        .read_timeout(access.patience.silence)
        .tls_certs_merge(roots(access)?)
        .build();
    client.map_err(|error| FetchError::Network {
        host: "this machine".to_owned(),
        reason: reason(&error),
    })
}

/// What a connection failed with.
pub(super) fn network(url: &Url, error: &reqwest::Error, audience: Audience) -> FetchError {
    let (host, reason) = (host(url), reason(error));
    match causes(error).any(is_certificate) {
        true => FetchError::Certificate {
            host,
            reason,
            audience,
        },
        false => FetchError::Network { host, reason },
    }
}

/// Where a redirect leads to. Encryption once begun is not given up.
fn next(response: &Response, url: &Url, what: &str) -> Result<Url, FetchError> {
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

pub(super) fn answer(url: &Url, what: &str, reason: impl ToString) -> FetchError {
    FetchError::Answer {
        host: host(url),
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

/// The certificates that are trusted beside the system's: those that are named, and Mozilla's where the system has none.
fn roots(options: &Access) -> Result<Vec<reqwest::Certificate>, FetchError> {
    let mut roots = Vec::new();
    if let Some(path) = &options.ca_file {
        let wrong = |reason: String| FetchError::Bundle {
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

/// What an error has among its causes.
pub(super) type Cause = dyn std::error::Error + 'static;

/// An error and what caused it.
pub(super) fn causes(error: &Cause) -> impl Iterator<Item = &Cause> {
    std::iter::successors(Some(error), |cause| cause.source())
}

/// Whether a certificate was refused. An I/O error does not give what it carries as its source, and may carry another one.
pub(super) fn is_certificate(cause: &Cause) -> bool {
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
    fn a_server_asks_for_seconds_or_for_a_time() {
        let later = "Sun, 06 Nov 1994 08:49:37 GMT";
        let after = |asked, answered| retry_after(asked, answered).map(|pause| pause.as_secs());
        assert_eq!(after("7", None), Some(7));
        assert_eq!(after(later, Some("Sun, 06 Nov 1994 08:49:07 GMT")), Some(30));
        // The old forms, which are still allowed.
        assert_eq!(
            after("Sunday, 06-Nov-94 08:49:37 GMT", Some("Sun Nov  6 08:49:07 1994")),
            Some(30)
        );
        assert_eq!(
            after("Sun, 06 Nov 1994 08:49:07 GMT", Some(later)),
            Some(0),
            "it has passed"
        );
        assert_eq!(after(later, None), Some(0), "by our clock");
        for wrong in ["", "-1", "soon", "1.5", "Sun, 06 Nov 1994 08:49:37"] {
            assert_eq!(after(wrong, None), None, "{wrong}");
        }
    }

    #[test]
    fn addresses_and_digests() {
        let http = |base| Http::with(base, &Access::default()).unwrap();
        let url = http("http://h:1/mirror/").unwrap().url(["org", "m", "refs/pr/1"]);
        assert_eq!(url.as_str(), "http://h:1/mirror/org/m/refs%2Fpr%2F1");
        assert_eq!(http("https://h").unwrap().url(["a"]).as_str(), "https://h/a");
        assert_eq!(http("https://h/").unwrap().base(), "https://h");
        for wrong in ["h", "ftp://h", "", "https://h?x=1"] {
            assert!(http(wrong).is_none(), "{wrong}");
        }
        let access = Access {
            token: Some("a\nb".to_owned()),
            ..Access::default()
        };
        let token = Http::with("http://h", &access);
        assert!(matches!(token, Err(FetchError::Token { .. })));
        let sum = "A".repeat(64);
        assert_eq!(digest(&format!("\"{sum}\"")), Some("a".repeat(64)));
        assert_eq!(digest(&"a".repeat(40)), None);
    }
}
