//! What is dropped from objects before they are cached: most pods of a cluster are not ours, and of those only what they take from
//! their node matters.

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodCondition, PodSpec, PodStatus};
use llamero_api::labels;

/// Whether the pod belongs to a group, or was started to look at a checkpoint.
#[must_use]
pub fn is_ours(pod: &Pod) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(labels::DEPLOYMENT))
}

/// Keeps our own pods nearly whole, of others what placement needs and by which gateways are found.
pub fn slim_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    if is_ours(pod) {
        return;
    }
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    pod.metadata.finalizers = None;
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            containers: spec.containers.into_iter().map(slim_container).collect(),
            init_containers: spec
                .init_containers
                .map(|list| list.into_iter().map(slim_container).collect()),
            overhead: spec.overhead,
            resources: spec.resources,
            priority: spec.priority,
            scheduling_gates: spec.scheduling_gates,
            ..PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus {
            phase: status.phase,
            nominated_node_name: status.nominated_node_name,
            pod_ip: status.pod_ip,
            conditions: status.conditions.map(|list| {
                list.into_iter()
                    .filter(|condition| condition.type_ == "Ready")
                    .map(|condition| PodCondition {
                        type_: condition.type_,
                        status: condition.status,
                        ..PodCondition::default()
                    })
                    .collect()
            }),
            ..PodStatus::default()
        });
    }
}

fn slim_container(container: Container) -> Container {
    Container {
        name: container.name,
        resources: container.resources,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

/// Drops the list of images and the volumes, the bulk of a node.
pub fn slim_node(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.images = None;
        status.volumes_attached = None;
        status.volumes_in_use = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(labels: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "labels": labels, "annotations": {"a": "b"}},
            "spec": {
                "nodeName": "n", "priority": 5,
                "containers": [{"name": "c", "image": "i", "env": [{"name": "X"}], "resources": {"requests": {"cpu": "1"}}}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]},
        }))
        .unwrap()
    }

    #[test]
    fn foreign_pods_keep_only_what_placement_needs() {
        let mut pod = pod(json!({"app": "x"}));
        slim_pod(&mut pod);
        assert_eq!(
            serde_json::to_value(&pod).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "p", "uid": "u", "labels": {"app": "x"}},
                "spec": {"nodeName": "n", "priority": 5, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
            })
        );
    }

    #[test]
    fn our_pods_stay_whole() {
        let mut ours = pod(json!({"llamero.dev/deployment": "d"}));
        let before = ours.clone();
        slim_pod(&mut ours);
        assert_eq!(ours, before);
    }
}
