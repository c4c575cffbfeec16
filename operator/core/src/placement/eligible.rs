//! Taints, selectors and affinity: whether pods of a template may run on a node at all. Nodes with devices often bear a taint with the name of
//! the resource, so that others stay away: pods that ask for it tolerate it, as the admission plugin ExtendedResourceToleration would have it.

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration,
};
use llamero_api::{deployment::Worker, group::GroupTemplate};

use crate::{devices, observed::Node, sizing::DEVICE_WORKSPACE};

/// Why a node is out of the question, in a few words about such nodes.
///
/// # Errors
/// The reason.
pub fn check(template: &GroupTemplate, node: &Node) -> Result<(), String> {
    if !node.ready {
        return Err("are not ready".to_owned());
    }
    if node.unschedulable {
        return Err("are cordoned".to_owned());
    }
    let (worker, resource) = (&template.worker, template.accelerator_resource.as_deref());
    if let Some(taint) = node
        .taints
        .iter()
        .find(|taint| !is_tolerated(worker, resource, taint))
    {
        return Err(format!("have the taint {} that is not tolerated", taint.key));
    }
    chosen(worker, node)?;
    if resource.is_some_and(|resource| has_small_devices(template, resource, node)) {
        return Err("have devices with less memory than a rank was sized for".to_owned());
    }
    Ok(())
}

/// How Kubernetes' own taints begin, which say what state a node is in and come and go with it.
const STATE: &str = "node.kubernetes.io/";

/// Whether the node is one that pods may use, whatever state it is in just now.
#[must_use]
pub fn belongs(worker: &Worker, resource: Option<&str>, node: &Node) -> bool {
    let mut lasting = node.taints.iter().filter(|taint| !taint.key.starts_with(STATE));
    lasting.all(|taint| is_tolerated(worker, resource, taint)) && chosen(worker, node).is_ok()
}

fn is_tolerated(worker: &Worker, resource: Option<&str>, taint: &Taint) -> bool {
    let own = taint.effect == "NoSchedule" && resource == Some(taint.key.as_str());
    let keeps_away = matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    let mut tolerations = worker.tolerations.iter();
    own || !keeps_away || tolerations.any(|toleration| tolerates(toleration, taint))
}

/// Whether the devices are clearly smaller than what ranks were sized for: by more than a tenth, as people state round numbers.
fn has_small_devices(template: &GroupTemplate, resource: &str, node: &Node) -> bool {
    let sized = template
        .weight_bytes_per_rank
        .saturating_add(template.kv_bytes_per_rank)
        .saturating_add(DEVICE_WORKSPACE);
    devices::whole(node, resource).is_some_and(|bytes| bytes < sized - sized / 10)
}

/// Whether the user's selector and affinity choose the node.
fn chosen(worker: &Worker, node: &Node) -> Result<(), String> {
    if let Some((key, value)) = worker
        .node_selector
        .iter()
        .find(|(key, value)| node.labels.get(*key) != Some(*value))
    {
        return Err(format!("lack the label {key}={value} of worker.nodeSelector"));
    }
    let required = worker
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    match required {
        Some(selector) if !is_selected(selector, node) => {
            Err("do not match the required node affinity".to_owned())
        }
        _ => Ok(()),
    }
}

/// Whether one of the selector's terms matches the node.
#[must_use]
pub fn is_selected(selector: &NodeSelector, node: &Node) -> bool {
    let mut terms = selector.node_selector_terms.iter();
    terms.any(|term| term_matches(term, node))
}

/// <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    (effect.is_empty() || effect == taint.effect)
        && ((key.is_empty() && exists) || key == taint.key)
        && (exists
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}

/// A term without any requirement matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|r| requirement(r, node.labels.get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && requirement(r, Some(&node.name)))
}

fn requirement(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = || values.first().and_then(|v| number(v));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value
            .and_then(number)
            .zip(bound())
            .is_some_and(|(v, bound)| v > bound),
        "Lt" => value
            .and_then(number)
            .zip(bound())
            .is_some_and(|(v, bound)| v < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            ..Taint::default()
        }
    }

    fn toleration(
        key: Option<&str>,
        operator: Option<&str>,
        value: Option<&str>,
        effect: Option<&str>,
    ) -> Toleration {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Toleration {
            key: own(key),
            operator: own(operator),
            value: own(value),
            effect: own(effect),
            ..Toleration::default()
        }
    }

    #[test]
    fn tolerations_match_as_documented() {
        let gpu = taint("nvidia.com/gpu", "present", "NoSchedule");
        assert!(tolerates(&toleration(None, Some("Exists"), None, None), &gpu));
        assert!(tolerates(
            &toleration(Some("nvidia.com/gpu"), Some("Exists"), None, Some("NoSchedule")),
            &gpu
        ));
        assert!(tolerates(
            &toleration(Some("nvidia.com/gpu"), None, Some("present"), None),
            &gpu
        ));
        assert!(!tolerates(
            &toleration(Some("nvidia.com/gpu"), None, Some("absent"), None),
            &gpu
        ));
        assert!(!tolerates(
            &toleration(Some("nvidia.com/gpu"), Some("Exists"), None, Some("NoExecute")),
            &gpu
        ));
        assert!(!tolerates(
            &toleration(Some("other"), Some("Exists"), None, None),
            &gpu
        ));
    }

    #[test]
    fn requirements_match_as_documented() {
        let node = Node {
            name: "n1".into(),
            labels: [("gen".into(), "9".into())].into(),
            ..Node::default()
        };
        let expression = |operator: &str, values: &[&str]| NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: "gen".into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
            match_fields: None,
        };
        for (operator, values, expected) in [
            ("In", &["8", "9"][..], true),
            ("NotIn", &["9"][..], false),
            ("Exists", &[][..], true),
            ("DoesNotExist", &[][..], false),
            ("Gt", &["8"][..], true),
            ("Lt", &["9"][..], false),
            ("Like", &["9"][..], false),
        ] {
            assert_eq!(
                term_matches(&expression(operator, values), &node),
                expected,
                "{operator} {values:?}"
            );
        }
        assert!(!term_matches(&NodeSelectorTerm::default(), &node));
    }
}
