//! What differs between the APIs: how a request is read and checked, and how its answers are written.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::check::{Checked, refusal};
use super::order::{Envelope, Pieces, named, order};
use super::patience::patience;
use super::request::{Reader, Take};
use super::route::Route;
use super::sse::{self, Writer};
use crate::Gateway;
use crate::error::ApiError;
use crate::keys::Caller;
use crate::listener::service::RequestId;
use crate::quota::headers::tell;
use crate::relay::Wishes;
use crate::routes::body::read_json;
use crate::routes::record::Record;
use crate::upstream::Affinity;

/// Requests with the same session go to the same group, as far as its load allows.
const SESSION: HeaderName = HeaderName::from_static("x-session-id");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// One API for answers.
pub trait Api: Copy + Send {
    /// A request as it is read.
    type Request: Take;
    /// What of the request decides how its answers are written.
    type Form: Send;
    /// Writes the answers.
    type Output: Writer;

    /// Which one.
    fn route(&self) -> Route;

    /// Check everything that can be checked without the model.
    ///
    /// # Errors
    /// 400 naming the parameter.
    fn check(&self, request: Self::Request) -> Result<(Checked, Self::Form), ApiError>;

    /// A writer for the answers to one request.
    fn output(&self, form: Self::Form, envelope: Envelope) -> Self::Output;
}

/// What comes with a request beside its body.
#[derive(Debug)]
pub struct Front {
    /// The gateway.
    pub gateway: Arc<Gateway>,
    /// Who asks.
    pub caller: Caller,
    /// How long the client waits, and its own id of the request.
    pub wishes: Wishes,
}

impl FromRequestParts<Arc<Gateway>> for Front {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Infallible> {
        let id = parts.extensions.get::<RequestId>();
        Ok(Self {
            gateway: Arc::clone(gateway),
            caller: parts.extensions.get().cloned().unwrap_or_default(),
            wishes: Wishes {
                patience: patience(&parts.headers),
                request_id: id.map(|RequestId(id)| id.clone()),
                session: parts
                    .headers
                    .get(SESSION)
                    .and_then(|name| name.to_str().ok())
                    .map(Affinity::of_session),
            },
        })
    }
}

/// Answer a request.
pub async fn respond<A: Api>(api: A, front: Front, body: Body) -> Response {
    let patience = front.wishes.patience;
    let answer = complete(api, front, body).await;
    let mut response = answer.unwrap_or_else(ApiError::into_response);
    if let Some(patience) = patience {
        let applied = HeaderValue::try_from(format!("wait={}", patience.as_secs()));
        response
            .headers_mut()
            .extend(applied.map(|applied| (PREFERENCE_APPLIED, applied)));
    }
    response
}

async fn complete<A: Api>(api: A, front: Front, body: Body) -> Result<Response, ApiError> {
    let Front {
        gateway,
        caller,
        wishes,
    } = front;
    let route = api.route();
    let scope = caller.scope().clone();
    let mut record = Record::new(Arc::clone(&gateway), route.name(), caller);
    let ordered = async {
        let mut request = read_json(&gateway, Reader::<A::Request>::new(route), body).await?;
        if let Some((field, instead)) = *request.refused() {
            return Err(refusal(field, instead));
        }
        let (checked, form) = api.check(request)?;
        let (deployment, adapter) = named(&gateway, &scope, &checked.model)?;
        record.model(&deployment.model);
        record.admit(checked.likely_tokens()).await?;
        let stream = checked.stream;
        let (envelope, pieces) = order(&gateway, route, (&deployment, adapter), checked, &wishes)?;
        record.expect(&envelope);
        Ok((stream, api.output(form, envelope), pieces))
    };
    let ordered = ordered.await;
    let (stream, output, pieces) = ordered.inspect_err(|error| record.failed(error))?;
    let limits = record.limits();
    let answer = if stream {
        stream_answer(&gateway, output, pieces, record).await
    } else {
        whole(output, pieces, record).await
    };
    let mut response = answer.unwrap_or_else(ApiError::into_response);
    if let Some(limits) = limits {
        tell(response.headers_mut(), &limits);
    }
    Ok(response)
}

/// An error within the first moments still has its own HTTP status; later ones come as an event.
async fn stream_answer(
    gateway: &Gateway,
    output: impl Writer,
    pieces: Pieces,
    mut record: Record,
) -> Result<Response, ApiError> {
    let settings = &gateway.settings;
    let mut pieces = Box::pin(pieces.peekable());
    let first = tokio::time::timeout(settings.first_chunk_wait, pieces.as_mut().peek());
    if let Ok(Some((_, Err(error)))) = first.await {
        let error = error.clone();
        record.failed(&error);
        return Err(error);
    }
    let pieces: Pin<Box<_>> = pieces;
    Ok(sse::respond(output, pieces, record, settings.keep_alive))
}

/// Wait for all answers. The first that fails fails the request; the others are cancelled then.
async fn whole(
    mut output: impl Writer,
    mut pieces: Pieces,
    mut record: Record,
) -> Result<Response, ApiError> {
    let mut open = record.expected();
    while let Some((index, piece)) = pieces.next().await {
        let delta = piece.inspect_err(|error| record.failed(error))?;
        record.count(index, &delta);
        open -= usize::from(delta.end.is_some());
        output.add(index, delta, record.usage_of(index));
    }
    if open > 0 {
        let error = sse::early();
        record.failed(&error);
        return Err(error);
    }
    record.answered();
    Ok(output.whole(record.usage()))
}
