//! What all requests share.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use llamero_identity::connect::Link;
use llamero_settings::limits::MAX_REQUEST_BYTES;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::demand::Demand;
use crate::discovery::{DeploymentKey, Directory, Found};
use crate::keys::KeyStore;
use crate::listener::{Cors, Limits, LongAnswers};
use crate::metrics::Metrics;
use crate::quota::Quotas;
use crate::upstream::dialler::Dialler;

/// See [`keep_freed_memory`].
const KEPT_BYTES: usize = 2 << 20;

/// How the gateway behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a request waits for a group of a deployment that has none ready.
    pub hold_timeout: Duration,
    /// Most requests that wait so, per deployment.
    pub hold_limit: u32,
    /// Bytes of all requests that wait for a leader, over all deployments.
    pub hold_bytes: usize,
    /// Bytes of all requests whose answers are under way, over all deployments.
    pub carried_bytes: usize,
    /// How long a request that lost its leader, or could not reach any, may stand still before it fails.
    pub continuation_timeout: Duration,
    /// Largest request body in bytes.
    pub body_limit: usize,
    /// Bytes of all bodies that are being read.
    pub body_bytes: usize,
    /// Bytes of all long answers that are being sent.
    pub answer_bytes: usize,
    /// Bytes of those that wait for room among them.
    pub waiting_answer_bytes: usize,
    /// Bounds of the listener.
    pub limits: Limits,
    /// How long a streaming request waits for the first sign of an answer before it gets its headers; within this time
    /// errors still have their own HTTP status.
    pub first_chunk_wait: Duration,
    /// Time between the empty pieces that keep a silent stream open.
    pub keep_alive: Duration,
    /// Pages of other origins that may use the API from a browser; absent: none.
    pub cors: Option<Cors>,
    /// Who may ask; absent: everybody.
    pub keys: Option<Arc<KeyStore>>,
    /// How links to leaders and other gateways are authenticated; absent: all are plain text.
    pub dialler: Option<Dialler>,
    /// How long a request waits for the gateway that keeps its key's books, before its own share of the limits holds here.
    pub quota_patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hold_timeout: Duration::from_secs(600),
            hold_limit: 1000,
            hold_bytes: 128 << 20,
            carried_bytes: 128 << 20,
            continuation_timeout: Duration::from_secs(120),
            body_limit: MAX_REQUEST_BYTES,
            body_bytes: 128 << 20,
            answer_bytes: 64 << 20,
            waiting_answer_bytes: 32 << 20,
            limits: Limits::default(),
            first_chunk_wait: Duration::from_secs(2),
            keep_alive: Duration::from_secs(10),
            cors: None,
            keys: None,
            dialler: None,
            quota_patience: Duration::from_millis(500),
        }
    }
}

/// The gateway's state; cheap to clone through the `Arc`.
#[derive(Debug)]
pub struct Gateway {
    /// How it behaves.
    pub settings: Settings,
    /// Which deployments and leaders there are.
    pub directory: Directory,
    /// Who waits for what.
    pub demand: Demand,
    /// Memory of requests that wait for a leader.
    pub held_bytes: Budget,
    /// Memory of requests whose answers are under way.
    pub carried_bytes: Budget,
    /// Memory of bodies that are being read.
    pub body_bytes: Budget,
    /// Memory of long answers that are being sent, or wait for that.
    pub answer_bytes: LongAnswers,
    /// Limits of API keys.
    pub quotas: Arc<Quotas>,
    /// Whether the other gateways are known, which keep the limits of API keys with this one. True where nobody looks for them.
    pub peers_known: watch::Sender<bool>,
    /// Counters.
    pub metrics: Metrics,
    /// Cancelled when the process is asked to end: requests that wait for a group fail then, so that clients go to
    /// another gateway.
    pub stopping: CancellationToken,
}

/// Have the allocator keep freed memory of about the size of long requests for the next ones. By itself glibc gives back what is free beyond twice the
/// largest piece that was ever mapped and freed (mallopt(3), `M_MMAP_THRESHOLD`), so that every long prompt would have its pages made anew.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_BYTES)));
}

impl Gateway {
    /// A gateway that knows no deployment yet.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        keep_freed_memory();
        Arc::new(Self {
            held_bytes: Budget::new(settings.hold_bytes),
            carried_bytes: Budget::new(settings.carried_bytes),
            body_bytes: Budget::new(settings.body_bytes),
            answer_bytes: LongAnswers::new(settings.answer_bytes, settings.waiting_answer_bytes),
            quotas: Quotas::new(
                settings.quota_patience,
                settings.dialler.as_ref().map_or(Link::Plain, Dialler::gateway),
            ),
            directory: Directory::new(settings.dialler.clone()),
            settings,
            demand: Demand::new(),
            peers_known: watch::Sender::new(true),
            metrics: Metrics::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// Why clients should go to another gateway for now.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.stopping.is_cancelled() {
            Some("stopping")
        } else if let Some(problem) = self.settings.dialler.as_ref().and_then(Dialler::not_ready) {
            Some(problem)
        } else if !self.directory.snapshot().complete {
            Some("has not yet read all LlamaDeployments and LlamaGroups")
        } else if !*self.peers_known.borrow() {
            Some(
                "has not yet read the EndpointSlices of the gateways, which keep the limits of API keys together",
            )
        } else {
            None
        }
    }

    /// Forget what was counted of keys that are gone.
    pub fn keys_changed(&self, keys: &KeyStore) {
        let names = keys.names();
        self.quotas.ledger.keep(&names);
        self.metrics.keep_keys(&names);
    }

    /// Take what discovery found, and forget the counts of deployments that are gone.
    pub fn publish(&self, found: Vec<Found>) {
        let keys: BTreeSet<DeploymentKey> = found.iter().map(|found| found.key.clone()).collect();
        let models: BTreeSet<String> = found.iter().map(|found| found.model.clone()).collect();
        self.directory.publish(found);
        self.demand.keep(&keys);
        self.metrics.keep(&keys, &models);
    }
}
