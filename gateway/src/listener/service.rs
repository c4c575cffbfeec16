//! One request: caps, its id, the routes.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::Service;
use tower_service::Service as _;

use super::Common;
use super::connection::Activity;
use super::room::{long, room};
use super::stream::{Guarded, Patience};
use crate::error::ApiError;
use crate::routes::form::ErrorForm;

/// The client's id of a request, and ours when it gives none; it is on every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that a client may give.
const MAX_ID_BYTES: usize = 128;

/// The id of a request, for its handler.
#[derive(Debug, Clone)]
pub struct RequestId(pub HeaderValue);

/// Between hyper and the routes.
#[derive(Debug)]
pub struct Front {
    common: Arc<Common>,
    activity: Arc<Activity>,
}

impl Front {
    /// For the requests of one connection.
    #[must_use]
    pub fn new(common: Arc<Common>, activity: Arc<Activity>) -> Self {
        Self { common, activity }
    }
}

impl Service<Request<Incoming>> for Front {
    type Response = Response<Guarded>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let active = self.activity.begin();
        let permit = Arc::clone(&self.common.requests).try_acquire_owned();
        let form = ErrorForm::of(request.uri().path(), request.headers());
        let multiplexed = request.version() == Version::HTTP_2;
        let id = id(&request);
        request.extensions_mut().insert(RequestId(id.clone()));
        let common = Arc::clone(&self.common);
        let allowed = common
            .cors
            .as_ref()
            .and_then(|cors| cors.allow(request.headers()));
        let preflight = common.cors.as_ref().and_then(|cors| cors.preflight(&request));
        Box::pin(async move {
            let mut response = match (preflight, &permit) {
                (Some(response), _) => response,
                (None, Ok(_)) => common.router.clone().call(request).await?,
                (None, Err(_)) => form.answer(too_many()),
            };
            let limits = &common.limits;
            let mut taken = None;
            if let Some(bytes) = long(response.body()) {
                match room(bytes, &common.answers, limits.room_timeout).await {
                    Ok(room) => taken = Some(room),
                    Err(full) => response = form.answer(full),
                }
            }
            response.headers_mut().insert(REQUEST_ID, id);
            if let Some(cors) = &common.cors {
                cors.open(allowed, response.headers_mut());
            }
            let patience = Patience {
                answers: common.answers.clone(),
                stall_timeout: limits.stall_timeout,
                room_timeout: limits.room_timeout,
                form,
                multiplexed,
            };
            Ok(response.map(|body| Guarded::new(body, active, permit.ok(), taken, patience)))
        })
    }
}

fn too_many() -> ApiError {
    ApiError::unavailable(
        "too_many_requests",
        "This gateway has as many requests under way as it takes; send the request again.",
        1,
    )
}

/// What the client says if it is short and printable, else random.
fn id(request: &Request<Incoming>) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|given| {
        let bytes = given.as_bytes();
        (1..=MAX_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    if let Some(given) = given {
        return given.clone();
    }
    // Without randomness the id is useless, but the request need not fail for that here.
    let random = getrandom::u64().unwrap_or_default();
    HeaderValue::try_from(format!("req-{random:016x}")).unwrap_or(HeaderValue::from_static("req-0"))
}
