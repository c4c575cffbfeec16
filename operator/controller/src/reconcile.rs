//! The loop: observe → decide → apply → report, one pass after another. It waits for nobody: effects and statuses go on beside it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use llamero_api::group::GroupPhase;
use llamero_core::{Action, Key, Plan, observed::Settings, status::Reports, time::Millis};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info_span, warn};

use crate::{
    apply::{
        Actuators, Done, Hands, Refusals, Subject, Writer,
        effects::{self, Chain},
        peers::Peers,
        statuses::Statuses,
    },
    definitions::Definitions,
    events::Events,
    form_keys::FormKeys,
    health::Health,
    identities::Identities,
    lease::Leadership,
    links::Links,
    metrics::Metrics,
    observe::Model,
    options::Options,
    wake::Wake,
    watch::Caches,
};

/// Changes that come together make one pass.
const GATHER: Duration = Duration::from_millis(20);
/// A pass at least this often: what wakes nobody, like a counter, is taken in then. One with nothing to do costs next to nothing.
const PULSE: Duration = Duration::from_secs(1);
/// How long a pass waits for caches that lag behind our own writes before it tells; it never decides from them.
const CATCH_UP: Duration = Duration::from_secs(10);
/// When to look again whether the lease is ours.
const LEASE_RETRY: Duration = Duration::from_millis(250);
/// When a deployment is decided about again of which only calls to worker pods are under way.
const CALLS_UNDERWAY: Millis = 1_000;

/// The loop's parts before it leads.
pub struct Reconciler {
    options: Options,
    caches: Caches,
    wake: Wake,
    leadership: Leadership,
    metrics: Metrics,
    health: Health,
    client: Client,
    identities: Option<Identities>,
    reads_cluster: bool,
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
            client: client.clone(),
            options,
            caches,
            wake,
            leadership,
            metrics,
            health,
            identities: None,
            reads_cluster: true,
        }
    }

    /// The loop, where nodes and pods of other namespaces can be read or not.
    #[must_use]
    pub fn reading_cluster(self, reads_cluster: bool) -> Self {
        Self {
            reads_cluster,
            ..self
        }
    }

    /// The loop with authenticated links.
    #[must_use]
    pub fn with_identities(self, identities: Option<Identities>) -> Self {
        Self { identities, ..self }
    }

    /// Runs until `stop`. Waits for the caches, then for the lease.
    pub async fn run(self, stop: CancellationToken) {
        let cancelled = stop.clone();
        tokio::select! {
            () = self.lead() => {}
            () = cancelled.cancelled() => {}
        }
    }

    async fn lead(mut self) {
        self.caches.synced().await;
        self.health.set_synced();
        self.leadership.acquired().await;
        self.metrics.leading.set(1);
        let (namespace, secret) = (&self.options.lease_namespace, &self.options.form_keys_secret);
        let keys = FormKeys::load(&self.client, namespace, secret).await;
        let options = self.options.clone();
        let manage = self.options.manage_crds;
        let (definitions, problem) = Definitions::new(self.client.clone(), manage, self.leadership.clone());
        if let Some(until_well) = definitions.first().await {
            tokio::spawn(until_well);
        }
        let (health, wake, identities) = (self.health.clone(), self.wake.clone(), self.identities.clone());
        let mut work = Loop::new(self, keys);
        let mut number = 0u64;
        loop {
            work.settings.definitions.clone_from(&problem.borrow());
            // Without an authority the loop goes on: only pods whose links are to be authenticated are not made.
            if let Some(identities) = &identities {
                let authority = identities.usable();
                work.settings.enrolment = authority.map(|one| options.enrolment(one.roots_pem()));
                work.settings.unenrollable = identities.unenrollable.borrow().clone();
            }
            health.pass_begins();
            number += 1;
            let span = info_span!("pass", id = number);
            let next = work.pass().instrument(span).await;
            health.pass_ended();
            tokio::select! {
                () = wake.woken() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

/// The loop's parts while it leads.
struct Loop {
    caches: Caches,
    metrics: Metrics,
    writer: Arc<Writer>,
    model: Model,
    links: Links,
    actuators: Actuators,
    statuses: Statuses,
    refusals: Refusals,
    settings: Settings,
    /// Of every deployment the phase of each group and whether it serves, as reported last.
    phases: BTreeMap<Key, Vec<(GroupPhase, bool)>>,
}

impl Loop {
    fn new(parts: Reconciler, keys: FormKeys) -> Self {
        let Reconciler {
            options,
            caches,
            wake,
            leadership,
            metrics,
            client,
            health: _,
            identities,
            reads_cluster,
        } = parts;
        let writer = Arc::new(Writer::new(client.clone(), leadership.clone(), caches.clone()));
        let hands = Hands {
            writer: Arc::clone(&writer),
            peers: Peers::new(leadership, metrics.clone(), wake.clone()),
            events: Events::start(client, options.identity()),
            metrics: metrics.clone(),
            keys,
        };
        Self {
            model: Model::default(),
            links: Links::new(&wake, identities.map(|identities| identities.dialler)),
            actuators: Actuators::new(hands, wake.clone()),
            statuses: Statuses::new(Arc::clone(&writer), metrics.clone(), wake),
            refusals: Refusals::default(),
            settings: Settings {
                unpinned: !reads_cluster,
                ..options.settings()
            },
            phases: BTreeMap::new(),
            caches,
            metrics,
            writer,
        }
    }

    /// One pass; when the next is due at the latest.
    async fn pass(&mut self) -> Instant {
        // What has been answered first: the caches must then show it.
        let done = self.actuators.take_done();
        if !self.caches.caught_up(CATCH_UP).await {
            self.metrics.stale_caches.inc();
            warn!(
                "the watches do not show what was written {} s ago; nothing is decided before they do",
                CATCH_UP.as_secs()
            );
            self.actuators.put_back(done);
            return Instant::now();
        }
        if !self.writer.leads() {
            self.metrics.passes_cut.inc();
            self.actuators.put_back(done);
            return Instant::now() + LEASE_RETRY;
        }
        let began = Instant::now();
        let now = Timestamp::now().as_millisecond();
        self.observe(done, now);
        let mut plan = self.model.pass(now);
        let reports = self.model.report(&plan, now);
        let steps = plan.steps.len();
        self.apply(&mut plan);
        self.report(&plan, reports, now);

        self.metrics.pass_seconds.observe(began.elapsed().as_secs_f64());
        self.metrics
            .last_pass
            .set(Timestamp::now().as_millisecond() as f64 / 1000.0);
        debug!(steps, decided = plan.verdicts.len(), took = ?began.elapsed(), "pass");
        let due = self.model.planner().next_due();
        let wait = due.map_or(PULSE, |due| millis(due.saturating_sub(now)).min(PULSE));
        Instant::now() + wait
    }

    /// Takes in everything that has changed since the last pass.
    fn observe(&mut self, done: Vec<Done>, now: Millis) {
        for done in done {
            self.settle(done, now);
        }
        for subject in self.refusals.expire(now) {
            self.model.touch(&subject);
        }
        self.model.take(self.caches.take());
        self.model.heard(self.links.take_heard());
        if let Some(demands) = self.links.demands(self.model.gateways().iter()) {
            self.model.set_demands(demands);
        }
        self.model
            .refresh(&mut self.links, &self.settings, &self.refusals, now);
        self.links.count(&self.metrics);
    }

    /// What was decided about a deployment has been answered: it may be decided about again.
    fn settle(&mut self, done: Done, now: Millis) {
        let Done {
            deployment,
            outcome,
            written,
            again,
        } = done;
        for group in &written {
            self.model.set_writing(group, None);
        }
        self.refusals.record(&outcome, now);
        let failed = outcome.failures.iter().map(|failure| &failure.subject);
        for subject in failed.chain(outcome.applied.iter().map(|(subject, _)| subject)) {
            self.model.touch(subject);
        }
        let idle = outcome.applied.is_empty() && outcome.failures.is_empty();
        let due = match again {
            Some(at) => Some(now.saturating_add(until(at))),
            None => idle.then(|| now.saturating_add(CALLS_UNDERWAY)),
        };
        self.model.planner_mut().release(&deployment, due);
    }

    /// Begins to carry out the steps of a plan.
    fn apply(&mut self, plan: &mut Plan) {
        let mut of_deployments: BTreeMap<Key, Vec<Chain>> = BTreeMap::new();
        let index = self.model.index();
        for (subject, steps) in effects::chains(index, std::mem::take(&mut plan.steps)) {
            let owner = match &subject {
                Subject::Deployment(key) => Some(key.clone()),
                Subject::Group(_) => index.deployment_of(&subject),
            };
            if let Some(owner) = owner {
                of_deployments.entry(owner).or_default().push((subject, steps));
            }
        }
        for (deployment, chains) in of_deployments {
            let mut writing = Vec::new();
            for step in chains.iter().flat_map(|(_, steps)| steps) {
                if let Action::WriteGroup { group, spec, .. } = &step.action {
                    writing.push((group.clone(), Arc::new((**spec).clone())));
                }
            }
            self.model.planner_mut().hold(&deployment);
            let channel = |pod_uid: &str| self.links.channel(pod_uid);
            self.actuators
                .begin(deployment, chains, self.model.index(), channel, &self.settings);
            for (group, spec) in writing {
                self.model.set_writing(&group, Some(spec));
            }
        }
    }

    /// Begins to write the statuses of what was decided about.
    fn report(&mut self, plan: &Plan, reports: Reports, now: Millis) {
        let index = self.model.index();
        for key in plan.verdicts.keys() {
            self.phases.insert(key.clone(), Vec::new());
        }
        for (key, status) in &reports.groups {
            let owner = index.deployment_of(&Subject::Group(key.clone()));
            if let Some(phases) = owner.and_then(|owner| self.phases.get_mut(&owner)) {
                phases.push((status.phase, status.ready));
            }
        }
        let mut again = self.statuses.settle();
        again.extend(self.statuses.begin(index, reports));
        for (key, at) in again {
            let at = now.saturating_add(until(at));
            self.model.planner_mut().look_at(&key, at);
        }
        let there = |key: &Key| self.model.index().deployment(key).is_ok();
        let before = self.phases.len();
        if !plan.verdicts.is_empty() || before != self.model.planner().observed().deployments.len() {
            self.phases.retain(|key, _| there(key));
            self.actuators.keep(there);
            self.metrics.count_groups(self.phases.values().flatten().copied());
            let deployments = self.model.planner().observed().deployments.len();
            self.metrics
                .deployments
                .set(i64::try_from(deployments).unwrap_or(i64::MAX));
        }
    }
}

fn millis(millis: Millis) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Milliseconds until then.
fn until(at: Instant) -> Millis {
    let wait = at.saturating_duration_since(Instant::now());
    i64::try_from(wait.as_millis()).unwrap_or(Millis::MAX)
}
