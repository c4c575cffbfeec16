//! The pod that holds the room of a member until there is enough for all. The scheduler chooses its node, and an autoscaler of the cluster reckons as the
//! scheduler does: what the placer keeps to stands in the pod.

use k8s_openapi::{
    api::core::v1::{Affinity, Container, NodeSelectorRequirement, NodeSelectorTerm, Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;
use llamero_api::{
    LlamaGroup,
    deployment::{OnePodPerNode, TopologyPolicy},
    labels,
};

use super::{
    beside::{HOST, apart, term, together},
    parts, pod,
};

/// A placeholder of member `index`. It asks for what the member would, of the same nodes and with the same claims, and does nothing for at most
/// `most_seconds`. Its image is a small one, and no model is an image of it: the kubelet lets no pod go that is still pulling.
#[must_use]
pub fn placeholder_pod(group: &LlamaGroup, index: i32, image: &str, most_seconds: i64) -> Pod {
    let template = &group.spec.template;
    let container = Container {
        name: parts::PLACEHOLDER.to_owned(),
        args: Some(vec!["--placeholder".to_owned()]),
        resources: Some(pod::resources(template)),
        ..Container::default()
    };
    let mut spec = parts::pod_spec(&template.worker, &template.source, container);
    for container in &mut spec.containers {
        container.image = Some(image.to_owned());
        container.image_pull_policy = None;
        container.volume_mounts = None;
    }
    // Claims may be bound to some nodes.
    let volumes = spec.volumes.take().unwrap_or_default().into_iter();
    let claims: Vec<Volume> = volumes
        .filter(|volume| volume.persistent_volume_claim.is_some())
        .collect();
    spec.volumes = Some(claims).filter(|claims| !claims.is_empty());
    spec.runtime_class_name = template.worker.runtime_class_name.clone();
    spec.tolerations
        .get_or_insert_default()
        .extend(pod::device_toleration(template.accelerator_resource.as_deref()));
    spec.priority_class_name = Some(labels::PLACEHOLDER_CLASS.to_owned());
    spec.restart_policy = Some("Never".to_owned());
    spec.active_deadline_seconds = Some(most_seconds);
    // It ends as soon as it is told to; the node is free when its kubelet says so.
    spec.termination_grace_period_seconds = Some(1);
    spec.affinity = Some(beside(spec.affinity, group));

    let name = group.name_any();
    let mut pod_labels = labels::common(&group.spec.deployment, labels::PLACEHOLDER_APP);
    pod_labels.insert(labels::PLACEHOLDER_OF.to_owned(), name.clone());
    pod_labels.insert(labels::PLACEHOLDER.to_owned(), index.to_string());
    Pod {
        metadata: ObjectMeta {
            namespace: group.namespace(),
            labels: parts::pod_labels(&template.worker, pod_labels),
            annotations: parts::pod_annotations(&template.worker, [].into()),
            owner_references: parts::owner_reference(group).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// On a node of its own, and in the group's domain, as the group's own rules say, beside what the user's affinity says.
fn beside(user: Option<Affinity>, group: &LlamaGroup) -> Affinity {
    let template = &group.spec.template;
    let mut affinity = user.unwrap_or_default();
    let may_share = template.one_pod_per_node == Some(OnePodPerNode::Preferred);
    for label in [labels::PLACEHOLDER_OF, labels::GROUP_NAME] {
        apart(&mut affinity, term(group, label, HOST), may_share);
    }
    if let Some(key) = &template.topology_key {
        let may_span = template.topology_policy == TopologyPolicy::Preferred;
        let has_members = group.spec.members.iter().any(|member| member.node.is_some());
        // The first placeholder matches its own term, and so may go anywhere.
        let label = match has_members {
            true => labels::GROUP_NAME,
            false => labels::PLACEHOLDER_OF,
        };
        together(&mut affinity, term(group, label, key), may_span);
        let provision = group.spec.provision.as_ref();
        if let Some(domain) = provision.and_then(|provision| provision.avoided_domain.as_ref()) {
            stay_out(&mut affinity, key, domain);
        }
    }
    affinity
}

/// Nodes of the domain are out of the question, in each of the user's alternatives.
fn stay_out(affinity: &mut Affinity, key: &str, domain: &str) {
    let outside = NodeSelectorRequirement {
        key: key.to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec![domain.to_owned()]),
    };
    let required = affinity
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_expressions
            .get_or_insert_default()
            .push(outside.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn group(change: impl FnOnce(&mut Value)) -> LlamaGroup {
        let mut object = json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup", "metadata": {"name": "d-0", "namespace": "n", "uid": "g"},
            "spec": {"deployment": "d", "revision": "r", "generation": 0,
                "members": [{"index": 0, "attempt": 3}, {"index": 1, "attempt": 3}],
                "template": {"modelName": "m", "source": {"persistentVolumeClaim": {"claimName": "weights"}}, "maxContextLength": 1, "tensor": 2,
                    "pipeline": 1, "ranksPerPod": 1, "acceleratorResource": "nvidia.com/gpu",
                    "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s", "onePodPerNode": "Required",
                    "topologyKey": "zone", "topologyPolicy": "Required",
                    "worker": {"image": "w", "nodeSelector": {"pool": "gpu"}, "priorityClassName": "high",
                        "resources": {"requests": {"memory": "1Gi"}},
                        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                            [{"topologyKey": "rack", "labelSelector": {}}]}}}}},
        });
        change(&mut object);
        serde_json::from_value(object).unwrap()
    }

    fn made(group: &LlamaGroup) -> Value {
        serde_json::to_value(placeholder_pod(group, 1, "llamero:1", 1800)).unwrap()
    }

    #[test]
    fn it_asks_for_what_the_member_would_at_low_priority() {
        let pod = made(&group(|_| {}));
        assert_eq!(
            pod["metadata"]["labels"],
            json!({
                "llamero.dev/deployment": "d", "llamero.dev/placeholder-of": "d-0", "llamero.dev/placeholder": "1",
                "app.kubernetes.io/name": "llamero-placeholder", "app.kubernetes.io/part-of": "llamero",
                "app.kubernetes.io/managed-by": "llamero-operator",
            })
        );
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "g");
        let spec = &pod["spec"];
        assert_eq!(spec["priorityClassName"], "llamero-placeholder");
        assert_eq!(spec["nodeSelector"], json!({"pool": "gpu"}));
        assert!(spec["schedulingGates"].is_null(), "{spec}");
        assert_eq!(
            (&spec["activeDeadlineSeconds"], &spec["restartPolicy"]),
            (&json!(1800), &json!("Never"))
        );
        let claim =
            json!({"name": "model", "persistentVolumeClaim": {"claimName": "weights", "readOnly": true}});
        assert_eq!(spec["volumes"], json!([claim]));
        // A node that is not ready holds no room.
        let device = json!([{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]);
        assert_eq!(spec["tolerations"], device);
        let container = &spec["containers"][0];
        assert_eq!(
            container["resources"]["requests"],
            json!({"memory": "1Gi", "nvidia.com/gpu": "1"})
        );
        assert_eq!(
            (&container["image"], &container["args"]),
            (&json!("llamero:1"), &json!(["--placeholder"]))
        );
        assert!(
            container["env"].is_null() && container["volumeMounts"].is_null(),
            "{container}"
        );
    }

    #[test]
    fn it_bears_what_the_placer_keeps_to() {
        let of = |label: &str| json!({"matchLabels": {label: "d-0"}});
        let (placeholders, members) = (of("llamero.dev/placeholder-of"), of("llamero.dev/group"));
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let own_nodes = json!({required: [
            {"topologyKey": "rack", "labelSelector": {}},
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": placeholders},
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": members},
        ]});
        let affinity = |group: &LlamaGroup| made(group)["spec"]["affinity"].clone();
        assert_eq!(
            affinity(&group(|_| {})),
            json!({"podAntiAffinity": own_nodes, "podAffinity": {required: [{"topologyKey": "zone", "labelSelector": placeholders}]}})
        );
        let replaced = group(|g| g["spec"]["members"][0]["node"] = json!("a"));
        assert_eq!(
            affinity(&replaced),
            json!({"podAntiAffinity": own_nodes, "podAffinity": {required: [{"topologyKey": "zone", "labelSelector": members}]}})
        );
    }

    #[test]
    fn a_domain_that_came_short_is_left_alone() {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let avoiding = group(|g| {
            g["spec"]["provision"] = json!({"failures": 1, "avoidedDomain": "zone-a"});
            g["spec"]["template"]["worker"]["affinity"] = json!({"nodeAffinity": {required: {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]}}});
        });
        let terms =
            made(&avoiding)["spec"]["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"].clone();
        assert_eq!(
            terms,
            json!([{"matchExpressions": [{"key": "pool", "operator": "Exists"}, {"key": "zone", "operator": "NotIn", "values": ["zone-a"]}]}])
        );
    }

    #[test]
    fn what_is_preferred_is_only_preferred() {
        let lenient = group(|g| {
            let template = &mut g["spec"]["template"];
            template["onePodPerNode"] = json!("Preferred");
            template["topologyPolicy"] = json!("Preferred");
            template["worker"]["affinity"] = Value::Null;
        });
        let wished = |key: &str, label: &str| json!({"weight": 100, "podAffinityTerm": {"topologyKey": key, "labelSelector": {"matchLabels": {label: "d-0"}}}});
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        assert_eq!(
            made(&lenient)["spec"]["affinity"],
            json!({
                "podAntiAffinity": {preferred: [
                    wished("kubernetes.io/hostname", "llamero.dev/placeholder-of"),
                    wished("kubernetes.io/hostname", "llamero.dev/group")]},
                "podAffinity": {preferred: [wished("zone", "llamero.dev/placeholder-of")]},
            })
        );
    }
}
