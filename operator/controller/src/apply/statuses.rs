//! Status of deployments and groups: server-side applied where it differs. Progress is written at most once a second for
//! an object, a group's turn (phase, readiness or leader's address) at once, and groups before deployments: who reads a
//! deployment's counts finds groups that say the same, also when a group's turn could not be written.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    time::Duration,
};

use futures::StreamExt as _;
use kube::{Resource, ResourceExt as _, api::Patch, core::NamespaceResourceScope};
use llamero_api::{LlamaDeployment, LlamaGroup, deployment::LlamaDeploymentStatus, group::LlamaGroupStatus};
use llamero_core::{Observed, observed::Deployment, status::Reports};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{EffectError, Writer, error::Remedy, index::key_of, writer::apply_params};
use crate::{build::parts::namespace_of, metrics::Metrics};

/// At most one write of an object's progress in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Writes that are under way at the same time.
const CONCURRENCY: usize = 8;
/// A deployment's status waits at most so long for the turns of its groups: what it says about a group that can never be
/// written must be heard too.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the next writes depend on. Objects are known by their UIDs.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When which status was written last, and whether that went well.
    writes: HashMap<String, LastWrite>,
    /// Since when deployments wait for the turns of their groups.
    waiting: HashMap<String, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct LastWrite {
    at: Instant,
    failed: bool,
}

/// What to do about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// It is as it should be.
    Nothing,
    /// Write it now.
    Now,
    /// It was written a moment ago.
    At(Instant),
}

impl Throttle {
    /// `turned`: more than progress differs, so that nobody should wait for it.
    fn due<S: PartialEq>(&self, uid: &str, current: Option<&S>, wanted: &S, turned: bool) -> Due {
        if current == Some(wanted) {
            return Due::Nothing;
        }
        match self.writes.get(uid) {
            Some(last) if turned && !last.failed => Due::Now,
            Some(last) if last.at.elapsed() < INTERVAL => Due::At(last.at + INTERVAL),
            _ => Due::Now,
        }
    }

    fn wrote(&mut self, uid: String, failed: bool) {
        let at = Instant::now();
        self.writes.insert(uid, LastWrite { at, failed });
    }

    /// Takes in which deployments have groups whose turn is unwritten; those that are to wait for them.
    fn wait(&mut self, unwritten: HashSet<String>) -> HashSet<String> {
        self.waiting.retain(|uid, _| unwritten.contains(uid));
        let now = Instant::now();
        let waiting = &mut self.waiting;
        unwritten
            .into_iter()
            .filter(|uid| {
                let since = *waiting.entry(uid.clone()).or_insert(now);
                now.duration_since(since) < PATIENCE
            })
            .collect()
    }

    /// Forgets objects whose interval has passed.
    fn forget(&mut self) {
        self.writes.retain(|_, last| last.at.elapsed() < INTERVAL);
    }
}

/// A status to be written.
enum Job<'a> {
    /// With the UID of its deployment.
    Group(&'a LlamaGroup, &'a LlamaGroupStatus, String),
    Deployment(&'a LlamaDeployment, &'a LlamaDeploymentStatus),
}

impl Job<'_> {
    fn uid(&self) -> String {
        match self {
            Self::Group(object, ..) => object.uid(),
            Self::Deployment(object, _) => object.uid(),
        }
        .unwrap_or_default()
    }

    fn due(&self, throttle: &Throttle, uid: &str) -> Due {
        match self {
            Self::Group(object, wanted, _) => {
                let current = object.status.as_ref();
                throttle.due(uid, current, wanted, turns(current, wanted))
            }
            Self::Deployment(object, wanted) => throttle.due(uid, object.status.as_ref(), wanted, false),
        }
    }

    /// The deployment whose status waits until this one is written.
    fn holds_up(&self) -> Option<String> {
        match self {
            Self::Group(object, wanted, deployment) => {
                turns(object.status.as_ref(), wanted).then(|| deployment.clone())
            }
            Self::Deployment(..) => None,
        }
    }

    async fn run(self, writer: &Writer, metrics: &Metrics) -> bool {
        let (result, subject) = match self {
            Self::Group(object, wanted, _) => {
                let result = send(writer, object, wanted).await.map(|written| {
                    writer.caches().groups.wrote(written);
                });
                (result, format!("LlamaGroup {}", key_of(object)))
            }
            Self::Deployment(object, wanted) => {
                let result = send(writer, object, wanted).await.map(|written| {
                    writer
                        .caches()
                        .deployments
                        .note(written.resource_version().as_deref());
                });
                (result, format!("LlamaDeployment {}", key_of(object)))
            }
        };
        metrics.effect(
            "WriteStatus",
            result.as_ref().map_or_else(EffectError::class, |()| "ok"),
        );
        if let Err(error) = &result {
            match error.remedy() {
                Remedy::Decide => debug!(subject, %error, "status dropped"),
                _ => warn!(subject, %error, "cannot write a status; trying again"),
            }
        }
        result.is_ok()
    }
}

/// Writes what differs and is due; when to come back for what was written a moment ago or could not be.
pub async fn write(
    writer: &Writer,
    metrics: &Metrics,
    throttle: &mut Throttle,
    observed: &Observed,
    reports: &Reports,
) -> Option<Instant> {
    throttle.forget();
    let mut pass = Pass {
        writer,
        metrics,
        throttle,
        again: None,
    };
    let unwritten = pass.run(group_jobs(observed, reports)).await;
    let waiting = pass.throttle.wait(unwritten);
    let mut jobs = deployment_jobs(observed, reports);
    // Its groups are come back for, and it with them.
    jobs.retain(|job| !waiting.contains(&job.uid()));
    pass.run(jobs).await;
    pass.again
}

/// The writes of one pass.
struct Pass<'a> {
    writer: &'a Writer,
    metrics: &'a Metrics,
    throttle: &'a mut Throttle,
    /// When to come back.
    again: Option<Instant>,
}

impl Pass<'_> {
    /// Does what is due; deployments whose status must wait for what was not done.
    async fn run(&mut self, jobs: Vec<Job<'_>>) -> HashSet<String> {
        let mut unwritten = HashSet::new();
        let mut runs = Vec::new();
        for job in jobs {
            let uid = job.uid();
            match job.due(self.throttle, &uid) {
                Due::Nothing => {}
                Due::At(at) => {
                    unwritten.extend(job.holds_up());
                    self.come_back(at);
                }
                Due::Now => {
                    let (writer, metrics) = (self.writer, self.metrics);
                    runs.push(async move {
                        let held_up = job.holds_up();
                        (uid, held_up, job.run(writer, metrics).await)
                    });
                }
            }
        }
        let results: Vec<(String, Option<String>, bool)> = futures::stream::iter(runs)
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        for (uid, held_up, succeeded) in results {
            if !succeeded {
                unwritten.extend(held_up);
                self.come_back(Instant::now() + INTERVAL);
            }
            self.throttle.wrote(uid, !succeeded);
        }
        unwritten
    }

    fn come_back(&mut self, at: Instant) {
        self.again = Some(self.again.map_or(at, |again| again.min(at)));
    }
}

fn group_jobs<'a>(observed: &'a Observed, reports: &'a Reports) -> Vec<Job<'a>> {
    let of = |deployment: &'a Deployment| {
        let owner = deployment.object.uid().unwrap_or_default();
        deployment.groups.iter().filter_map(move |group| {
            let object = group.object.as_ref();
            let wanted = reports.groups.get(&key_of(object))?;
            Some(Job::Group(object, wanted, owner.clone()))
        })
    };
    observed.deployments.iter().flat_map(of).collect()
}

fn deployment_jobs<'a>(observed: &'a Observed, reports: &'a Reports) -> Vec<Job<'a>> {
    observed
        .deployments
        .iter()
        .filter_map(|deployment| {
            let object = deployment.object.as_ref();
            let wanted = reports.deployments.get(&key_of(object))?;
            Some(Job::Deployment(object, wanted))
        })
        .collect()
}

/// Whether more than progress differs: what others act upon, and a deployment's counts follow from.
fn turns(current: Option<&LlamaGroupStatus>, wanted: &LlamaGroupStatus) -> bool {
    current.is_none_or(|current| {
        current.phase != wanted.phase
            || current.ready != wanted.ready
            || current.leader_address != wanted.leader_address
    })
}

async fn send<K, S>(writer: &Writer, object: &K, wanted: &S) -> Result<K, EffectError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize,
{
    let api = writer.api::<K>(&namespace_of(object));
    let patch = Patch::Apply(status_patch(object, wanted));
    writer
        .send(api.patch_status(&object.name_any(), &apply_params(), &patch))
        .await
}

/// With the UID, so that an object of the same name made meanwhile is left alone.
fn status_patch<K: Resource<DynamicType = ()>>(object: &K, status: &impl Serialize) -> Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "uid": object.uid()},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use llamero_api::group::GroupPhase;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_most_once_a_second_and_only_where_it_differs() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.due("u", Some(&1), &1, false), Due::Nothing);
        assert_eq!(throttle.due("u", None, &1, false), Due::Now);
        throttle.wrote("u".to_owned(), false);
        let written = Instant::now();
        assert_eq!(
            throttle.due("u", Some(&1), &2, false),
            Due::At(written + INTERVAL)
        );
        assert_eq!(throttle.due("other", Some(&1), &2, false), Due::Now);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(throttle.due("u", Some(&1), &2, false), Due::Now);
        throttle.forget();
        assert!(throttle.writes.is_empty());
    }

    /// A deployment was once said to be ready a second before its group had the leader's address.
    #[tokio::test(start_paused = true)]
    async fn a_turn_waits_for_nothing() {
        let of = |phase| LlamaGroupStatus {
            phase,
            ..LlamaGroupStatus::default()
        };
        let (loading, serving) = (of(GroupPhase::Loading), of(GroupPhase::Serving));
        let mut throttle = Throttle::default();
        throttle.wrote("u".to_owned(), false);
        let due = |current, wanted| throttle.due("u", Some(current), wanted, turns(Some(current), wanted));
        assert_eq!(due(&loading, &serving), Due::Now);
        let further = LlamaGroupStatus {
            loaded_bytes: 1,
            ..loading.clone()
        };
        assert!(matches!(due(&loading, &further), Due::At(_)));
        let ready = LlamaGroupStatus {
            ready: true,
            ..serving.clone()
        };
        assert_eq!(due(&serving, &ready), Due::Now);
        let led = LlamaGroupStatus {
            leader_address: Some("10.0.0.1:18051".into()),
            ..ready.clone()
        };
        assert_eq!(due(&ready, &led), Due::Now);

        throttle.wrote("u".to_owned(), true);
        let due = |current, wanted| throttle.due("u", Some(current), wanted, turns(Some(current), wanted));
        assert!(
            matches!(due(&loading, &serving), Due::At(_)),
            "it failed a moment ago"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_deployment_waits_for_its_groups_but_not_for_ever() {
        let mut throttle = Throttle::default();
        let of = |uids: &[&str]| -> HashSet<String> { uids.iter().map(|uid| (*uid).to_owned()).collect() };
        assert_eq!(throttle.wait(of(&["a", "b"])), of(&["a", "b"]));
        tokio::time::advance(PATIENCE / 2).await;
        // The second has got through, and waits anew.
        assert_eq!(throttle.wait(of(&["a"])), of(&["a"]));
        assert_eq!(throttle.wait(of(&["a", "b"])), of(&["a", "b"]));
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(throttle.wait(of(&["a", "b"])), of(&["b"]));
        assert_eq!(throttle.wait(of(&[])), of(&[]));
        assert!(throttle.waiting.is_empty());
    }
}
