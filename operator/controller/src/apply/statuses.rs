//! Status of deployments and groups: server-side applied where it differs. Progress is written at most once a second for
//! an object, more seldom while many make progress, a group's turn (it serves or no longer does, its leader's address) at once, and groups before deployments: who reads a
//! deployment's counts finds groups that say the same, also when a group's turn could not be written.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{Resource, ResourceExt as _, api::Patch, core::NamespaceResourceScope};
use llamero_api::{
    LlamaDeployment, LlamaGroup,
    deployment::LlamaDeploymentStatus,
    group::{GroupPhase, LlamaGroupStatus},
};
use llamero_core::{Key, status::Reports};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::Instant};
use tracing::{debug, warn};

use super::{EffectError, Index, Subject, Writer, error::Remedy, index::key_of, writer::apply_params};
use crate::{build::parts::namespace_of, metrics::Metrics, wake::Wake};

/// At most one write of an object's progress in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Writes of progress in that time, of all objects together: a start of a thousand groups leaves the API server room for the start itself.
const SHARED: usize = 20;
/// No object's progress is older than this for that reason.
const LONGEST_INTERVAL: Duration = Duration::from_secs(30);
/// Writes that are under way at the same time.
const CONCURRENCY: usize = 16;

/// A deployment's status waits at most so long for the turns of its groups: what it says about a group that can never be
/// written must be heard too.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the next writes depend on.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When which status was written last, and whether that went well. Objects are known by their UIDs.
    writes: HashMap<String, LastWrite>,
    /// Since when deployments wait for the turns of their groups.
    waiting: HashMap<Key, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct LastWrite {
    at: Instant,
    failed: bool,
}

/// What of an object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Whether a group serves, goes or is lost, and its leader: nobody should wait for it.
    Turn,
    /// How far a group has come on its way to serving.
    Progress,
    /// What a deployment says of its groups.
    Counts,
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
    fn due<S: PartialEq>(&self, uid: &str, current: Option<&S>, wanted: &S, news: News) -> Due {
        if current == Some(wanted) {
            return Due::Nothing;
        }
        let Some(last) = self.writes.get(uid) else {
            return Due::Now;
        };
        let pause = match news {
            News::Turn if !last.failed => return Due::Now,
            News::Progress if !last.failed => self.interval(),
            News::Turn | News::Progress | News::Counts => INTERVAL,
        };
        if last.at.elapsed() < pause {
            Due::At(last.at + pause)
        } else {
            Due::Now
        }
    }

    /// What passes between two writes of an object's progress: longer when more objects were written in that time than
    /// share it.
    fn interval(&self) -> Duration {
        (INTERVAL.saturating_mul(
            u32::try_from(self.writes.len() / SHARED)
                .unwrap_or(u32::MAX)
                .max(1),
        ))
        .min(LONGEST_INTERVAL)
    }

    fn wrote(&mut self, uid: String, failed: bool) {
        let at = Instant::now();
        self.writes.insert(uid, LastWrite { at, failed });
    }

    /// Whether a deployment is to wait, of which a group's turn is `unwritten`.
    fn wait(&mut self, deployment: &Key, unwritten: bool) -> bool {
        if !unwritten {
            self.waiting.remove(deployment);
            return false;
        }
        let now = Instant::now();
        let since = *self.waiting.entry(deployment.clone()).or_insert(now);
        now.duration_since(since) < PATIENCE
    }

    /// Forgets objects whose interval has passed.
    fn forget(&mut self) {
        let interval = self.interval();
        self.writes.retain(|_, last| last.at.elapsed() < interval);
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
                throttle.due(uid, current, wanted.as_ref(), news(current, wanted))
            }
            Self::Deployment(object, wanted) => {
                throttle.due(uid, object.status.as_ref(), wanted.as_ref(), News::Counts)
            }
        }
    }

    /// Whether it is the turn of a group, which the status of its deployment waits for.
    fn is_turn(&self) -> bool {
        match self {
            Self::Group(object, wanted) => news(object.status.as_ref(), wanted) == News::Turn,
            Self::Deployment(..) => false,
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
                        .note(&namespace_of(&written), written.resource_version().as_deref());
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

/// Statuses that were written.
struct Written {
    deployment: Key,
    /// By UID whether it went well.
    objects: Vec<(String, bool)>,
    /// Whether the turn of a group could not be written.
    turn_failed: bool,
}

/// What of a number of statuses is to be written now.
#[derive(Default)]
struct Dues {
    now: Vec<(String, Job)>,
    /// When the first of the others is due.
    later: Option<Instant>,
    /// Whether the turn of a group is among the others.
    turn_later: bool,
}

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

    /// Whether a status is on its way to the API server.
    #[cfg(test)]
    pub fn is_writing(&self) -> bool {
        !self.underway.is_empty()
    }

    /// Takes in what was written since. Deployments whose status could not be written, and when to look at them again.
    pub fn settle(&mut self) -> Vec<(Key, Instant)> {
        self.throttle.forget();
        let done = std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner));
        let mut again = Vec::new();
        for written in done {
            self.underway.remove(&written.deployment);
            if written.turn_failed {
                self.throttle.wait(&written.deployment, true);
            }
            if written.objects.iter().any(|(_, succeeded)| !succeeded) {
                again.push((written.deployment, Instant::now() + INTERVAL));
            }
            for (uid, succeeded) in written.objects {
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
            let first = self.due(groups.remove(&key).unwrap_or_default());
            let then = self.due(vec![Job::Deployment(Arc::clone(object), Box::new(status))]);
            again.extend(
                first
                    .later
                    .into_iter()
                    .chain(then.later)
                    .min()
                    .map(|at| (key.clone(), at)),
            );
            // What is written now may fail, and is waited for as long as what failed before.
            let turns = first.turn_later || first.now.iter().any(|(_, job)| job.is_turn());
            let patient = self.throttle.wait(&key, turns);
            // Its groups are come back for, and it with them.
            let then = if first.turn_later && patient {
                Vec::new()
            } else {
                then.now
            };
            if !first.now.is_empty() || !then.is_empty() {
                self.underway.insert(key.clone());
                self.spawn(key, first.now, then, patient);
            }
        }
        again
    }

    fn due(&self, jobs: Vec<Job>) -> Dues {
        let mut dues = Dues::default();
        for job in jobs {
            let uid = job.uid();
            match job.due(&self.throttle, &uid) {
                Due::Nothing => {}
                Due::Now => dues.now.push((uid, job)),
                Due::At(at) => {
                    dues.turn_later |= job.is_turn();
                    dues.later = Some(dues.later.map_or(at, |later| later.min(at)));
                }
            }
        }
        dues
    }

    /// Writes what groups say, then what their deployment does: `then` is left out when a turn fails and the deployment is
    /// `patient`.
    fn spawn(&self, deployment: Key, first: Vec<(String, Job)>, then: Vec<(String, Job)>, patient: bool) {
        let (writer, metrics, room) = (
            Arc::clone(&self.writer),
            self.metrics.clone(),
            Arc::clone(&self.room),
        );
        let (done, wake) = (Arc::clone(&self.done), self.wake.clone());
        tokio::spawn(async move {
            let write = async |jobs: Vec<(String, Job)>| {
                let runs = jobs.into_iter().map(|(uid, job)| async {
                    // The semaphore is never closed.
                    let _place = room.acquire().await;
                    let is_turn = job.is_turn();
                    let succeeded = job.run(&writer, &metrics).await;
                    ((uid, succeeded), is_turn && !succeeded)
                });
                let results = futures::future::join_all(runs).await;
                let turn_failed = results.iter().any(|(_, turn_failed)| *turn_failed);
                let objects: Vec<(String, bool)> = results.into_iter().map(|(object, _)| object).collect();
                (objects, turn_failed)
            };
            let (mut objects, turn_failed) = write(first).await;
            if !(turn_failed && patient) {
                objects.extend(write(then).await.0);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push(Written {
                deployment,
                objects,
                turn_failed,
            });
            wake.wake();
        });
    }
}

/// Whether more than progress differs: what others act upon, and a deployment's counts follow from.
fn news(current: Option<&LlamaGroupStatus>, wanted: &LlamaGroupStatus) -> News {
    let turn = current.is_none_or(|current| {
        let goes_on = starts(current.phase) && starts(wanted.phase);
        (current.phase != wanted.phase && !goes_on)
            || current.ready != wanted.ready
            || current.leader_address != wanted.leader_address
    });
    if turn { News::Turn } else { News::Progress }
}

/// The group is on its way to serving.
const fn starts(phase: GroupPhase) -> bool {
    match phase {
        GroupPhase::Pending
        | GroupPhase::Placing
        | GroupPhase::Starting
        | GroupPhase::Loading
        | GroupPhase::Forming => true,
        GroupPhase::Serving | GroupPhase::Recovering | GroupPhase::Draining | GroupPhase::Failed => false,
    }
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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_most_once_a_second_and_only_where_it_differs() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.due("u", Some(&1), &1, News::Progress), Due::Nothing);
        assert_eq!(throttle.due("u", None, &1, News::Progress), Due::Now);
        throttle.wrote("u".to_owned(), false);
        let written = Instant::now();
        assert_eq!(
            throttle.due("u", Some(&1), &2, News::Progress),
            Due::At(written + INTERVAL)
        );
        assert_eq!(throttle.due("other", Some(&1), &2, News::Progress), Due::Now);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(throttle.due("u", Some(&1), &2, News::Progress), Due::Now);
        throttle.forget();
        assert!(throttle.writes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_make_progress_share_the_writes() {
        let mut throttle = Throttle::default();
        let (mut written, objects, seconds) = (0, 125, 120);
        for _ in 0..seconds * 10 {
            for object in 0..objects {
                let uid = object.to_string();
                if throttle.due(&uid, Some(&1), &2, News::Progress) == Due::Now {
                    throttle.wrote(uid, false);
                    written += 1;
                }
            }
            tokio::time::advance(INTERVAL / 10).await;
            throttle.forget();
        }
        let even = SHARED * seconds;
        assert!(
            (even / 2..=even * 3 / 2).contains(&written),
            "{written} in {seconds} s"
        );
        assert_eq!(throttle.due("0", Some(&1), &2, News::Turn), Due::Now);
        throttle.wrote("0".to_owned(), true);
        let again = Due::At(Instant::now() + INTERVAL);
        assert_eq!(
            throttle.due("0", Some(&1), &2, News::Progress),
            again,
            "a failed one is no progress"
        );
    }

    /// A deployment was once said to be ready a second before its group had the leader's address.
    #[tokio::test(start_paused = true)]
    async fn a_turn_waits_for_nothing() {
        let of = |phase| LlamaGroupStatus {
            phase,
            ..LlamaGroupStatus::default()
        };
        let (starting, recovering) = (of(GroupPhase::Starting), of(GroupPhase::Recovering));
        let (loading, serving) = (of(GroupPhase::Loading), of(GroupPhase::Serving));
        let mut throttle = Throttle::default();
        throttle.wrote("u".to_owned(), false);
        let due = |current, wanted| throttle.due("u", Some(current), wanted, news(Some(current), wanted));
        assert_eq!(due(&loading, &serving), Due::Now);
        let further = LlamaGroupStatus {
            loaded_bytes: 1,
            ..loading.clone()
        };
        assert!(matches!(due(&loading, &further), Due::At(_)));
        assert!(
            matches!(due(&starting, &loading), Due::At(_)),
            "it only comes nearer"
        );
        assert_eq!(due(&serving, &recovering), Due::Now);
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
        let due = |current, wanted| throttle.due("u", Some(current), wanted, news(Some(current), wanted));
        assert!(
            matches!(due(&loading, &serving), Due::At(_)),
            "it failed a moment ago"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_deployment_waits_for_its_groups_but_not_for_ever() {
        let mut throttle = Throttle::default();
        let [a, b] = ["a", "b"].map(|name| Key {
            namespace: "ns".into(),
            name: name.into(),
        });
        assert!(throttle.wait(&a, true) && throttle.wait(&b, true));
        tokio::time::advance(PATIENCE / 2).await;
        // The second has got through, and waits anew.
        assert!(throttle.wait(&a, true) && !throttle.wait(&b, false));
        assert!(throttle.wait(&a, true) && throttle.wait(&b, true));
        tokio::time::advance(PATIENCE / 2).await;
        assert!(!throttle.wait(&a, true) && throttle.wait(&b, true));
        assert!(!throttle.wait(&a, false) && !throttle.wait(&b, false));
        assert!(throttle.waiting.is_empty());
    }
}
