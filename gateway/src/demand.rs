//! Held and running requests per deployment. The operator subscribes to every gateway and wakes deployments by it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{Stream, stream};
use llamero_proto::v1::demand_server;
use llamero_proto::v1::{DemandRequest, DemandSample, ModelDemand};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::discovery::DeploymentKey;

/// Pauses between samples: at most ten a second, and at least one every two seconds, so that a gateway that is gone is
/// noticed.
const PACE: Pace = Pace {
    shortest: Duration::from_millis(100),
    longest: Duration::from_secs(2),
};

#[derive(Debug, Clone, Copy)]
struct Pace {
    shortest: Duration,
    longest: Duration,
}

/// Requests of one deployment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Wait because no group is ready.
    pub held: u32,
    /// Were passed on to a group and have not ended.
    pub in_flight: u32,
    /// Since the gateway started.
    pub total: u64,
}

#[derive(Debug, Default)]
struct Entry {
    counts: Counts,
    /// The deployment is gone: the entry goes when its last request has ended.
    gone: bool,
}

/// Counts of all deployments. Clones share them.
#[derive(Debug, Clone)]
pub struct Demand {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    entries: Mutex<BTreeMap<DeploymentKey, Entry>>,
    changed: watch::Sender<()>,
}

impl Default for Demand {
    fn default() -> Self {
        Self::new()
    }
}

impl Demand {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                entries: Mutex::default(),
                changed: watch::Sender::new(()),
            }),
        }
    }

    /// A request came.
    pub fn arrived(&self, key: &DeploymentKey) {
        self.inner.change(key, |counts| counts.total += 1);
    }

    /// A request starts to wait; `None` when `limit` wait already. It waits until the guard is dropped.
    #[must_use]
    pub fn hold(&self, key: &DeploymentKey, limit: u32) -> Option<Counted> {
        let mut admitted = false;
        self.inner.change(key, |counts| {
            admitted = counts.held < limit;
            counts.held += u32::from(admitted);
        });
        admitted.then(|| self.counted(key, |counts| counts.held -= 1))
    }

    /// A request runs on a group until the guard is dropped.
    #[must_use]
    pub fn run(&self, key: &DeploymentKey) -> Counted {
        self.inner.change(key, |counts| counts.in_flight += 1);
        self.counted(key, |counts| counts.in_flight -= 1)
    }

    /// The present counts.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<DeploymentKey, Counts> {
        let entries = self.inner.lock();
        entries
            .iter()
            .map(|(key, entry)| (key.clone(), entry.counts))
            .collect()
    }

    /// Forget deployments that are not among `present`, at once or when their last request has ended. Of the others it is told that nobody
    /// asks for them, so that whoever scales by it sees a zero and not nothing.
    pub fn keep(&self, present: &BTreeSet<DeploymentKey>) {
        let mut entries = self.inner.lock();
        entries.retain(|key, entry| {
            entry.gone = !present.contains(key);
            !entry.done()
        });
        for key in present {
            entries.entry(key.clone()).or_default();
        }
        drop(entries);
        self.inner.changed.send_replace(());
    }

    /// Changes of the counts.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// The present counts as a message.
    #[must_use]
    pub fn sample(&self) -> DemandSample {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let model = |(key, counts): (DeploymentKey, Counts)| ModelDemand {
            namespace: key.namespace,
            name: key.name,
            held: counts.held,
            in_flight: counts.in_flight,
            total: counts.total,
        };
        DemandSample {
            unix_millis: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX),
            models: self.counts().into_iter().map(model).collect(),
        }
    }

    fn counted(&self, key: &DeploymentKey, undo: fn(&mut Counts)) -> Counted {
        Counted {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            undo,
        }
    }
}

impl Entry {
    fn done(&self) -> bool {
        self.gone && self.counts.held == 0 && self.counts.in_flight == 0
    }
}

impl Inner {
    fn change(&self, key: &DeploymentKey, change: impl FnOnce(&mut Counts)) {
        let mut entries = self.lock();
        let entry = entries.entry(key.clone()).or_default();
        change(&mut entry.counts);
        if entry.done() {
            entries.remove(key);
        }
        drop(entries);
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeploymentKey, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counted until dropped.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<Inner>,
    key: DeploymentKey,
    undo: fn(&mut Counts),
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.inner.change(&self.key, self.undo);
    }
}

/// `llamero.v1.Demand`.
#[derive(Debug)]
pub struct DemandService {
    demand: Demand,
    stopping: CancellationToken,
}

impl DemandService {
    /// Tells `demand` until `stopping`.
    #[must_use]
    pub fn new(demand: Demand, stopping: CancellationToken) -> Self {
        Self { demand, stopping }
    }
}

#[tonic::async_trait]
impl demand_server::Demand for DemandService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<DemandSample, Status>> + Send>>;

    async fn watch(&self, _request: Request<DemandRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let samples = samples(self.demand.clone(), self.stopping.clone(), PACE);
        Ok(Response::new(Box::pin(samples)))
    }
}

fn samples(
    demand: Demand,
    stopping: CancellationToken,
    pace: Pace,
) -> impl Stream<Item = Result<DemandSample, Status>> + Send {
    let changes = demand.subscribe();
    stream::unfold(
        (demand, changes, stopping, None),
        move |(demand, mut changes, stopping, last)| async move {
            if let Some(last) = last {
                let next = async {
                    // The sender lives as long as `demand`.
                    let _ = tokio::time::timeout_at(last + pace.longest, changes.changed()).await;
                    tokio::time::sleep_until(last + pace.shortest).await;
                };
                tokio::select! {
                    () = stopping.cancelled() => return None,
                    () = next => {}
                }
            }
            changes.mark_unchanged();
            let sample = demand.sample();
            Some((Ok(sample), (demand, changes, stopping, Some(Instant::now()))))
        },
    )
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    fn key() -> DeploymentKey {
        DeploymentKey {
            namespace: "ns".to_owned(),
            name: "smol".to_owned(),
        }
    }

    #[test]
    fn guards_count_and_the_limit_holds() {
        let demand = Demand::new();
        demand.arrived(&key());
        let held = demand.hold(&key(), 1).unwrap();
        assert!(demand.hold(&key(), 1).is_none());
        let running = demand.run(&key());
        assert_eq!(
            demand.counts()[&key()],
            Counts {
                held: 1,
                in_flight: 1,
                total: 1
            }
        );
        drop((held, running));
        assert_eq!(
            demand.counts()[&key()],
            Counts {
                held: 0,
                in_flight: 0,
                total: 1
            }
        );
    }

    #[test]
    fn a_deployment_that_is_gone_is_forgotten_with_its_last_request() {
        let demand = Demand::new();
        let other = DeploymentKey {
            name: "other".to_owned(),
            ..key()
        };
        demand.arrived(&key());
        demand.arrived(&other);
        let running = demand.run(&key());
        demand.keep(&BTreeSet::new());
        assert!(demand.counts().into_keys().eq([key()]));
        drop(running);
        assert!(demand.counts().is_empty());
        demand.arrived(&key());
        demand.keep(&BTreeSet::from([key(), other.clone()]));
        assert_eq!(demand.counts()[&key()].total, 1);
        assert_eq!(demand.counts()[&other], Counts::default());
    }

    #[tokio::test]
    async fn a_sample_at_once_then_at_changes_and_never_silence() {
        let demand = Demand::new();
        let stopping = CancellationToken::new();
        // The next sample without a change is a day away.
        let pace = Pace {
            shortest: Duration::from_millis(20),
            longest: Duration::from_secs(86_400),
        };
        let mut patient = Box::pin(samples(demand.clone(), stopping.clone(), pace));
        let before = Instant::now();
        assert!(patient.next().await.unwrap().unwrap().models.is_empty());
        // Two changes make one sample, not sooner than the pace allows.
        demand.arrived(&key());
        let held = demand.hold(&key(), 9).unwrap();
        let sample = patient.next().await.unwrap().unwrap();
        assert_eq!((sample.models[0].held, sample.models[0].total), (1, 1));
        assert!(before.elapsed() >= pace.shortest);
        assert!(futures::poll!(patient.next()).is_pending());

        let pace = Pace {
            shortest: Duration::from_millis(1),
            longest: Duration::from_millis(2),
        };
        let mut chatty = Box::pin(samples(demand.clone(), stopping.clone(), pace));
        for _ in 0..3 {
            assert_eq!(chatty.next().await.unwrap().unwrap().models[0].held, 1);
        }
        drop(held);
        stopping.cancel();
        assert!(chatty.next().await.is_none());
    }
}
