//! Nodes, and what is used on them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use llamero_api::labels;
use llamero_core::{
    observed,
    resources::{self, Resources},
};

use super::pods;

/// Nodes in the order of their names.
#[must_use]
pub fn nodes(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Vec<observed::Node> {
    let mut used = used(pods);
    let mut seen: Vec<_> = nodes
        .iter()
        .map(|node| self::node(node, used.remove(&node.name_any())))
        .collect();
    seen.sort_by(|one, other| one.name.cmp(&other.name));
    seen
}

fn node(node: &Node, used: Option<BTreeMap<i32, Resources>>) -> observed::Node {
    let status = node.status.as_ref();
    observed::Node {
        name: node.name_any(),
        labels: node.labels().clone(),
        taints: node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default(),
        ready: status
            .and_then(|status| status.conditions.as_ref())
            .is_some_and(|list| {
                list.iter()
                    .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            }),
        unschedulable: node
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or(false),
        allocatable: status
            .and_then(|status| status.allocatable.as_ref())
            .map(Resources::from_quantities)
            .unwrap_or_default(),
        used: used.unwrap_or_default(),
    }
}

/// By node and priority: what bound pods take until they have ended, and what pods nominated to a node are about to take. Members of
/// groups that are not bound yet are left out: their reservations are in the groups.
fn used(pods: &[Arc<Pod>]) -> HashMap<String, BTreeMap<i32, Resources>> {
    let mut used: HashMap<String, BTreeMap<i32, Resources>> = HashMap::new();
    for pod in pods {
        let Some(spec) = &pod.spec else { continue };
        if pods::raw_phase(pod).ended() {
            continue;
        }
        let bound = spec.node_name.as_deref().filter(|name| !name.is_empty());
        let nominated = || {
            let name = pod
                .status
                .as_ref()
                .and_then(|status| status.nominated_node_name.as_deref());
            name.filter(|name| !name.is_empty() && !pod.labels().contains_key(labels::GROUP_NAME))
        };
        if let Some(node) = bound.or_else(nominated) {
            let priority = spec.priority.unwrap_or(0);
            used.entry(node.to_owned())
                .or_default()
                .entry(priority)
                .or_default()
                .add(&resources::of_pod(spec));
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use llamero_core::resources::{CPU, PODS};
    use serde_json::{Value, json};

    use super::*;

    fn pod(node: Option<&str>, priority: i32, labels: Value, status: Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "p", "labels": labels},
                "spec": {"nodeName": node, "priority": priority,
                    "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]},
                "status": status,
            }))
            .unwrap(),
        )
    }

    #[test]
    fn used_is_bound_and_nominated_by_priority_without_the_ended() {
        let ours = json!({"llamero.dev/group": "g"});
        let pods = [
            pod(Some("a"), 0, json!({}), json!({"phase": "Running"})),
            pod(Some("a"), 0, ours.clone(), json!({"phase": "Pending"})),
            pod(Some("a"), 7, json!({}), json!({"phase": "Running"})),
            pod(Some("a"), 0, json!({}), json!({"phase": "Succeeded"})),
            pod(
                None,
                0,
                json!({}),
                json!({"phase": "Pending", "nominatedNodeName": "b"}),
            ),
            pod(
                None,
                0,
                ours,
                json!({"phase": "Pending", "nominatedNodeName": "b"}),
            ),
            pod(None, 0, json!({}), json!({"phase": "Pending"})),
        ];
        let used = used(&pods);
        assert_eq!(used["a"][&0], Resources::new().with(CPU, 1000).with(PODS, 2));
        assert_eq!(used["a"][&7], Resources::new().with(CPU, 500).with(PODS, 1));
        assert_eq!(used["b"][&0], Resources::new().with(CPU, 500).with(PODS, 1));
    }

    #[test]
    fn a_node_with_its_room() {
        let object: Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"zone": "z"}},
            "spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "2", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let seen = &nodes(&[Arc::new(object)], &[])[0];
        assert!(seen.ready && seen.unschedulable);
        assert_eq!(seen.allocatable, Resources::new().with(CPU, 2000).with(PODS, 110));
        assert_eq!(seen.taints.len(), 1);
        assert!(seen.used.is_empty());
    }
}
