//! Runs chains of steps beside the loop, which never waits for the API server: one that hangs holds up its own deployment, for as long as a
//! request may take.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use llamero_core::{Action, Key, Step, observed::Settings};
use tokio::{sync::Semaphore, time::Instant};
use tracing::Instrument as _;

use super::{
    Index, Outcome, Subject, Writer,
    calls::Channels,
    effects::{self, Chain, Tools},
    error::Remedy,
    peers::Peers,
};
use crate::{events::Events, form_keys::FormKeys, metrics::Metrics, wake::Wake};

/// Chains that run at the same time; more wait for a place.
const MOST_AT_ONCE: usize = 48;
/// Pause before failed steps are tried again; doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What chains need, whoever started them.
pub struct Hands {
    /// Fenced access to the API server.
    pub writer: Arc<Writer>,
    /// Calls to worker pods that are under way.
    pub peers: Peers,
    /// Where Events go.
    pub events: Events,
    /// Counters.
    pub metrics: Metrics,
    /// From which the key of every generation is derived.
    pub keys: FormKeys,
}

/// What became of everything that was decided about a deployment.
#[derive(Debug)]
pub struct Done {
    /// The deployment.
    pub deployment: Key,
    /// What was applied and what failed.
    pub outcome: Outcome,
    /// Groups whose specification was written.
    pub written: Vec<Key>,
    /// When to try again, if something failed.
    pub again: Option<Instant>,
}

/// Chains that are under way.
pub struct Actuators {
    hands: Arc<Hands>,
    room: Arc<Semaphore>,
    done: Arc<Mutex<Vec<Done>>>,
    wake: Wake,
    retries: HashMap<Key, Duration>,
}

impl Actuators {
    /// Nothing is under way.
    #[must_use]
    pub fn new(hands: Hands, wake: Wake) -> Self {
        Self {
            hands: Arc::new(hands),
            room: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            done: Arc::default(),
            wake,
            retries: HashMap::new(),
        }
    }

    /// Begins to do what was decided about a deployment. The loop is woken when all of it has been answered.
    pub fn begin(
        &self,
        deployment: Key,
        chains: Vec<Chain>,
        index: &Index,
        channel: impl Fn(&str) -> Option<tonic::transport::Channel>,
        settings: &Settings,
    ) {
        let written = chains
            .iter()
            .flat_map(|(_, steps)| steps)
            .filter_map(|step| match &step.action {
                Action::WriteGroup { group, .. } => Some(group.clone()),
                _ => None,
            })
            .collect();
        let parts: Vec<Part> = chains
            .into_iter()
            .map(|chain| Part::of(chain, index, &channel))
            .collect();
        let (hands, room) = (Arc::clone(&self.hands), Arc::clone(&self.room));
        let (done, wake, settings) = (Arc::clone(&self.done), self.wake.clone(), settings.clone());
        let work = async move {
            let runs = parts.into_iter().map(|part| part.run(&hands, &room, &settings));
            let mut outcome = Outcome::default();
            for one in futures::future::join_all(runs).await {
                outcome.applied.extend(one.applied);
                outcome.failures.extend(one.failures);
            }
            let result = Done {
                deployment,
                outcome,
                written,
                again: None,
            };
            done.lock().unwrap_or_else(PoisonError::into_inner).push(result);
            wake.wake();
        };
        // With the number of the pass that decided it.
        tokio::spawn(work.in_current_span());
    }

    /// What has been answered since this was asked last.
    pub fn take_done(&mut self) -> Vec<Done> {
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        done.into_iter()
            .map(|mut done| {
                done.again = done.again.or_else(|| self.retry(&done));
                done
            })
            .collect()
    }

    fn retry(&mut self, done: &Done) -> Option<Instant> {
        let failures = &done.outcome.failures;
        if failures.is_empty() {
            self.retries.remove(&done.deployment);
            return None;
        }
        let soon = failures.iter().any(|failure| failure.remedy == Remedy::Decide);
        let pause = self.retries.entry(done.deployment.clone()).or_insert(FIRST_RETRY);
        let wait = if soon { FIRST_RETRY } else { *pause };
        *pause = (*pause * 2).min(LAST_RETRY);
        Some(Instant::now() + wait)
    }

    /// What was taken could not be looked at yet.
    pub fn put_back(&self, done: Vec<Done>) {
        let mut all = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(done);
    }

    /// Forgets deployments that are gone.
    pub fn keep(&mut self, there: impl Fn(&Key) -> bool) {
        self.retries.retain(|deployment, _| there(deployment));
    }
}

/// A chain with what it needs.
struct Part {
    subject: Subject,
    steps: Vec<Step>,
    index: Index,
    channels: Channels,
}

impl Part {
    fn of(
        (subject, steps): Chain,
        index: &Index,
        channel: impl Fn(&str) -> Option<tonic::transport::Channel>,
    ) -> Self {
        let actions: Vec<&Action> = steps.iter().map(|step| &step.action).collect();
        let targets = actions.iter().flat_map(|action| match action {
            Action::Form { targets, .. } => targets.as_slice(),
            Action::DrainGroup { leader, .. } => std::slice::from_ref(leader),
            _ => &[],
        });
        let channels = targets
            .filter_map(|target| Some((target.pod_uid.clone(), channel(&target.pod_uid)?)))
            .collect();
        let index = index.of_subject(&subject, &actions);
        Self {
            subject,
            steps,
            index,
            channels,
        }
    }

    async fn run(self, hands: &Hands, room: &Semaphore, settings: &Settings) -> Outcome {
        // The semaphore is never closed.
        let _place = room.acquire().await;
        let tools = Tools {
            writer: &hands.writer,
            index: &self.index,
            channels: &self.channels,
            peers: &hands.peers,
            events: &hands.events,
            metrics: &hands.metrics,
            settings,
            keys: &hands.keys,
        };
        effects::run_chain(&tools, (self.subject, self.steps)).await
    }
}
