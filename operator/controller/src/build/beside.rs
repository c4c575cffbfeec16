//! Where pods of a group may be beside each other, as the scheduler understands it.

use k8s_openapi::{
    api::core::v1::{Affinity, PodAffinity, PodAffinityTerm, PodAntiAffinity, WeightedPodAffinityTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::ResourceExt as _;
use llamero_api::{
    LlamaGroup,
    deployment::{OnePodPerNode, TopologyPolicy},
    labels,
};

/// The label of a node by which there is one of it.
pub(super) const HOST: &str = "kubernetes.io/hostname";

/// The affinity of a member whose node the scheduler alone chooses: on a node of its own and in the domain of the others, as the group's own rules say, beside
/// what the user's affinity says.
pub(super) fn unpinned(user: Option<Affinity>, group: &LlamaGroup) -> Affinity {
    let template = &group.spec.template;
    let mut affinity = user.unwrap_or_default();
    let may_share = template.one_pod_per_node == Some(OnePodPerNode::Preferred);
    apart(&mut affinity, term(group, labels::GROUP_NAME, HOST), may_share);
    if let Some(key) = &template.topology_key {
        // The first member matches its own term, and so may go anywhere.
        let may_span = template.topology_policy == TopologyPolicy::Preferred;
        together(&mut affinity, term(group, labels::GROUP_NAME, key), may_span);
    }
    affinity
}

/// Away from the pods of the term.
pub(super) fn apart(affinity: &mut Affinity, term: PodAffinityTerm, preferred: bool) {
    let PodAntiAffinity {
        preferred_during_scheduling_ignored_during_execution: wished,
        required_during_scheduling_ignored_during_execution: demanded,
    } = affinity.pod_anti_affinity.get_or_insert_default();
    match preferred {
        true => wished.get_or_insert_default().push(weighted(term)),
        false => demanded.get_or_insert_default().push(term),
    }
}

/// Where the pods of the term are.
pub(super) fn together(affinity: &mut Affinity, term: PodAffinityTerm, preferred: bool) {
    let PodAffinity {
        preferred_during_scheduling_ignored_during_execution: wished,
        required_during_scheduling_ignored_during_execution: demanded,
    } = affinity.pod_affinity.get_or_insert_default();
    match preferred {
        true => wished.get_or_insert_default().push(weighted(term)),
        false => demanded.get_or_insert_default().push(term),
    }
}

/// Pods of the group by a label, in one value of a label of nodes.
pub(super) fn term(group: &LlamaGroup, label: &str, topology_key: &str) -> PodAffinityTerm {
    PodAffinityTerm {
        label_selector: Some(LabelSelector {
            match_labels: Some([(label.to_owned(), group.name_any())].into()),
            match_expressions: None,
        }),
        topology_key: topology_key.to_owned(),
        ..PodAffinityTerm::default()
    }
}

const fn weighted(term: PodAffinityTerm) -> WeightedPodAffinityTerm {
    WeightedPodAffinityTerm {
        pod_affinity_term: term,
        weight: 100,
    }
}
