//! Bounds on the messages that clients send: those of JSON bodies in size, memory and time.
//!
//! A message is read before the service sees it: gRPC would make room for as many bytes as its prefix announces, before any has come.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::{BodyExt as _, Full};

use super::status;
use crate::Gateway;
use crate::budget::Share;
use crate::error::ApiError;
use crate::routes::body;
use crate::routes::form::is_grpc;

/// Bytes before a message: whether it is compressed, and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;
/// How messages are compressed.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// Largest request of `vllm.Control`: ids of requests to abort.
pub(super) const MAX_CONTROL_BYTES: usize = 64 << 10;

/// Read the message of a call, within the bounds of all bodies. Reflection has a stream of messages, each bounded by itself.
pub(super) async fn receive(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let limit = if path.starts_with("/vllm.Inference/") {
        gateway.settings.body_limit
    } else if path.starts_with("/vllm.Control/") {
        MAX_CONTROL_BYTES
    } else {
        return next.run(request).await;
    };
    let (head, body) = request.into_parts();
    match message(&gateway, &head.headers, body, limit).await {
        Ok(body) => next.run(Request::from_parts(head, body)).await,
        Err(error) => status(error).into_http(),
    }
}

async fn message(gateway: &Gateway, headers: &HeaderMap, body: Body, limit: usize) -> Result<Body, ApiError> {
    let (bytes, share) = body::read_within(gateway, body, limit, PREFIX).await?;
    // Others, and messages that are compressed, are refused by the service itself.
    if is_grpc(headers) && !headers.contains_key(ENCODING) {
        check(&bytes)?;
    }
    Ok(sharing(bytes.into(), share))
}

/// Whether this is one message behind its prefix: without this the client would be told of an internal error.
fn check(bytes: &[u8]) -> Result<(), ApiError> {
    if let [0, a, b, c, d, message @ ..] = bytes
        && usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])) == Ok(message.len())
    {
        return Ok(());
    }
    let wrong = "The body is not one message behind its prefix of five bytes: 0, since it is not compressed, and its length.";
    Err(ApiError::invalid(None, wrong))
}

/// A body that gives its share back when whoever decodes it drops it.
fn sharing(bytes: Bytes, share: Share) -> Body {
    Body::new(Full::new(bytes).map_frame(move |frame| {
        let _kept = &share;
        frame
    }))
}
