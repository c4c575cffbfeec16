//! The handlers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::check::{Checked, check};
use super::order::{deployment, order};
use super::request::Reader;
use super::route::Route;
use super::{sse, whole};
use crate::Gateway;
use crate::error::ApiError;
use crate::listener::service::RequestId;
use crate::relay::Wishes;
use crate::routes::body::read_json;
use crate::routes::record::Record;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// `POST /v1/chat/completions`.
pub async fn chat(
    State(gateway): State<Arc<Gateway>>,
    id: Option<Extension<RequestId>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    respond(Route::Chat, gateway, id, &headers, body).await
}

/// `POST /v1/completions`.
pub async fn text(
    State(gateway): State<Arc<Gateway>>,
    id: Option<Extension<RequestId>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    respond(Route::Text, gateway, id, &headers, body).await
}

async fn respond(
    route: Route,
    gateway: Arc<Gateway>,
    id: Option<Extension<RequestId>>,
    headers: &HeaderMap,
    body: Body,
) -> Response {
    let patience = patience(headers);
    let wishes = Wishes {
        patience,
        request_id: id.map(|Extension(RequestId(id))| id),
    };
    let answer = complete(route, gateway, wishes, body).await;
    let mut response = answer.unwrap_or_else(ApiError::into_response);
    if let Some(patience) = patience {
        let applied = HeaderValue::try_from(format!("wait={}", patience.as_secs()));
        response
            .headers_mut()
            .extend(applied.map(|applied| (PREFERENCE_APPLIED, applied)));
    }
    response
}

async fn complete(
    route: Route,
    gateway: Arc<Gateway>,
    wishes: Wishes,
    body: Body,
) -> Result<Response, ApiError> {
    let mut record = Record::new(Arc::clone(&gateway), route.name());
    let ordered = async {
        let checked = check(route, read_json(&gateway, Reader(route), body).await?)?;
        let deployment = deployment(&gateway, &checked.model)?;
        record.model(&deployment.model);
        let Checked { stream, usage, .. } = checked;
        let (envelope, pieces) = order(&gateway, route, &deployment, checked, &wishes)?;
        Ok((stream, usage, envelope, pieces))
    };
    let ordered = ordered.await;
    let (stream, usage, envelope, pieces) = ordered.inspect_err(|error| record.failed(error))?;
    if !stream {
        return whole::whole(route, &envelope, pieces, record).await;
    }
    // An error within the first moments still has its own HTTP status; later ones come as an event.
    let settings = &gateway.settings;
    let mut pieces = Box::pin(pieces.peekable());
    let first = tokio::time::timeout(settings.first_chunk_wait, pieces.as_mut().peek());
    if let Ok(Some((_, Err(error)))) = first.await {
        let error = error.clone();
        record.failed(&error);
        return Err(error);
    }
    let writer = sse::Writer {
        route,
        envelope,
        usage,
    };
    let pieces: Pin<Box<_>> = pieces;
    Ok(sse::respond(writer, pieces, record, settings.keep_alive))
}

/// How long the client wants to wait for a group: `Prefer: wait=SECONDS` (RFC 7240). What cannot be read is ignored, as
/// that document demands.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).into_iter();
    let preferences = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']));
    preferences
        .filter_map(|preference| {
            let (name, value) = preference.split_once('=')?;
            let wait = name.trim().eq_ignore_ascii_case("wait");
            wait.then(|| value.trim().trim_matches('"').parse().ok())
                .flatten()
        })
        .map(Duration::from_secs)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_say_how_long_they_wait() {
        let wait = |value: &'static str| {
            patience(&HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]))
        };
        assert_eq!(wait("wait=5"), Some(Duration::from_secs(5)));
        assert_eq!(wait("respond-async, Wait = \"7\""), Some(Duration::from_secs(7)));
        for nothing in ["", "wait", "wait=soon", "wait=-1", "waiting=3"] {
            assert_eq!(wait(nothing), None, "{nothing}");
        }
    }
}
