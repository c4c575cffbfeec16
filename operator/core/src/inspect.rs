//! When to look into a checkpoint, and what was seen.

use llamero_api::{
    CheckpointSummary,
    deployment::{CheckpointStatus, KvCacheDtype},
    labels,
    summary::InspectOutcome,
};

use crate::{
    backends,
    observed::{Deployment, InspectPod, PodPhase, Settings},
    placement::ANY_NODE,
    plan::{Action, EventKind, Key, PodRef, Step},
    revision,
    time::{self, Millis},
    trial,
    volumes::Mounts,
};

/// What a pod that reads headers asks for, where `worker.inspectResources` says nothing else.
pub const REQUESTS: [(&str, &str); 2] = [("cpu", "50m"), ("memory", "64Mi")];
/// How long after a failure a checkpoint is looked into again; the user may have mended it.
const RETRY_MILLIS: Millis = 60_000;
/// The one version of the summary's format that this code reads.
const FORMAT_VERSION: i32 = 1;

/// What is known of a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// For the status; absent while nothing was found out.
    pub checkpoint: Option<CheckpointStatus>,
    /// Why it takes long, or empty.
    pub waiting: String,
    /// When to look again.
    pub next_at: Option<Millis>,
}

impl Inspection {
    /// What the checkpoint is.
    #[must_use]
    pub fn summary(&self) -> Option<&CheckpointSummary> {
        self.checkpoint.as_ref()?.summary.as_ref()
    }
}

/// Looks into the checkpoint of a deployment once for each source and split; the answer is kept in its status.
#[must_use]
pub fn inspect(
    deployment: &Deployment,
    key: &Key,
    settings: &Settings,
    now: Millis,
    steps: &mut Vec<Step>,
) -> Inspection {
    let wanted = revision::inspect_key(&deployment.object.spec);
    let recorded = deployment
        .object
        .status
        .as_ref()
        .and_then(|s| s.checkpoint.clone())
        .filter(|c| c.key == wanted)
        .filter(|c| !outdated(deployment, c, settings))
        .map(|c| CheckpointStatus {
            inspected_at: time::not_ahead(&c.inspected_at, now),
            ..c
        });
    let last = deployment
        .object
        .status
        .as_ref()
        .and_then(|s| s.checkpoint.as_ref());
    let last_pod = last.and_then(|c| c.pod_uid.as_ref());
    let mut inspection = Inspection {
        checkpoint: recorded,
        ..Inspection::default()
    };
    let mut pod_exists = false;
    let made_with = revision::settings_digest(&revision::worker(&deployment.object.spec.worker, settings));

    for pod in deployment.inspect.iter().filter(|pod| !trial::is_one(pod)) {
        let of_wanted = pod.key == wanted;
        pod_exists |= of_wanted;
        let news = of_wanted && last_pod != Some(&pod.uid);
        if news && pod.phase.ended() {
            inspection.checkpoint = Some(read(pod, &wanted, now));
        } else if news {
            inspection.waiting = pod.waiting.clone().unwrap_or_default();
        }
        // It cannot start, or runs something else than it should: what the user has corrected meanwhile is tried at once.
        let corrected = news && !pod.phase.ended() && !pod.settings.is_empty() && pod.settings != made_with;
        if (!news || corrected) && !pod.terminating {
            steps.push(delete(key, pod, "the checkpoint's headers were read"));
        }
    }
    let retry_at = match &inspection.checkpoint {
        None => Some(now),
        Some(checkpoint) if checkpoint.summary.is_none() => {
            Some(time::millis(&checkpoint.inspected_at) + RETRY_MILLIS)
        }
        Some(_) => None,
    };
    if let Some(at) = retry_at.filter(|_| !pod_exists) {
        if at <= now {
            steps.push(Step {
                action: Action::CreateInspectPod {
                    deployment: key.clone(),
                    name: labels::inspect_pod_name(&key.name, &wanted),
                    key: wanted,
                    trial: None,
                    node: Mounts::of(deployment)
                        .node_of_own(&deployment.object.spec)
                        .unwrap_or(ANY_NODE)
                        .to_owned(),
                },
                reason: "Inspecting",
                message: "reading the checkpoint's headers".to_owned(),
                event: EventKind::Normal,
            });
        } else {
            inspection.next_at = Some(at);
        }
    }
    inspection
}

/// What stands in the status, for who may not look again.
#[must_use]
pub fn recorded(deployment: &Deployment) -> Inspection {
    let status = deployment.object.status.as_ref();
    Inspection {
        checkpoint: status.and_then(|status| status.checkpoint.clone()),
        ..Inspection::default()
    }
}

/// An image was refused for want of a backend, or promised what an older one may not know, and there is another one now.
fn outdated(deployment: &Deployment, checkpoint: &CheckpointStatus, settings: &Settings) -> bool {
    let spec = &deployment.object.spec;
    let refused = checkpoint
        .summary
        .as_ref()
        .is_some_and(|summary| backends::check(spec, summary).is_err());
    (refused || spec.engine.kv_dtype() == KvCacheDtype::Fp8)
        && checkpoint.image.is_some()
        && checkpoint.image != revision::worker(&spec.worker, settings).image
}

fn read(pod: &InspectPod, key: &str, now: Millis) -> CheckpointStatus {
    let text = pod.result.as_deref().unwrap_or_default().trim();
    let outcome = match serde_json::from_str::<InspectOutcome>(text) {
        Ok(InspectOutcome::Summary(summary)) if pod.phase == PodPhase::Succeeded => {
            match summary.format_version {
                FORMAT_VERSION => Ok(*summary),
                other => Err(format!(
                    "the worker image writes version {other} of the checkpoint summary, this operator reads {FORMAT_VERSION}: use images of one release"
                )),
            }
        }
        Ok(InspectOutcome::Error { error }) => Err(error),
        _ if text.is_empty() => Err("the inspect pod ended without a word: see its log".to_owned()),
        _ => Err(format!("the inspect pod ended with: {}", shorten(text))),
    };
    let (summary, error) = match outcome {
        Ok(summary) => (Some(summary), None),
        Err(error) => (None, Some(error)),
    };
    CheckpointStatus {
        key: key.to_owned(),
        pod_uid: Some(pod.uid.clone()),
        image: Some(pod.image.clone()).filter(|image| !image.is_empty()),
        image_id: pod.image_id.clone(),
        inspected_at: time::to_time(now),
        summary,
        error,
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(400).collect()
}

/// What an inspect pod that failed ended with, or why it never ran.
#[must_use]
pub fn last_words(pod: &InspectPod) -> String {
    let text = pod.result.as_deref().unwrap_or_default().trim();
    match serde_json::from_str::<InspectOutcome>(text) {
        Ok(InspectOutcome::Error { error }) => error,
        _ if text.is_empty() => pod
            .waiting
            .clone()
            .unwrap_or_else(|| format!("pod {} ended without a word: see its log", pod.name)),
        _ => shorten(text),
    }
}

/// Deletes an inspect pod at once: it has nothing to finish.
#[must_use]
pub fn delete(owner: &Key, pod: &InspectPod, why: &str) -> Step {
    Step {
        action: Action::DeletePod {
            owner: owner.clone(),
            pod: PodRef {
                key: Key {
                    namespace: owner.namespace.clone(),
                    name: pod.name.clone(),
                },
                uid: pod.uid.clone(),
            },
            grace_seconds: Some(0),
        },
        reason: "Inspected",
        message: why.to_owned(),
        event: EventKind::None,
    }
}
