//! Status of deployments and groups: server-side applied where it differs. Progress is written at most once a second for
//! an object, a group's new phase at once, and groups before deployments: who reads a deployment's counts finds groups
//! that say the same.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use futures::StreamExt as _;
use kube::{Resource, ResourceExt as _, api::Patch, core::NamespaceResourceScope};
use llamero_api::{LlamaDeployment, LlamaGroup, deployment::LlamaDeploymentStatus, group::LlamaGroupStatus};
use llamero_core::{Observed, status::Reports};
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
enum Job<'a> {
    Group(&'a LlamaGroup, &'a LlamaGroupStatus),
    Deployment(&'a LlamaDeployment, &'a LlamaDeploymentStatus),
}

impl Job<'_> {
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
                throttle.due(uid, current, wanted, phase_differs(current, wanted))
            }
            Self::Deployment(object, wanted) => throttle.due(uid, object.status.as_ref(), wanted, false),
        }
    }

    async fn run(self, writer: &Writer, metrics: &Metrics) -> bool {
        let (result, subject) = match self {
            Self::Group(object, wanted) => {
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
    let mut again: Option<Instant> = None;
    let mut sooner = |at: Instant| again = Some(again.map_or(at, |again| again.min(at)));
    for jobs in [group_jobs(observed, reports), deployment_jobs(observed, reports)] {
        let mut runs = Vec::new();
        for job in jobs {
            let uid = job.uid();
            match job.due(throttle, &uid) {
                Due::Nothing => {}
                Due::At(at) => sooner(at),
                Due::Now => runs.push(async { (uid, job.run(writer, metrics).await) }),
            }
        }
        let results: Vec<(String, bool)> = futures::stream::iter(runs)
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        for (uid, succeeded) in results {
            if !succeeded {
                sooner(Instant::now() + INTERVAL);
            }
            throttle.wrote(uid, !succeeded);
        }
    }
    again
}

fn group_jobs<'a>(observed: &'a Observed, reports: &'a Reports) -> Vec<Job<'a>> {
    let groups = observed
        .deployments
        .iter()
        .flat_map(|deployment| &deployment.groups);
    groups
        .filter_map(|group| {
            let object = group.object.as_ref();
            let wanted = reports.groups.get(&key_of(object))?;
            Some(Job::Group(object, wanted))
        })
        .collect()
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
