//! Leader election over one `coordination.k8s.io/v1` Lease.
//!
//! The decisions are the pure [`next_step`]; [`hold`] carries them out. Clocks of different machines are never compared: a lease has
//! expired when *we* have seen it unchanged for its whole duration. Writes carry the `resourceVersion` they are based on, so of two
//! candidates only one gets through, and a holder that was replaced learns so at its next renewal. [`Leadership`] tells the writer
//! whether it may still write; it turns false before any other replica can take over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

/// Who holds which lease, for how long.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// This process.
    pub identity: String,
    /// How long the others wait without a renewal before they take over.
    pub duration: Duration,
}

impl LeaseConfig {
    /// A holder that could not renew for this long stops writing: well before the others take over.
    #[must_use]
    pub fn renew_deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// One request that hangs, for example on a connection to an API server that went, leaves time for another.
    fn attempt_limit(&self) -> Duration {
        (self.duration / 3).max(self.renew_deadline().min(Duration::from_secs(2)))
    }

    fn retry(&self) -> Duration {
        self.duration / 6
    }
}

/// Why leadership ended.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another replica has it.
    #[error("the leader lease {namespace}/{name} was taken over by {holder}; this process stops")]
    TakenOver {
        /// Namespace of the lease.
        namespace: String,
        /// Name of the lease.
        name: String,
        /// The new holder.
        holder: String,
    },
    /// The API server could not be reached in time.
    #[error(
        "the leader lease {namespace}/{name} could not be renewed in time; this process stops, and starts again as a candidate"
    )]
    RenewalTimedOut {
        /// Namespace of the lease.
        namespace: String,
        /// Name of the lease.
        name: String,
    },
}

/// Whether this process may write.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// True while the lease is surely ours.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Leadership without a lease.
    #[cfg(test)]
    pub(crate) fn held_for_tests() -> Self {
        let (_, held) = watch::channel(Some(Instant::now() + Duration::from_secs(3600)));
        Self(held)
    }

    /// The lease is somebody else's.
    #[cfg(test)]
    pub(crate) fn not_held_for_tests() -> Self {
        let (_, held) = watch::channel(None);
        Self(held)
    }

    /// Returns when the lease is ours. Never returns if it never is.
    pub async fn acquired(&mut self) {
        while !self.is_held() {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What a candidate has seen of the lease: the record and since when it has been so.
#[derive(Clone, Debug)]
struct Seen {
    resource_version: Option<String>,
    since: Instant,
}

/// What to do with the lease now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Renew,
    Acquire,
    Wait,
}

/// Decides from the record, the time we have seen it unchanged for, and our name.
fn next_step(spec: Option<&LeaseSpec>, unchanged_for: Duration, identity: &str) -> Step {
    let holder = spec
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or("");
    let duration = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
    let duration = Duration::from_secs(u64::try_from(duration).unwrap_or(0));
    if holder == identity {
        Step::Renew
    } else if holder.is_empty() || unchanged_for >= duration {
        Step::Acquire
    } else {
        Step::Wait
    }
}

/// The record after the step.
fn next_spec(old: Option<&LeaseSpec>, step: Step, config: &LeaseConfig, now: Timestamp) -> LeaseSpec {
    let renewed = step == Step::Renew;
    LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: i32::try_from(config.duration.as_secs()).ok(),
        acquire_time: old
            .filter(|_| renewed)
            .and_then(|old| old.acquire_time.clone())
            .or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(old.map_or(0, |old| {
            old.lease_transitions
                .unwrap_or(0)
                .saturating_add(i32::from(!renewed))
        })),
        ..LeaseSpec::default()
    }
}

/// Starts as a candidate; the future ends when leadership, once won, is lost. It ends with `Ok` after `stop`, having given the lease back.
pub fn hold(
    client: Client,
    config: LeaseConfig,
    stop: tokio_util::sync::CancellationToken,
) -> (
    Leadership,
    impl Future<Output = Result<(), LeaseError>> + Send + 'static,
) {
    let (sender, receiver) = watch::channel(None);
    let api = Api::<Lease>::namespaced(client, &config.namespace);
    let elector = Elector {
        api,
        config,
        held_until: sender,
        last: Arc::default(),
    };
    (Leadership(receiver), elector.run(stop))
}

struct Elector {
    api: Api<Lease>,
    config: LeaseConfig,
    held_until: watch::Sender<Option<Instant>>,
    // The lease as we wrote it last, to release it.
    last: Arc<Mutex<Option<Lease>>>,
}

impl Elector {
    async fn run(self, stop: tokio_util::sync::CancellationToken) -> Result<(), LeaseError> {
        let mut seen = Seen {
            resource_version: None,
            since: Instant::now(),
        };
        let mut held_until: Option<Instant> = None;
        loop {
            let started = Instant::now();
            let outcome = tokio::select! {
                outcome = tokio::time::timeout(self.config.attempt_limit(), self.attempt(&mut seen)) => outcome,
                () = stop.cancelled() => break,
            };
            match outcome {
                Ok(Ok(Step::Wait)) if held_until.is_some() => return Err(self.lost().await),
                Ok(Ok(Step::Wait)) => {}
                Ok(Ok(Step::Renew | Step::Acquire)) => {
                    if held_until.is_none() {
                        info!(lease = %self.config.name, identity = %self.config.identity, "leading");
                    }
                    // From before the request was sent: the record cannot be older than that.
                    held_until = Some(started + self.config.renew_deadline());
                    self.held_until.send_replace(held_until);
                }
                Ok(Err(error)) => warn!(%error, "cannot read or write the leader lease; trying again"),
                Err(_) => warn!("the API server did not answer about the leader lease in time"),
            }
            if held_until.is_some_and(|until| until <= Instant::now()) {
                self.held_until.send_replace(None);
                return Err(LeaseError::RenewalTimedOut {
                    namespace: self.config.namespace.clone(),
                    name: self.config.name.clone(),
                });
            }
            let pause = started + self.config.retry();
            let pause = held_until.map_or(pause, |until| pause.min(until));
            tokio::select! {
                () = tokio::time::sleep_until(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        self.held_until.send_replace(None);
        if held_until.is_some() {
            self.release().await;
        }
        Ok(())
    }

    /// One look at the lease and, where due, one write.
    async fn attempt(&self, seen: &mut Seen) -> kube::Result<Step> {
        let Some(lease) = self.api.get_opt(&self.config.name).await? else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(self.config.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(next_spec(None, Step::Acquire, &self.config, Timestamp::now())),
            };
            let written = self.api.create(&PostParams::default(), &fresh).await?;
            self.remember(written);
            return Ok(Step::Acquire);
        };
        if seen.resource_version != lease.metadata.resource_version {
            *seen = Seen {
                resource_version: lease.metadata.resource_version.clone(),
                since: Instant::now(),
            };
        }
        let step = next_step(lease.spec.as_ref(), seen.since.elapsed(), &self.config.identity);
        if step == Step::Wait {
            return Ok(step);
        }
        let spec = next_spec(lease.spec.as_ref(), step, &self.config, Timestamp::now());
        let written = self
            .api
            .replace(
                &self.config.name,
                &PostParams::default(),
                &Lease {
                    spec: Some(spec),
                    ..lease
                },
            )
            .await?;
        self.remember(written);
        Ok(step)
    }

    fn remember(&self, lease: Lease) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
    }

    async fn lost(&self) -> LeaseError {
        self.held_until.send_replace(None);
        let holder = self.api.get_opt(&self.config.name).await.ok().flatten();
        let holder = holder
            .and_then(|lease| lease.spec)
            .and_then(|spec| spec.holder_identity);
        LeaseError::TakenOver {
            namespace: self.config.namespace.clone(),
            name: self.config.name.clone(),
            holder: holder.unwrap_or_else(|| "another replica".to_owned()),
        }
    }

    /// Gives the lease back so that a standby need not wait for it to expire.
    async fn release(&self) {
        let Some(mut lease) = self.last.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            spec.acquire_time = None;
        }
        let params = PostParams::default();
        let write = self.api.replace(&self.config.name, &params, &lease);
        match tokio::time::timeout(Duration::from_secs(2), write).await {
            Ok(Ok(_)) => info!("leader lease given back"),
            Ok(Err(error)) => warn!(%error, "could not give the leader lease back; it expires by itself"),
            Err(_) => warn!("could not give the leader lease back in time; it expires by itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LeaseConfig {
        LeaseConfig {
            namespace: "system".to_owned(),
            name: "operator".to_owned(),
            identity: "a".to_owned(),
            duration: Duration::from_secs(15),
        }
    }

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn the_holder_renews_and_others_wait_out_the_whole_duration() {
        let seconds = Duration::from_secs;
        assert_eq!(next_step(Some(&held_by("a")), seconds(100), "a"), Step::Renew);
        assert_eq!(next_step(Some(&held_by("b")), seconds(14), "a"), Step::Wait);
        assert_eq!(next_step(Some(&held_by("b")), seconds(15), "a"), Step::Acquire);
        assert_eq!(next_step(Some(&held_by("")), seconds(0), "a"), Step::Acquire);
        assert_eq!(next_step(None, seconds(0), "a"), Step::Acquire);
    }

    #[test]
    fn taking_over_counts_a_transition_and_renewing_does_not() {
        let now = Timestamp::from_second(1000).unwrap();
        let renewed = next_spec(Some(&held_by("a")), Step::Renew, &config(), now);
        assert_eq!(renewed.lease_transitions, Some(3));
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        let taken = next_spec(Some(&held_by("b")), Step::Acquire, &config(), now);
        assert_eq!(taken.lease_transitions, Some(4));
        assert_eq!(taken.acquire_time, Some(MicroTime(now)));
        assert_eq!(taken.holder_identity.as_deref(), Some("a"));
    }

    #[test]
    fn a_holder_stops_writing_before_others_may_start() {
        assert!(config().renew_deadline() < config().duration);
        assert!(config().attempt_limit() + config().retry() < config().renew_deadline());
    }

    #[tokio::test(start_paused = true)]
    async fn leadership_ends_by_itself_without_renewal() {
        let (sender, receiver) = watch::channel(None);
        let leadership = Leadership(receiver);
        assert!(!leadership.is_held());
        sender.send_replace(Some(Instant::now() + Duration::from_secs(10)));
        assert!(leadership.is_held());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!leadership.is_held());
    }
}
