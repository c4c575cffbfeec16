//! Worker and inspect pods, as the decisions take them.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus};
use kube::ResourceExt as _;
use llamero_api::labels;
use llamero_core::{
    observed::{self, PodPhase},
    resources,
    time::Millis,
};

use crate::build::parts;

/// How far the pod is for us: as its own container is, once that has ended. A container that somebody injected may run on, and must not
/// keep a dead member alive or the answer of an inspect pod unread.
#[must_use]
pub fn phase(pod: &Pod) -> PodPhase {
    let own = pod.status.as_ref().and_then(terminated);
    match (raw_phase(pod), own) {
        (PodPhase::Pending | PodPhase::Running, Some(state)) if state.exit_code == 0 => PodPhase::Succeeded,
        (PodPhase::Pending | PodPhase::Running, Some(_)) => PodPhase::Failed,
        (phase, _) => phase,
    }
}

/// `status.phase`: whether anything of the pod still takes room on its node.
#[must_use]
pub fn raw_phase(pod: &Pod) -> PodPhase {
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        _ => PodPhase::Pending,
    }
}

/// `status.podIP`.
#[must_use]
pub fn ip(pod: &Pod) -> Option<&str> {
    pod.status
        .as_ref()
        .and_then(|status| status.pod_ip.as_deref())
        .filter(|ip| !ip.is_empty())
}

/// Whether the condition is True.
#[must_use]
pub fn condition(pod: &Pod, type_: &str) -> bool {
    conditions(pod, type_).is_some_and(|condition| condition.status == "True")
}

fn conditions<'a>(pod: &'a Pod, type_: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// A pod of a group, without a report; nothing when its labels do not say which member it is.
#[must_use]
pub fn member(pod: &Pod) -> Option<observed::Pod> {
    let number = |label: &str| pod.labels().get(label).and_then(|value| value.parse().ok());
    let gated = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_ref())
        .is_some_and(|gates| gates.iter().any(|gate| gate.name == labels::PLACEMENT_GATE));
    Some(observed::Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        index: number(labels::MEMBER)?,
        attempt: number(labels::ATTEMPT)?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        gated,
        request: pod.spec.as_ref().filter(|_| gated).map(resources::of_pod),
        phase: phase(pod),
        deletion: pod
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|_| pod.metadata.deletion_grace_period_seconds.unwrap_or(0)),
        ready: condition(pod, "Ready"),
        ip: ip(pod).map(str::to_owned),
        evicted: condition(pod, "DisruptionTarget"),
        pressure: pressed(pod),
        exit: pod.status.as_ref().and_then(exit),
        waiting: pod.status.as_ref().and_then(waiting),
        unschedulable: unschedulable(pod),
        report: None,
        unheard_since: None,
        scheduled_at: scheduled_at(pod),
        started_at: pod.status.as_ref().and_then(started_at),
    })
}

/// A pod that holds room; nothing when its labels do not say for whom.
#[must_use]
pub fn placeholder(pod: &Pod) -> Option<observed::Placeholder> {
    Some(observed::Placeholder {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        index: pod.labels().get(labels::PLACEHOLDER)?.parse().ok()?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ended: raw_phase(pod).ended(),
    })
}

/// The kubelet ended it because its node ran out of something; not because the node shuts down, which it says with the same condition.
fn pressed(pod: &Pod) -> bool {
    let by_kubelet = conditions(pod, "DisruptionTarget").is_some_and(|condition| {
        condition.status == "True" && condition.reason.as_deref() == Some("TerminationByKubelet")
    });
    let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
    by_kubelet && reason == Some("Evicted")
}

/// A pod that reads a checkpoint's headers.
#[must_use]
pub fn inspect_pod(pod: &Pod) -> observed::InspectPod {
    let status = pod.status.as_ref();
    observed::InspectPod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        key: pod.labels().get(labels::INSPECT).cloned().unwrap_or_default(),
        phase: phase(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        image: pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .find(|container| container.name == parts::INSPECT)
            .and_then(|container| container.image.clone())
            .unwrap_or_default(),
        settings: pod
            .annotations()
            .get(labels::SETTINGS)
            .cloned()
            .unwrap_or_default(),
        image_id: status
            .and_then(own)
            .map(|container| container.image_id.clone())
            .filter(|id| !id.is_empty()),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        result: status
            .and_then(terminated)
            .map(|state| state.message.clone().unwrap_or_default()),
        finished_at: status
            .and_then(terminated)
            .and_then(|state| state.finished_at.as_ref())
            // Refused before a container could run.
            .or(pod.metadata.creation_timestamp.as_ref())
            .map(|time| time.0.as_millisecond()),
        created_at: pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0.as_millisecond()),
        waiting: unschedulable(pod)
            .or_else(|| status.and_then(waiting))
            .or_else(|| {
                // Refused by the kubelet before a container could run.
                status
                    .filter(|_| phase(pod) == PodPhase::Failed)
                    .and_then(|status| status.message.clone())
            }),
    }
}

/// Our own container.
fn own(status: &PodStatus) -> Option<&ContainerStatus> {
    let mut containers = status.container_statuses.iter().flatten();
    containers.find(|container| parts::CONTAINERS.contains(&container.name.as_str()))
}

fn state(status: &PodStatus) -> Option<&ContainerState> {
    own(status)?.state.as_ref()
}

/// States of all containers, ours first: an injected one that does not start keeps ours from starting too.
fn states(status: &PodStatus) -> impl Iterator<Item = &ContainerState> {
    let all = || {
        status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .flatten()
    };
    state(status)
        .into_iter()
        .chain(all().filter_map(|container| container.state.as_ref()))
}

fn terminated(status: &PodStatus) -> Option<&ContainerStateTerminated> {
    state(status)?.terminated.as_ref()
}

fn exit(status: &PodStatus) -> Option<observed::Exit> {
    if let Some(state) = terminated(status) {
        return Some(observed::Exit {
            code: state.exit_code,
            reason: state.reason.clone().unwrap_or_default(),
            message: state.message.clone().unwrap_or_default().trim().to_owned(),
        });
    }
    // The kubelet refused the pod (OutOfcpu, UnexpectedAdmissionError) or lost it with its node: no container says why.
    (status.phase.as_deref() == Some("Failed")).then(|| observed::Exit {
        code: -1,
        reason: status.reason.clone().unwrap_or_else(|| "Failed".to_owned()),
        message: status.message.clone().unwrap_or_default(),
    })
}

/// Why the container does not start; nothing while it is on its way.
fn waiting(status: &PodStatus) -> Option<String> {
    let waiting = states(status).find_map(|state| state.waiting.as_ref())?;
    let reason = waiting.reason.as_deref().unwrap_or("Waiting");
    match (
        reason,
        waiting.message.as_deref().filter(|message| !message.is_empty()),
    ) {
        ("ContainerCreating" | "PodInitializing", None) => None,
        (reason, None) => Some(reason.to_owned()),
        (reason, Some(message)) => Some(format!("{reason}: {message}")),
    }
}

fn scheduled_at(pod: &Pod) -> Option<Millis> {
    let condition = conditions(pod, "PodScheduled").filter(|condition| condition.status == "True")?;
    Some(condition.last_transition_time.as_ref()?.0.as_millisecond())
}

fn started_at(status: &PodStatus) -> Option<Millis> {
    let running = state(status)?.running.as_ref()?;
    Some(running.started_at.as_ref()?.0.as_millisecond())
}

fn unschedulable(pod: &Pod) -> Option<String> {
    let condition = conditions(pod, "PodScheduled")?;
    let said = condition.status == "False" && condition.reason.as_deref() != Some("SchedulingGated");
    said.then(|| condition.message.clone().or_else(|| condition.reason.clone()))
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "d-0-1-2", "uid": "u",
                "labels": {"llamero.dev/member": "1", "llamero.dev/attempt": "2", "llamero.dev/inspect": "k"},
            },
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_running_pod() {
        let pod = pod(
            json!({"containers": [], "nodeName": "n"}),
            json!({
                "phase": "Running", "podIP": "10.0.0.9",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": {"running": {}}}],
            }),
        );
        let expected = observed::Pod {
            name: "d-0-1-2".into(),
            uid: "u".into(),
            index: 1,
            attempt: 2,
            node: Some("n".into()),
            phase: PodPhase::Running,
            ready: true,
            ip: Some("10.0.0.9".into()),
            ..observed::Pod::default()
        };
        assert_eq!(member(&pod), Some(expected));
    }

    #[test]
    fn when_a_pod_was_bound_and_began_to_run() {
        let told = |scheduled: &str| {
            let pod = pod(
                json!({"containers": [], "nodeName": "n"}),
                json!({
                    "phase": "Running",
                    "conditions": [{"type": "PodScheduled", "status": scheduled, "lastTransitionTime": "1970-01-01T00:00:07Z"}],
                    "containerStatuses": [
                        {"name": "injected", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                            "state": {"running": {"startedAt": "1970-01-01T00:00:08Z"}}},
                        {"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                            "state": {"running": {"startedAt": "1970-01-01T00:00:09Z"}}}],
                }),
            );
            let seen = member(&pod).unwrap();
            (seen.scheduled_at, seen.started_at)
        };
        assert_eq!(told("True"), (Some(7_000), Some(9_000)));
        assert_eq!(told("False"), (None, Some(9_000)));
    }

    #[test]
    fn a_gated_pod_is_not_called_unschedulable() {
        let gated = pod(
            json!({"containers": [], "schedulingGates": [{"name": "llamero.dev/placement"}]}),
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]}),
        );
        let seen = member(&gated).unwrap();
        assert!(seen.gated);
        assert_eq!(seen.unschedulable, None);
        let full = pod(
            json!({"containers": []}),
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available"}]}),
        );
        assert_eq!(
            member(&full).unwrap().unschedulable.as_deref(),
            Some("0/3 nodes are available")
        );
    }

    #[test]
    fn why_a_pod_ended_or_waits() {
        let state = |state: Value| {
            json!({"phase": "Failed", "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": state}]})
        };
        let killed = pod(
            json!({"containers": []}),
            state(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
        );
        let exit = member(&killed).unwrap().exit.unwrap();
        assert_eq!((exit.code, exit.reason.as_str()), (137, "OOMKilled"));
        assert_eq!(inspect_pod(&killed).result.as_deref(), Some(""));

        let pulling = pod(
            json!({"containers": []}),
            state(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})),
        );
        assert_eq!(
            member(&pulling).unwrap().waiting.as_deref(),
            Some("ImagePullBackOff: no such image")
        );
        let creating = pod(
            json!({"containers": []}),
            state(json!({"waiting": {"reason": "ContainerCreating"}})),
        );
        assert_eq!(member(&creating).unwrap().waiting, None);

        let refused = pod(
            json!({"containers": []}),
            json!({"phase": "Failed", "reason": "OutOfcpu", "message": "no cpu"}),
        );
        let exit = member(&refused).unwrap().exit.unwrap();
        assert_eq!(
            (exit.code, exit.reason.as_str(), exit.message.as_str()),
            (-1, "OutOfcpu", "no cpu")
        );
    }

    #[test]
    fn a_node_s_pressure_is_told_from_other_evictions() {
        let ended = |by: &str, reason: &str| {
            let pod = pod(
                json!({"containers": [], "nodeName": "n"}),
                json!({"phase": "Failed", "reason": reason, "message": "The node was low on resource: memory.",
                    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": by}]}),
            );
            let seen = member(&pod).unwrap();
            (seen.evicted, seen.pressure, seen.exit.unwrap().message)
        };
        let low = "The node was low on resource: memory.".to_owned();
        assert_eq!(
            ended("TerminationByKubelet", "Evicted"),
            (true, true, low.clone())
        );
        assert_eq!(
            ended("TerminationByKubelet", "Terminated"),
            (true, false, low.clone())
        );
        assert_eq!(ended("EvictionByEvictionAPI", "Evicted"), (true, false, low));
    }

    #[test]
    fn an_injected_container_keeps_no_dead_member_alive() {
        let with_sidecar = |exit_code: i32, own: &str| {
            pod(
                json!({"containers": [], "nodeName": "n"}),
                json!({"phase": "Running", "podIP": "10.0.0.9", "containerStatuses": [
                    {"name": "proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
                    {"name": own, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                        "state": {"terminated": {"exitCode": exit_code, "message": "{}"}}},
                ]}),
            )
        };
        let dead = member(&with_sidecar(3, "worker")).unwrap();
        assert_eq!(
            (dead.phase, dead.exit.map(|exit| exit.code)),
            (PodPhase::Failed, Some(3))
        );
        let read = inspect_pod(&with_sidecar(0, "inspect"));
        assert_eq!(
            (read.phase, read.result.as_deref()),
            (PodPhase::Succeeded, Some("{}"))
        );
        // It still takes its room, until all of it has ended.
        assert_eq!(raw_phase(&with_sidecar(3, "worker")), PodPhase::Running);
        // And an injected container that has ended is not the worker's end.
        let job = member(&with_sidecar(0, "setup")).unwrap();
        assert_eq!((job.phase, job.exit), (PodPhase::Running, None));
    }

    #[test]
    fn a_pod_without_a_member_label_is_none_of_ours() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "x"}})).unwrap();
        assert_eq!(member(&pod), None);
    }
}
