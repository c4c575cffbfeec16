//! The key of a request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::file::Key;
use super::scope::Scope;
use crate::Gateway;
use crate::error::ApiError;
use crate::routes::body::linger;
use crate::routes::form::is_grpc;

/// How Anthropic's clients send a key.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who asks. Without a key, everything is open.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The key, on a gateway that has keys.
    pub key: Option<Arc<Key>>,
}

impl Caller {
    /// What the caller sees.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        static EVERYTHING: Scope = Scope::new(Vec::new(), Vec::new());
        self.key.as_ref().map_or(&EVERYTHING, |key| &key.scope)
    }

    /// The name of the key.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.name.as_str())
    }
}

/// Lets requests with a known key pass, or all where there are no keys; handlers find the [`Caller`] in the extensions.
pub async fn authenticate(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let caller = match &gateway.settings.keys {
        None => Caller::default(),
        Some(keys) => match sent(request.headers()).and_then(|sent| keys.find(sent)) {
            Some(key) => Caller { key: Some(key) },
            None => {
                let refusal = refusal(request.headers());
                // Over HTTP/2 the stream would be reset under what the client still sends, and some never see why.
                tokio::spawn(linger(request.into_body()));
                return refusal;
            }
        },
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn sent(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get(API_KEY)?.to_str().ok())
}

fn refusal(headers: &HeaderMap) -> Response {
    let message = if sent(headers).is_some() {
        "The API key is not known here; ask whoever runs this gateway for one."
    } else {
        "There is no API key; send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    };
    // Clients of gRPC read nothing but gRPC.
    if is_grpc(headers) {
        return tonic::Status::unauthenticated(message).into_http();
    }
    let error = ApiError {
        status: StatusCode::UNAUTHORIZED,
        code: Some("invalid_api_key"),
        ..ApiError::invalid(None, message)
    };
    let mut response = error.into_response();
    let challenge = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_two_headers() {
        let found = |name: &'static str, value: &'static str| {
            let headers: HeaderMap = [(HeaderName::from_static(name), HeaderValue::from_static(value))]
                .into_iter()
                .collect();
            sent(&headers).map(str::to_owned)
        };
        assert_eq!(found("authorization", "Bearer sk-1").as_deref(), Some("sk-1"));
        assert_eq!(found("authorization", "bearer  sk-1").as_deref(), Some("sk-1"));
        assert_eq!(found("x-api-key", "sk-2").as_deref(), Some("sk-2"));
        assert_eq!(found("authorization", "Basic abc"), None);
        assert_eq!(found("accept", "sk-1"), None);
    }
}
