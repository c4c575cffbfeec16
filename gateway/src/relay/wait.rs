//! Waiting for a leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::Gateway;
use crate::budget::Share;
use crate::demand::Counted;
use crate::discovery::{Deployment, DeploymentKey, Snapshot};
use crate::error::ApiError;
use crate::upstream::{Draw, Leader, Pick, Refusal, Refusals, pick_share};

/// Seconds after which a client that was turned away may come again.
const RETRY_AFTER: u64 = 10;
/// What a request that waits costs beside its own bytes: connection, task, headers.
const REQUEST_OVERHEAD: usize = 16 << 10;

/// The clocks of one request.
#[derive(Debug)]
pub struct Waiting {
    key: DeploymentKey,
    directory: watch::Receiver<Arc<Snapshot>>,
    arrived: Instant,
    /// How long the request waits for a group before its answer has begun.
    patience: Duration,
    /// Memory that the request takes until a leader has taken it.
    bytes: usize,
    /// That memory, from when it first asked for a leader.
    memory: Option<Share>,
    refusals: Refusals,
    /// Whether it is for a canary.
    draw: Draw,
    /// Since when no leader makes progress with the request.
    stalled: Option<Instant>,
}

impl Waiting {
    /// A request of so many bytes that has just arrived. It waits as long as its client wants, but no longer than the
    /// settings allow.
    #[must_use]
    pub fn new(gateway: &Gateway, key: DeploymentKey, bytes: usize, patience: Option<Duration>) -> Self {
        let most = gateway.settings.hold_timeout;
        Self {
            key,
            directory: gateway.directory.subscribe(),
            arrived: Instant::now(),
            patience: patience.map_or(most, |patience| patience.min(most)),
            bytes: bytes.saturating_add(REQUEST_OVERHEAD),
            memory: None,
            refusals: Refusals::default(),
            draw: Draw::next(),
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

    /// A leader cannot take this request.
    pub fn refused(&mut self, leader: &Arc<Leader>, refusal: Refusal) {
        self.refusals.add(leader, refusal);
        self.stalled();
    }

    /// A leader has taken the request: how many it takes is its own to bound.
    pub fn accepted(&mut self) {
        self.memory = None;
    }

    /// A leader delivered.
    pub fn progressed(&mut self) {
        self.stalled = None;
    }

    /// The leader to try next. `begun` tells that part of the answer has been sent.
    ///
    /// # Errors
    /// 429 when all queues are full; 503 when the deployment is gone, no group can be ready, too many requests wait
    /// already, time is up, or the gateway stops.
    pub async fn leader(&mut self, gateway: &Gateway, begun: bool) -> Result<Arc<Leader>, ApiError> {
        // Also where a leader is at hand: until it has taken the request, which may be a while, the request is here only.
        self.reserve(gateway, begun)?;
        let mut counted = None;
        loop {
            let snapshot = self.directory.borrow_and_update().clone();
            let deployment = snapshot.get(&self.key).ok_or_else(deleted)?;
            let now = Instant::now();
            let wake = match pick_share(deployment, self.draw, &self.refusals, now) {
                Pick::Leader(leader) => return Ok(leader),
                Pick::RetryAt(at) => {
                    if let (Some(room), false) = (self.refusals.room_at(now), begun) {
                        return Err(busy(room.duration_since(now)));
                    }
                    counted = None;
                    Some(at)
                }
                Pick::None => None,
            };
            if wake.is_none() {
                self.hold(gateway, deployment, &mut counted, begun)?;
            }
            let deadline = self.deadline(gateway, now, begun, wake.is_some());
            if now >= deadline {
                return Err(self.timed_out(gateway, begun, wake.is_some()));
            }
            let until = wake.map_or(deadline, |wake| wake.min(deadline));
            tokio::select! {
                changed = self.directory.changed() => changed.map_err(|_| stopping())?,
                () = tokio::time::sleep_until(until) => {}
                () = gateway.stopping.cancelled(), if !begun => return Err(stopping()),
            }
        }
    }

    /// Take the request's memory. One whose answer has begun is never turned away for want of room.
    fn reserve(&mut self, gateway: &Gateway, begun: bool) -> Result<(), ApiError> {
        if !begun && self.memory.is_none() {
            let share = gateway.held_bytes.take(self.bytes);
            self.memory = Some(share.ok_or_else(|| full(gateway.held_bytes.limit()))?);
        }
        Ok(())
    }

    /// Count the request as waiting for a group that there is not yet.
    fn hold(
        &self,
        gateway: &Gateway,
        deployment: &Deployment,
        held: &mut Option<Counted>,
        begun: bool,
    ) -> Result<(), ApiError> {
        if let (Some(problem), false) = (&deployment.problem, begun) {
            return Err(ApiError::unavailable("deployment_not_served", problem, 60));
        }
        if held.is_none() {
            let limit = if begun {
                u32::MAX
            } else {
                gateway.settings.hold_limit
            };
            let counted = gateway.demand.hold(&self.key, limit);
            *held = Some(counted.ok_or_else(|| too_many(limit))?);
        }
        Ok(())
    }

    fn deadline(&self, gateway: &Gateway, now: Instant, begun: bool, reachable_later: bool) -> Instant {
        let stalled = self.stalled.unwrap_or(now) + gateway.settings.continuation_timeout;
        let patience = self.arrived + self.patience;
        match (begun, reachable_later) {
            (true, _) => stalled,
            (false, true) => stalled.min(patience),
            (false, false) => patience,
        }
    }

    fn timed_out(&self, gateway: &Gateway, begun: bool, reachable_later: bool) -> ApiError {
        let DeploymentKey { namespace, name } = &self.key;
        let look = format!("see: kubectl -n {namespace} get llamadeployment {name}");
        let stalled = gateway.settings.continuation_timeout.as_secs();
        if begun && self.refusals.other_weights() {
            let message = format!(
                "The group that began this answer is gone, and no group with the same weights went on with it within {stalled} s; {look}"
            );
            return ApiError::unavailable("other_weights", message, RETRY_AFTER);
        }
        if begun || reachable_later {
            let seconds = stalled.min(if begun { stalled } else { self.patience.as_secs() });
            let message =
                format!("No group of the model could take or go on with the request for {seconds} s; {look}");
            return ApiError::unavailable("no_group_reachable", message, RETRY_AFTER);
        }
        let seconds = self.patience.as_secs();
        let message = format!("No group of the model became ready within {seconds} s; {look}");
        ApiError::unavailable("no_group_ready", message, RETRY_AFTER)
    }
}

fn deleted() -> ApiError {
    ApiError::unavailable(
        "deployment_deleted",
        "The model's deployment was deleted.",
        RETRY_AFTER,
    )
}

fn busy(wait: Duration) -> ApiError {
    // Rounded up: a client that comes a little early is turned away again.
    let seconds = u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX);
    ApiError::busy(
        "The queues of all groups of the model are full; send the request again later.",
        seconds.max(1),
    )
}

fn too_many(limit: u32) -> ApiError {
    let message = format!("{limit} requests wait for a group of this model already; try again later.");
    ApiError::unavailable("too_many_waiting", message, RETRY_AFTER)
}

fn full(limit: usize) -> ApiError {
    let message = format!(
        "Requests that no group has taken yet already fill the {limit} bytes set aside for them; try again later."
    );
    ApiError::unavailable("too_many_waiting", message, RETRY_AFTER)
}

fn stopping() -> ApiError {
    ApiError::unavailable(
        "gateway_stopping",
        "This gateway is being stopped; send the request again.",
        1,
    )
}
