//! `/livez`, `/readyz` and `/metrics`.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use llamero_settings::listen::listen;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, time::Instant};

/// What the probes ask. Readiness is not tied to the lease: a standby is as ready as it can be, and a rollout that waited for every
/// replica to lead would never end.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    synced: AtomicBool,
    // Milliseconds after `started` at which the pass under way began; 0 between passes.
    pass_began: AtomicU64,
    // Why no certificates can be given out, where somebody must do something about it.
    unenrollable: Mutex<Option<String>>,
}

/// A pass that takes longer than this hangs: every request in it has a time limit of its own.
const PASS_LIMIT: Duration = Duration::from_secs(300);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Inner {
            started: Instant::now(),
            synced: AtomicBool::new(false),
            pass_began: AtomicU64::new(0),
            unenrollable: Mutex::default(),
        }))
    }
}

impl Health {
    /// The caches are filled.
    pub fn set_synced(&self) {
        self.0.synced.store(true, Ordering::Release);
    }

    /// A pass begins.
    pub fn pass_begins(&self) {
        self.0.pass_began.store(self.millis().max(1), Ordering::Release);
    }

    /// A pass has ended.
    pub fn pass_ended(&self) {
        self.0.pass_began.store(0, Ordering::Release);
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn alive(&self) -> bool {
        let began = self.0.pass_began.load(Ordering::Acquire);
        began == 0
            || self.millis().saturating_sub(began) < u64::try_from(PASS_LIMIT.as_millis()).unwrap_or(u64::MAX)
    }

    /// Why no certificates can be given out; nothing where they can, or where nobody need do anything.
    pub fn set_unenrollable(&self, why: Option<String>) {
        *self.0.unenrollable.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why it is not ready.
    fn not_ready(&self) -> Option<String> {
        if !self.0.synced.load(Ordering::Acquire) {
            return Some("the caches are not filled yet".to_owned());
        }
        let why = self.0.unenrollable.lock().unwrap_or_else(PoisonError::into_inner);
        why.as_ref().map(|why| {
            format!("no certificates can be given out, while groups with links in plain text go on: {why}")
        })
    }
}

/// Serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    health: Health,
    registry: Registry,
    stop: tokio_util::sync::CancellationToken,
) -> std::io::Result<()> {
    let listener = listen(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    axum::serve(listener, router(health, Arc::new(registry)))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn router(health: Health, registry: Arc<Registry>) -> Router {
    let probe = |problem: Option<String>| match problem {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    };
    Router::new()
        .route(
            "/livez",
            get(move |State(health): State<Health>| async move {
                let hangs = || "a reconcile pass hangs".to_owned();
                probe((!health.alive()).then(hangs))
            }),
        )
        .route(
            "/readyz",
            get(move |State(health): State<Health>| async move { probe(health.not_ready()) }),
        )
        .with_state(health)
        .route("/metrics", get(metrics).with_state(registry))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hanging_pass_is_not_alive_and_an_idle_loop_is() {
        let health = Health::default();
        assert!(health.alive() && health.not_ready().is_some());
        tokio::time::advance(PASS_LIMIT * 2).await;
        assert!(health.alive());
        health.pass_begins();
        assert!(health.alive());
        tokio::time::advance(PASS_LIMIT).await;
        assert!(!health.alive());
        health.pass_ended();
        assert!(health.alive());
        health.set_synced();
        assert_eq!(health.not_ready(), None);
    }

    #[test]
    fn an_authority_that_cannot_be_used_is_told_and_stops_no_pass() {
        let health = Health::default();
        health.set_synced();
        health.set_unenrollable(Some("tls.crt is not valid any more".to_owned()));
        assert!(health.alive());
        assert!(
            health
                .not_ready()
                .is_some_and(|why| why.ends_with("tls.crt is not valid any more"))
        );
        health.set_unenrollable(None);
        assert_eq!(health.not_ready(), None);
    }
}
