//! Status of deployments and groups: server-side applied where it differs. Progress is written at most once a second for
//! an object, a group's new phase at once, and groups before deployments: who reads a deployment's counts finds groups
//! that say the same.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{Resource, ResourceExt as _, api::Patch, core::NamespaceResourceScope};
use llamero_api::{LlamaDeployment, LlamaGroup, deployment::LlamaDeploymentStatus, group::LlamaGroupStatus};
use llamero_core::{Key, status::Reports};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, warn};

use super::{EffectError, Index, Subject, Writer, error::Remedy, index::key_of, writer::apply_params};
use crate::{build::parts::namespace_of, metrics::Metrics, wake::Wake};

/// At most one write of an object's progress in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Writes that are under way at the same time.
const CONCURRENCY: usize = 16;

/// When which object's status was written last, and whether that went well.
#[derive(Debug, Default)]
pub struct Throttle(HashMap<String, LastWrite>);

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
        match self.0.get(uid) {
            Some(last) if turned && !last.failed => Due::Now,
            Some(last) if last.at.elapsed() < INTERVAL => Due::At(last.at + INTERVAL),
            _ => Due::Now,
        }
    }

    fn wrote(&mut self, uid: String, failed: bool) {
        let at = Instant::now();
        self.0.insert(uid, LastWrite { at, failed });
    }

    /// Forgets objects whose interval has passed.
    fn forget(&mut self) {
        self.0.retain(|_, last| last.at.elapsed() < INTERVAL);
    }
}

/// A status to be written.
enum Job {
    Group(Arc<LlamaGroup>, Box<LlamaGroupStatus>),
    Deployment(Arc<LlamaDeployment>, Box<LlamaDeploymentStatus>),
}

impl Job {
    fn uid(&self) -> String {
        match self {
            Self::Group(object, _) => object.uid(),
            Self::Deployment(object, _) => object.uid(),
        }
        .unwrap_or_default()
    }

    fn due(&self, throttle: &Throttle, uid: &str) -> Due {
        match self {
            Self::Group(object, wanted) => {
                let current = object.status.as_ref();
                throttle.due(uid, current, wanted.as_ref(), phase_differs(current, wanted))
            }
            Self::Deployment(object, wanted) => {
                throttle.due(uid, object.status.as_ref(), wanted.as_ref(), false)
            }
        }
    }

    async fn run(self, writer: &Writer, metrics: &Metrics) -> bool {
        let (result, subject) = match self {
            Self::Group(object, wanted) => {
                let result = send(writer, object.as_ref(), &wanted).await.map(|written| {
                    writer.caches().groups.wrote(written);
                });
                (result, format!("LlamaGroup {}", key_of(object.as_ref())))
            }
            Self::Deployment(object, wanted) => {
                let result = send(writer, object.as_ref(), &wanted).await.map(|written| {
                    writer
                        .caches()
                        .deployments
                        .note(written.resource_version().as_deref());
                });
                (result, format!("LlamaDeployment {}", key_of(object.as_ref())))
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

/// Statuses that were written: of which deployment, and by UID whether that went well.
type Written = (Key, Vec<(String, bool)>);

/// Writes statuses beside the loop, those of one deployment and its groups at a time.
pub struct Statuses {
    writer: Arc<Writer>,
    metrics: Metrics,
    throttle: Throttle,
    underway: HashSet<Key>,
    room: Arc<Semaphore>,
    done: Arc<Mutex<Vec<Written>>>,
    wake: Wake,
}

impl Statuses {
    /// Nothing was written yet.
    #[must_use]
    pub fn new(writer: Arc<Writer>, metrics: Metrics, wake: Wake) -> Self {
        Self {
            writer,
            metrics,
            throttle: Throttle::default(),
            underway: HashSet::new(),
            room: Arc::new(Semaphore::new(CONCURRENCY)),
            done: Arc::default(),
            wake,
        }
    }

    /// Takes in what was written since. Deployments whose status could not be written, and when to look at them again.
    pub fn settle(&mut self) -> Vec<(Key, Instant)> {
        self.throttle.forget();
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        let mut again = Vec::new();
        for (deployment, written) in done {
            self.underway.remove(&deployment);
            if written.iter().any(|(_, succeeded)| !succeeded) {
                again.push((deployment, Instant::now() + INTERVAL));
            }
            for (uid, succeeded) in written {
                self.throttle.wrote(uid, !succeeded);
            }
        }
        again
    }

    /// Begins to write what differs and is due. When to come back for each deployment of which something was written a moment ago.
    pub fn begin(&mut self, index: &Index, reports: Reports) -> Vec<(Key, Instant)> {
        let mut groups: BTreeMap<Key, Vec<Job>> = BTreeMap::new();
        for (key, status) in reports.groups {
            let owner = index.deployment_of(&Subject::Group(key.clone()));
            if let (Some(owner), Ok(object)) = (owner, index.group(&key)) {
                groups
                    .entry(owner)
                    .or_default()
                    .push(Job::Group(Arc::clone(object), Box::new(status)));
            }
        }
        let mut again = Vec::new();
        for (key, status) in reports.deployments {
            let Ok(object) = index.deployment(&key) else {
                continue;
            };
            if self.underway.contains(&key) {
                again.push((key, Instant::now() + INTERVAL));
                continue;
            }
            let (first, later) = self.due(groups.remove(&key).unwrap_or_default());
            let (then, latest) = self.due(vec![Job::Deployment(Arc::clone(object), Box::new(status))]);
            again.extend(later.into_iter().chain(latest).min().map(|at| (key.clone(), at)));
            if !first.is_empty() || !then.is_empty() {
                self.underway.insert(key.clone());
                self.spawn(key, first, then);
            }
        }
        again
    }

    /// Jobs that are due, and when the first of the others is.
    fn due(&self, jobs: Vec<Job>) -> (Vec<(String, Job)>, Option<Instant>) {
        let (mut now, mut later) = (Vec::new(), None);
        for job in jobs {
            let uid = job.uid();
            match job.due(&self.throttle, &uid) {
                Due::Nothing => {}
                Due::Now => now.push((uid, job)),
                Due::At(at) => later = Some(later.map_or(at, |later: Instant| later.min(at))),
            }
        }
        (now, later)
    }

    fn spawn(&self, deployment: Key, first: Vec<(String, Job)>, then: Vec<(String, Job)>) {
        let (writer, metrics, room) = (
            Arc::clone(&self.writer),
            self.metrics.clone(),
            Arc::clone(&self.room),
        );
        let (done, wake) = (Arc::clone(&self.done), self.wake.clone());
        tokio::spawn(async move {
            let mut written = Vec::new();
            for jobs in [first, then] {
                let runs = jobs.into_iter().map(|(uid, job)| async {
                    // The semaphore is never closed.
                    let _place = room.acquire().await;
                    (uid, job.run(&writer, &metrics).await)
                });
                written.extend(futures::future::join_all(runs).await);
            }
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((deployment, written));
            wake.wake();
        });
    }
}

fn phase_differs(current: Option<&LlamaGroupStatus>, wanted: &LlamaGroupStatus) -> bool {
    current.is_none_or(|current| current.phase != wanted.phase)
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
        assert!(throttle.0.is_empty());
    }

    /// A deployment was once said to be ready a second before its group had the leader's address.
    #[tokio::test(start_paused = true)]
    async fn a_new_phase_waits_for_nothing() {
        let of = |phase| LlamaGroupStatus {
            phase,
            ..LlamaGroupStatus::default()
        };
        let (loading, serving) = (of(GroupPhase::Loading), of(GroupPhase::Serving));
        let mut throttle = Throttle::default();
        throttle.wrote("u".to_owned(), false);
        let due =
            |current, wanted| throttle.due("u", Some(current), wanted, phase_differs(Some(current), wanted));
        assert_eq!(due(&loading, &serving), Due::Now);
        let further = LlamaGroupStatus {
            loaded_bytes: 1,
            ..loading.clone()
        };
        assert!(matches!(due(&loading, &further), Due::At(_)));

        throttle.wrote("u".to_owned(), true);
        let due =
            |current, wanted| throttle.due("u", Some(current), wanted, phase_differs(Some(current), wanted));
        assert!(
            matches!(due(&loading, &serving), Due::At(_)),
            "it failed a moment ago"
        );
    }
}
