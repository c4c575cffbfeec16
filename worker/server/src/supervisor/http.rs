//! Plain HTTP for the kubelet and Prometheus: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::watch;

use super::metrics;
use super::pod::Pod;

type PodState = State<Arc<watch::Sender<Pod>>>;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The routes.
pub fn routes(pod: Arc<watch::Sender<Pod>>) -> Router {
    Router::new()
        // The kubelet restarts a pod that is not live: a stuck rank must not cost its peers their weights, so this
        // only says that the supervisor runs.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(pod)
}

async fn readyz(State(pod): PodState) -> (StatusCode, String) {
    match pod.borrow().ready(Instant::now()) {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn scrape(State(pod): PodState) -> Response {
    let rendered = metrics::render(&pod.borrow(), Instant::now());
    match rendered {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
