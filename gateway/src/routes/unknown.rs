//! Routes that are not there. Those that other servers have are refused by name.

use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;

use super::form::ErrorForm;
use crate::error::ApiError;

/// Ends of paths that other servers have, and why they are not here.
const REFUSED: &[(&str, &str)] = &[
    ("/embeddings", "use POST /v1/embeddings"),
    ("/score", "a model that generates has no score for pairs of texts"),
    (
        "/rerank",
        "a model that generates has no score for pairs of texts",
    ),
    ("/pooling", "use POST /v1/embeddings"),
    ("/classify", "a model that generates has no classes"),
    ("/moderations", "no moderation model is served"),
    ("/audio/speech", "the models read and write text only"),
    ("/audio/transcriptions", "the models read and write text only"),
    ("/images/generations", "the models read and write text only"),
    ("/batches", "nothing is stored here; send the requests one by one"),
    ("/files", "nothing is stored here"),
    ("/assistants", "nothing is stored here; use /v1/responses"),
    ("/threads", "nothing is stored here; use /v1/responses"),
];

/// No such route.
pub async fn route(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    ErrorForm::of(path, &headers).answer(no_route(&method, path))
}

fn no_route(method: &Method, path: &str) -> ApiError {
    let stored = path
        .starts_with("/v1/responses/")
        .then_some("no response is stored here");
    let refused = REFUSED.iter().find(|(end, _)| path.ends_with(end));
    let (code, message) = match stored.or(refused.map(|(_, why)| *why)) {
        Some(why) => (
            "unsupported_url",
            format!("{method} {path} is not supported: {why}."),
        ),
        None => (
            "unknown_url",
            format!(
                "There is no {method} {path}; use /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, \
                 /v1/messages or /v1/embeddings."
            ),
        ),
    };
    ApiError {
        status: StatusCode::NOT_FOUND,
        code: Some(code),
        ..ApiError::invalid(None, message)
    }
}

/// The route is there, but not for this method.
pub async fn method(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path();
    ErrorForm::of(path, &headers).answer(no_method(&method, path))
}

fn no_method(method: &Method, path: &str) -> ApiError {
    let read = ["/", "/health", "/version", "/page.js", "/page.css"].contains(&path);
    let right = if read || path.starts_with("/v1/models") {
        "GET"
    } else {
        "POST"
    };
    let message = format!("{method} is not allowed for {path}; use {right}.");
    ApiError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: Some("method_not_allowed"),
        ..ApiError::invalid(None, message)
    }
}
