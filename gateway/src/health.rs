//! Liveness, readiness and metrics over HTTP, on a port of their own.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::Gateway;

/// `/livez`, `/readyz` and `/metrics`.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(gateway)
}

async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let dialler = gateway.settings.dialler.as_ref();
    let warning = dialler.and_then(|dialler| dialler.warning(SystemTime::now()));
    match gateway.not_ready() {
        None => warning
            .map_or("ok\n".to_owned(), |warning| format!("ok, but {warning}\n"))
            .into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let dialler = gateway.settings.dialler.as_ref();
    let certificate_end = dialler.and_then(|dialler| dialler.ends());
    match gateway.metrics.render(&gateway.demand, certificate_end) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
