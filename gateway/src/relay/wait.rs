//! Waiting for a leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::Gateway;
use crate::discovery::{DeploymentKey, Snapshot};
use crate::error::ApiError;
use crate::upstream::{Leader, Pick, pick};

/// Seconds after which a client that was turned away may come again.
const RETRY_AFTER: u64 = 10;

/// The clocks of one request.
#[derive(Debug)]
pub struct Waiting {
    key: DeploymentKey,
    directory: watch::Receiver<Arc<Snapshot>>,
    arrived: Instant,
    /// Since when no leader makes progress with the request.
    stalled: Option<Instant>,
}

impl Waiting {
    /// A request that has just arrived.
    #[must_use]
    pub fn new(gateway: &Gateway, key: DeploymentKey) -> Self {
        Self {
            key,
            directory: gateway.directory.subscribe(),
            arrived: Instant::now(),
            stalled: None,
        }
    }

    /// Which deployment is to answer.
    #[must_use]
    pub fn key(&self) -> &DeploymentKey {
        &self.key
    }

    /// A leader failed the request.
    pub fn stalled(&mut self) {
        self.stalled.get_or_insert_with(Instant::now);
    }

    /// A leader delivered.
    pub fn progressed(&mut self) {
        self.stalled = None;
    }

    /// The leader to try next. `begun` tells that part of the answer has been sent.
    ///
    /// # Errors
    /// 404 when the deployment is gone; 503 when no group can be ready, too many requests wait already, time is up, or
    /// the gateway stops.
    pub async fn leader(&mut self, gateway: &Gateway, begun: bool) -> Result<Arc<Leader>, ApiError> {
        let settings = &gateway.settings;
        let mut held = None;
        loop {
            let snapshot = self.directory.borrow_and_update().clone();
            let Some(deployment) = snapshot.get(&self.key) else {
                return Err(ApiError::unavailable(
                    "deployment_deleted",
                    "The model's deployment was deleted.",
                    RETRY_AFTER,
                ));
            };
            let now = Instant::now();
            let (wake, deadline) = match pick(&deployment.leaders, now) {
                Pick::Leader(leader) => return Ok(leader),
                Pick::RetryAt(at) => {
                    held = None;
                    (
                        Some(at),
                        self.stalled.unwrap_or(now) + settings.continuation_timeout,
                    )
                }
                Pick::None => {
                    if let (Some(problem), false) = (&deployment.problem, begun) {
                        return Err(ApiError::unavailable("deployment_not_served", problem, 60));
                    }
                    if held.is_none() {
                        let limit = if begun { u32::MAX } else { settings.hold_limit };
                        held = Some(
                            gateway
                                .demand
                                .hold(&self.key, limit)
                                .ok_or_else(|| too_many(limit))?,
                        );
                    }
                    let deadline = if begun {
                        self.stalled.unwrap_or(now) + settings.continuation_timeout
                    } else {
                        self.arrived + settings.hold_timeout
                    };
                    (None, deadline)
                }
            };
            if now >= deadline {
                return Err(self.timed_out(gateway, begun || wake.is_some()));
            }
            let until = wake.map_or(deadline, |wake| wake.min(deadline));
            tokio::select! {
                changed = self.directory.changed() => changed.map_err(|_| stopping())?,
                () = tokio::time::sleep_until(until) => {}
                () = gateway.stopping.cancelled(), if !begun => return Err(stopping()),
            }
        }
    }

    fn timed_out(&self, gateway: &Gateway, unreachable: bool) -> ApiError {
        let DeploymentKey { namespace, name } = &self.key;
        let look = format!("see: kubectl -n {namespace} get llamadeployment {name}");
        let settings = &gateway.settings;
        if unreachable {
            let seconds = Duration::as_secs(&settings.continuation_timeout);
            let message =
                format!("No group of the model could take or go on with the request for {seconds} s; {look}");
            ApiError::unavailable("no_group_reachable", message, RETRY_AFTER)
        } else {
            let seconds = Duration::as_secs(&settings.hold_timeout);
            let message = format!("No group of the model became ready within {seconds} s; {look}");
            ApiError::unavailable("no_group_ready", message, RETRY_AFTER)
        }
    }
}

fn too_many(limit: u32) -> ApiError {
    let message = format!("{limit} requests wait for a group of this model already; try again later.");
    ApiError::unavailable("too_many_waiting", message, RETRY_AFTER)
}

fn stopping() -> ApiError {
    ApiError::unavailable(
        "gateway_stopping",
        "This gateway is being stopped; send the request again.",
        1,
    )
}
