//! A small chat page at `/`, for people who try the gateway. It uses the API as any other client does.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// The page loads nothing from elsewhere, talks to nobody else, runs no script but its own, and stands in no frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");

/// The page and its two files.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let html = async || file("text/html; charset=utf-8", include_str!("index.html"));
    let script = async || file("text/javascript; charset=utf-8", include_str!("page.js"));
    let style = async || file("text/css; charset=utf-8", include_str!("page.css"));
    Router::new()
        .route("/", get(html))
        .route("/page.js", get(script))
        .route("/page.css", get(style))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // A new gateway brings a new page.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}
