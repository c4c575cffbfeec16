//! The loop: observe → decide → apply → report, one pass after another.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt as _};
use llamero_api::labels;
use llamero_core::{
    Observed, Plan,
    observed::{PodPhase, Settings},
    status::Reports,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span, warn};

use crate::{
    apply::{
        self, Index, Outcome, Refusals, Writer,
        calls::{self, Channels},
        effects::Tools,
        error::Remedy,
        peers::Peers,
        statuses::{self, Throttle},
    },
    definitions::Definitions,
    events::Events,
    form_keys::FormKeys,
    health::Health,
    lease::Leadership,
    links::{DemandStream, LoadStream, Pool, RankStream},
    metrics::Metrics,
    observe::{self, Snapshot, pods},
    options::Options,
    wake::Wake,
    watch::Caches,
};

/// Changes that come together make one pass.
const GATHER: Duration = Duration::from_millis(20);
/// A pass at least this often: nothing may depend on a change being noticed.
const RESYNC: Duration = Duration::from_secs(5);
/// How long a pass waits for caches that lag behind our own writes before it tells; it never decides from them.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Pause before failed steps are tried again; doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// The loop's parts.
pub struct Reconciler {
    options: Options,
    caches: Caches,
    wake: Wake,
    leadership: Leadership,
    writer: Writer,
    peers: Peers,
    events: Events,
    metrics: Metrics,
    health: Health,
    throttle: Throttle,
    refusals: Refusals,
    settings: Settings,
    client: Client,
    ranks: Pool<RankStream>,
    loads: Pool<LoadStream>,
    gateways: Pool<DemandStream>,
    retry: Duration,
}

impl Reconciler {
    /// A loop that has not run yet. It works from `caches`, which wake it through `wake`.
    #[must_use]
    pub fn new(
        client: &Client,
        options: Options,
        caches: Caches,
        wake: Wake,
        leadership: Leadership,
        metrics: Metrics,
        health: Health,
    ) -> Self {
        Self {
            writer: Writer::new(client.clone(), leadership.clone(), caches.clone()),
            events: Events::start(client.clone(), options.identity()),
            peers: Peers::new(leadership.clone(), metrics.clone(), wake.clone()),
            ranks: Pool::new(wake.clone()),
            loads: Pool::new(wake.clone()),
            gateways: Pool::new(wake.clone()),
            throttle: Throttle::default(),
            refusals: Refusals::default(),
            settings: options.settings(),
            client: client.clone(),
            retry: FIRST_RETRY,
            options,
            caches,
            wake,
            leadership,
            metrics,
            health,
        }
    }

    /// Runs until `stop`. Waits for the caches, then for the lease.
    pub async fn run(mut self, stop: CancellationToken) {
        let cancelled = stop.clone();
        let work = async {
            self.caches.synced().await;
            self.health.set_synced();
            self.leadership.acquired().await;
            self.metrics.leading.set(1);
            let (namespace, secret) = (&self.options.lease_namespace, &self.options.form_keys_secret);
            let keys = FormKeys::load(&self.client, namespace, secret).await;
            let manage = self.options.manage_crds;
            let (definitions, problem) =
                Definitions::new(self.client.clone(), manage, self.leadership.clone());
            if let Some(until_well) = definitions.first().await {
                tokio::spawn(until_well);
            }
            let mut number = 0u64;
            loop {
                self.settings.definitions.clone_from(&problem.borrow());
                self.health.pass_begins();
                number += 1;
                let span = info_span!("pass", id = number);
                let next = self.pass(&keys).instrument(span).await;
                self.health.pass_ended();
                tokio::select! {
                    () = self.wake.woken() => {}
                    () = tokio::time::sleep_until(next) => {}
                }
                tokio::time::sleep(GATHER).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = cancelled.cancelled() => {}
        }
    }

    /// One pass; when the next is due at the latest.
    async fn pass(&mut self, keys: &FormKeys) -> Instant {
        if !self.caches.caught_up(CATCH_UP).await {
            self.metrics.stale_caches.inc();
            warn!(
                "the watches do not show what was written {} s ago; nothing is decided before they do",
                CATCH_UP.as_secs()
            );
            return Instant::now();
        }
        if !self.writer.leads() {
            self.metrics.passes_cut.inc();
            return Instant::now() + FIRST_RETRY;
        }
        let began = Instant::now();
        let snapshot = self.snapshot();
        let time = Timestamp::now();
        let now = time.as_millisecond();
        let observed = observe::observe(&snapshot, &self.settings, &self.refusals, time);
        let plan = llamero_core::decide(&observed, now);
        let index = Index::new(&snapshot);
        let outcome = self.apply(&index, &plan, keys).await;
        let reports = llamero_core::report(&observed, &plan, now);
        let status_due = statuses::write(
            &self.writer,
            &self.metrics,
            &mut self.throttle,
            &observed,
            &reports,
        )
        .await;

        self.refusals.record(&outcome, now);
        self.count(&observed, &reports);
        self.metrics.pass_seconds.observe(began.elapsed().as_secs_f64());
        self.metrics
            .last_pass
            .set(Timestamp::now().as_millisecond() as f64 / 1000.0);
        debug!(steps = plan.steps.len(), applied = outcome.applied.len(), failed = outcome.failures.len(), took = ?began.elapsed(), "pass");
        self.next_pass(&plan, &outcome, now, status_due)
    }

    /// What caches and streams hold, after the streams were pointed at today's pods.
    fn snapshot(&mut self) -> Snapshot {
        let mut snapshot = self.caches.snapshot();
        let (mut workers, mut leaders, mut gateways) = (Vec::new(), Vec::new(), Vec::new());
        for pod in &snapshot.pods {
            let (Some(ip), Some(uid)) = (pods::ip(pod), pod.uid()) else {
                continue;
            };
            let running = pods::phase(pod) == PodPhase::Running;
            let labels = pod.labels();
            if labels.contains_key(labels::GROUP_NAME) {
                let leads = labels
                    .get(labels::ROLE)
                    .is_some_and(|role| role == labels::ROLE_LEADER);
                if running && leads {
                    leaders.push((uid.clone(), calls::address(ip, labels::INFERENCE_PORT)));
                }
                // What a pod said last is kept until the pod is gone: it may tell why it ended.
                if running || self.ranks.contains(&uid) {
                    workers.push((uid, calls::address(ip, labels::CONTROL_PORT)));
                }
            } else if running
                && pod.metadata.namespace.as_deref() == Some(self.options.gateway_namespace())
                && self.options.gateway_selector.matches(Some(labels))
                && pods::condition(pod, "Ready")
            {
                gateways.push((uid, calls::address(ip, labels::DEMAND_PORT)));
            }
        }
        // An address may have passed on to another pod: only believe who says the name.
        snapshot.reports = latest(&mut self.ranks, workers)
            .into_iter()
            .filter_map(some_value)
            .filter(|(uid, received)| received.message.pod_uid == *uid)
            .collect();
        snapshot.loads = latest(&mut self.loads, leaders)
            .into_iter()
            .filter_map(some_value)
            .collect();
        snapshot.gateways = latest(&mut self.gateways, gateways)
            .into_iter()
            .map(|(_, received)| received)
            .collect();
        self.metrics.stream_counts("ranks", self.ranks.counts());
        self.metrics.stream_counts("load", self.loads.counts());
        self.metrics.stream_counts("demand", self.gateways.counts());
        snapshot
    }

    async fn apply(&self, index: &Index, plan: &Plan, keys: &FormKeys) -> Outcome {
        let channels: Channels = self.ranks.channels().collect();
        let tools = Tools {
            writer: &self.writer,
            index,
            channels: &channels,
            peers: &self.peers,
            events: &self.events,
            metrics: &self.metrics,
            settings: &self.settings,
            keys,
        };
        apply::apply(&tools, &plan.steps).await
    }

    fn count(&self, observed: &Observed, reports: &Reports) {
        self.metrics
            .deployments
            .set(i64::try_from(observed.deployments.len()).unwrap_or(i64::MAX));
        self.metrics.count_groups(reports.groups.values());
    }

    fn next_pass(
        &mut self,
        plan: &Plan,
        outcome: &Outcome,
        now: i64,
        status_due: Option<Instant>,
    ) -> Instant {
        let start = Instant::now();
        let mut next = start + RESYNC;
        if let Some(at) = plan.next_at {
            next =
                next.min(start + Duration::from_millis(u64::try_from(at.saturating_sub(now)).unwrap_or(0)));
        }
        if outcome.failures.is_empty() {
            self.retry = FIRST_RETRY;
        } else {
            let soon = outcome
                .failures
                .iter()
                .any(|failure| failure.remedy == Remedy::Decide);
            next = next.min(start + if soon { FIRST_RETRY } else { self.retry });
            self.retry = (self.retry * 2).min(LAST_RETRY);
        }
        status_due.map_or(next, |due| next.min(due))
    }
}

/// Points the pool at these peers and returns what each said last, in the order of their keys.
fn latest<S: crate::links::subscribe::Subscribe>(
    pool: &mut Pool<S>,
    mut peers: Vec<(String, String)>,
) -> Vec<(String, Option<crate::links::Received<S::Message>>)> {
    peers.sort();
    pool.set_peers(peers.iter().cloned());
    peers
        .into_iter()
        .map(|(key, _)| (key.clone(), pool.latest(&key)))
        .collect()
}

fn some_value<K, V>((key, value): (K, Option<V>)) -> Option<(K, V)> {
    Some((key, value?))
}
