//! Status of deployments and groups: server-side applied where it differs, at most once a second for an object.

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

/// At most one write of an object's status in this time.
const INTERVAL: Duration = Duration::from_secs(1);
/// Writes that are under way at the same time.
const CONCURRENCY: usize = 8;

/// When which object's status was written last.
#[derive(Debug, Default)]
pub struct Throttle(HashMap<String, Instant>);

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
    fn due<S: PartialEq>(&self, uid: &str, current: Option<&S>, wanted: &S) -> Due {
        if current == Some(wanted) {
            return Due::Nothing;
        }
        match self.0.get(uid).map(|at| *at + INTERVAL) {
            Some(at) if at > Instant::now() => Due::At(at),
            _ => Due::Now,
        }
    }

    /// Forgets objects whose interval has passed.
    fn forget(&mut self) {
        self.0.retain(|_, at| at.elapsed() < INTERVAL);
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
            Self::Group(object, wanted) => throttle.due(uid, object.status.as_ref(), wanted),
            Self::Deployment(object, wanted) => throttle.due(uid, object.status.as_ref(), wanted),
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
    let mut runs = Vec::new();
    for job in jobs(observed, reports) {
        let uid = job.uid();
        match job.due(throttle, &uid) {
            Due::Nothing => {}
            Due::At(at) => sooner(at),
            Due::Now => {
                throttle.0.insert(uid, Instant::now());
                runs.push(job.run(writer, metrics));
            }
        }
    }
    let results: Vec<bool> = futures::stream::iter(runs)
        .buffer_unordered(CONCURRENCY)
        .collect()
        .await;
    if results.contains(&false) {
        sooner(Instant::now() + INTERVAL);
    }
    again
}

fn jobs<'a>(observed: &'a Observed, reports: &'a Reports) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    for deployment in &observed.deployments {
        for group in &deployment.groups {
            let object = group.object.as_ref();
            jobs.extend(
                reports
                    .groups
                    .get(&key_of(object))
                    .map(|wanted| Job::Group(object, wanted)),
            );
        }
        let object = deployment.object.as_ref();
        jobs.extend(
            reports
                .deployments
                .get(&key_of(object))
                .map(|wanted| Job::Deployment(object, wanted)),
        );
    }
    jobs
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
        assert_eq!(throttle.due("u", Some(&1), &1), Due::Nothing);
        assert_eq!(throttle.due("u", None, &1), Due::Now);
        throttle.0.insert("u".to_owned(), Instant::now());
        let written = Instant::now();
        assert_eq!(throttle.due("u", Some(&1), &2), Due::At(written + INTERVAL));
        assert_eq!(throttle.due("other", Some(&1), &2), Due::Now);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(throttle.due("u", Some(&1), &2), Due::Now);
        throttle.forget();
        assert!(throttle.0.is_empty());
    }
}
