//! The patch that pins a gated pod to its node and lifts its gate.

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PreferredSchedulingTerm,
};
use llamero_api::labels::PLACEMENT_GATE;
use llamero_core::placement::ANY_NODE;
use serde_json::json;

/// Why a pod cannot be bound.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BindError {
    /// Its gate is gone already.
    #[error("the pod has no scheduling gate any more")]
    NotGated,
    /// The patch could not be written down.
    #[error("the patch that lifts a scheduling gate is malformed: {0}")]
    Malformed(String),
}

/// Operations that happen together or not at all: the pod is still the one we mean, its affinity is narrowed to `node` (unless that is
/// [`ANY_NODE`]), its gate is still where we saw it, the gate goes. Nothing else in a gated pod may change, and affinity only to something narrower.
///
/// # Errors
/// When the pod has no such gate.
pub fn bind_patch(pod: &Pod, uid: &str, node: &str) -> Result<json_patch::Patch, BindError> {
    let spec = pod.spec.as_ref().ok_or(BindError::NotGated)?;
    let gates = spec.scheduling_gates.as_deref().unwrap_or_default();
    let gate = gates
        .iter()
        .position(|gate| gate.name == PLACEMENT_GATE)
        .ok_or(BindError::NotGated)?;
    let mut operations = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
    if node != ANY_NODE {
        let affinity = pinned(spec.affinity.as_ref(), node);
        operations.push(json!({"op": "add", "path": "/spec/affinity", "value": affinity}));
    }
    let path = format!("/spec/schedulingGates/{gate}");
    operations.push(json!({"op": "test", "path": format!("{path}/name"), "value": PLACEMENT_GATE}));
    operations.push(json!({"op": "remove", "path": path}));
    serde_json::from_value(operations.into()).map_err(|error| BindError::Malformed(error.to_string()))
}

/// The affinity, and one node before all others.
#[must_use]
pub fn drawn(affinity: Option<&Affinity>, node: &str) -> Affinity {
    let mut affinity = affinity.cloned().unwrap_or_default();
    let preferred = affinity
        .node_affinity
        .get_or_insert_default()
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    preferred.push(PreferredSchedulingTerm {
        weight: 100,
        preference: NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![field]),
        },
    });
    affinity
}

/// The affinity, narrowed to one node. Terms are alternatives, so each of them gets the node's name.
#[must_use]
pub fn pinned(affinity: Option<&Affinity>, node: &str) -> Affinity {
    let mut affinity = affinity.cloned().unwrap_or_default();
    let required = affinity
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector {
            node_selector_terms: Vec::new(),
        });
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields
            .get_or_insert_default()
            .push(NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            });
    }
    affinity
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn written(pod: &Pod) -> Value {
        serde_json::to_value(bind_patch(pod, "uid-1", "node-a").unwrap()).unwrap()
    }

    #[test]
    fn pins_and_lifts_the_gate_of_this_very_pod() {
        let pod = pod(
            json!({"containers": [], "schedulingGates": [{"name": "other"}, {"name": "llamero.dev/placement"}]}),
        );
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]});
        assert_eq!(
            written(&pod),
            json!([
                {"op": "test", "path": "/metadata/uid", "value": "uid-1"},
                {"op": "add", "path": "/spec/affinity", "value": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}},
                {"op": "test", "path": "/spec/schedulingGates/1/name", "value": "llamero.dev/placement"},
                {"op": "remove", "path": "/spec/schedulingGates/1"},
            ])
        );
    }

    #[test]
    fn narrows_every_alternative_of_the_user() {
        let zone =
            |zone: &str| json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]});
        let pod = pod(json!({
            "containers": [],
            "schedulingGates": [{"name": "llamero.dev/placement"}],
            "affinity": {
                "podAntiAffinity": {},
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone("a"), zone("b")]}},
            },
        }));
        let affinity = written(&pod)[1]["value"].clone();
        assert_eq!(affinity["podAntiAffinity"], json!({}));
        let terms =
            &affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        for (index, zone) in ["a", "b"].into_iter().enumerate() {
            assert_eq!(terms[index]["matchExpressions"][0]["values"], json!([zone]));
            assert_eq!(terms[index]["matchFields"][0]["values"], json!(["node-a"]));
        }
    }

    #[test]
    fn where_the_scheduler_chooses_only_the_gate_goes() {
        let pod = pod(json!({"containers": [], "schedulingGates": [{"name": "llamero.dev/placement"}]}));
        let patch = serde_json::to_value(bind_patch(&pod, "u", ANY_NODE).unwrap()).unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "test", "path": "/metadata/uid", "value": "u"},
                {"op": "test", "path": "/spec/schedulingGates/0/name", "value": "llamero.dev/placement"},
                {"op": "remove", "path": "/spec/schedulingGates/0"},
            ])
        );
    }

    #[test]
    fn an_ungated_pod_is_left_alone() {
        assert_eq!(
            bind_patch(&pod(json!({"containers": []})), "u", "n").unwrap_err(),
            BindError::NotGated
        );
    }
}
