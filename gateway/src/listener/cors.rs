//! Pages of other origins that may use the API from a browser (CORS, the Fetch standard).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

/// How long a browser may remember what it was allowed, in seconds; more is cut by some.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, OPTIONS");
/// Headers that scripts may read beside the few that they always may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, retry-after, x-should-retry, preference-applied, x-ratelimit-limit-requests, \
     x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, \
     x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens",
);
/// Longest list of headers that is answered as it was asked.
const MAX_ASKED: usize = 4096;
const METHOD_ASKED: HeaderName = header::ACCESS_CONTROL_REQUEST_METHOD;

/// The origins that are let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// Pages of every origin. Nothing of the API hangs on cookies, so that such a page can do no more than its user.
    Any,
    /// Pages of these origins.
    Origins(Vec<HeaderValue>),
}

/// What is no origin.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no origin; write one such as https://chat.example.com, without a path, or *")]
pub struct CorsError(String);

impl Cors {
    /// From origins as they are configured; none let in no page.
    ///
    /// # Errors
    /// [`CorsError`].
    pub fn new(origins: &[String]) -> Result<Option<Self>, CorsError> {
        if origins.iter().any(|origin| origin == "*") {
            return Ok(Some(Self::Any));
        }
        let origins: Vec<HeaderValue> = origins
            .iter()
            .map(|origin| parse(origin).ok_or_else(|| CorsError(origin.clone())))
            .collect::<Result<_, _>>()?;
        Ok((!origins.is_empty()).then_some(Self::Origins(origins)))
    }

    /// What to answer a page of this origin, if it is let in.
    #[must_use]
    pub fn allow(&self, request: &HeaderMap) -> Option<HeaderValue> {
        let origin = request.get(header::ORIGIN)?;
        match self {
            Self::Any => Some(HeaderValue::from_static("*")),
            Self::Origins(origins) => origins.contains(origin).then(|| origin.clone()),
        }
    }

    /// The answer to a browser that asks what a page may do, before it lets the page do it.
    #[must_use]
    pub fn preflight<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let headers = request.headers();
        let asks = request.method() == Method::OPTIONS && headers.contains_key(METHOD_ASKED);
        if !asks || !headers.contains_key(header::ORIGIN) {
            return None;
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.allow(headers).is_some() {
            let answer = response.headers_mut();
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
            let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(asked) = asked.filter(|asked| asked.len() <= MAX_ASKED) {
                answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
            }
        }
        Some(response)
    }

    /// Let the page read an answer, errors and streams as well. `allowed` is what [`Self::allow`] said of the request.
    pub fn open(&self, allowed: Option<HeaderValue>, answer: &mut HeaderMap) {
        if *self != Self::Any {
            // Caches must not give one origin what another may read.
            answer.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Some(allowed) = allowed {
            answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }
}

/// `scheme://host[:port]`, as browsers write it, or `null`.
fn parse(origin: &str) -> Option<HeaderValue> {
    let (scheme, host) = origin.split_once("://")?;
    let plain = |text: &str, more: &[u8]| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte))
    };
    let fits = plain(scheme, b"+-.") && plain(host, b"-.:[]");
    fits.then(|| HeaderValue::from_str(origin).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_checked() {
        let new = |origins: &[&str]| {
            Cors::new(
                &origins
                    .iter()
                    .map(|&origin| origin.to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(new(&[]).unwrap(), None);
        assert_eq!(new(&["https://a.b", "*"]).unwrap(), Some(Cors::Any));
        new(&["https://a.b:8443", "http://localhost:3000", "http://[::1]:3000"]).unwrap();
        for wrong in ["a.b", "https://a.b/", "https://", "https://A.b", "https://*.b"] {
            let error = new(&[wrong]).unwrap_err().to_string();
            assert!(error.contains("without a path"), "{error}");
        }
    }
}
