//! A node, as the decisions take it.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use llamero_core::{observed, resources::Resources};

/// The node; what is used on it is counted elsewhere.
#[must_use]
pub fn node(node: Node) -> observed::Node {
    let name = node.name_any();
    let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
    observed::Node {
        name,
        labels: node.metadata.labels.unwrap_or_default(),
        taints: spec.taints.unwrap_or_default(),
        ready: status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        unschedulable: spec.unschedulable.unwrap_or(false),
        allocatable: status
            .allocatable
            .as_ref()
            .map(Resources::from_quantities)
            .unwrap_or_default(),
        used: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use llamero_core::resources::{CPU, PODS};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_with_its_room() {
        let object: Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"zone": "z"}},
            "spec": {"unschedulable": true, "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "2", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let seen = node(object);
        assert!(seen.ready && seen.unschedulable);
        assert_eq!(seen.allocatable, Resources::new().with(CPU, 2000).with(PODS, 110));
        assert_eq!(seen.taints.len(), 1);
        assert!(seen.used.is_empty());
    }
}
