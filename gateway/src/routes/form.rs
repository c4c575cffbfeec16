//! In what form a route tells of errors, for those who tell of one without having read the request.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use tonic::Status;

use super::{messages, vllm};
use crate::error::ApiError;

/// A form of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorForm {
    /// [`ApiError`] as it is.
    OpenAi,
    /// [`messages::failure`].
    Anthropic,
    /// A status of gRPC, whose clients read nothing else.
    Grpc,
}

impl ErrorForm {
    /// For a request to this path.
    #[must_use]
    pub fn of(path: &str, headers: &HeaderMap) -> Self {
        if is_grpc(headers) {
            Self::Grpc
        } else if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    /// The whole answer. What is not there, or not for POST, is a method that is not served, to clients of gRPC.
    #[must_use]
    pub fn answer(self, error: ApiError) -> Response {
        match self {
            Self::OpenAi => error.into_response(),
            Self::Anthropic => messages::failure::write(error),
            Self::Grpc => match error.status {
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                    Status::unimplemented(error.message).into_http()
                }
                _ => vllm::status(error).into_http(),
            },
        }
    }

    /// What tells of an error behind the head of an answer and its pieces, where this form has such a thing.
    #[must_use]
    pub fn trailers(self, error: &ApiError) -> Option<HeaderMap> {
        let mut trailers = HeaderMap::new();
        let status = (self == Self::Grpc).then(|| vllm::status(error.clone()))?;
        status.add_header(&mut trailers).ok()?;
        Some(trailers)
    }
}

/// Whether a request is one of gRPC (gRPC over HTTP/2, "Content-Type").
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
