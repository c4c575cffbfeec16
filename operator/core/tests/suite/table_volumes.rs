//! Where groups go whose claims can be mounted on some nodes only, or on one at a time.

use std::sync::Arc;

use llamero_core::{
    decide,
    observed::{Deployment, Observed},
    plan::Action,
    volumes::{Claim, Volume},
};
use serde_json::{Value, json};

use crate::build::*;

/// A claim that is bound to such a volume.
fn claim(volume: Value) -> Claim {
    let spec = serde_json::from_value(volume).unwrap();
    Volume::of(&spec).claim(&["efs.csi.aws.com".to_owned()].into())
}

/// On these nodes only.
fn local(nodes: &[&str]) -> Value {
    let hosts = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}]);
    json!({"accessModes": ["ReadWriteOnce"], "local": {"path": "/w"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": hosts}]}}})
}

fn disk(driver: &str) -> Value {
    json!({"accessModes": ["ReadWriteOnce"], "csi": {"driver": driver, "volumeHandle": "v"}})
}

/// A deployment with a group without nodes, whose claim `w` is such a volume.
fn pending(volume: Value, change: impl FnOnce(&mut Value)) -> Observed {
    let mut deployment = deployment(change);
    let members = vec![(0, None, None); usize::try_from(deployment.object.spec.pods()).unwrap()];
    deployment.groups = vec![group(&deployment, "llama-0", &members)];
    deployment.claims = Arc::new([("w".to_owned(), claim(volume))].into());
    let mut observed = observed(deployment);
    for node in &mut observed.nodes {
        let name = node.name.clone();
        node.labels.insert("kubernetes.io/hostname".into(), name);
    }
    observed
}

fn chosen(observed: &Observed, group: &str) -> Vec<String> {
    let plan = decide(observed, NOW);
    let members = &written(&plan, group).members;
    members.iter().filter_map(|m| m.node.clone()).collect()
}

fn refusal(observed: &Observed, group: &str) -> String {
    let plan = decide(observed, NOW);
    plan.verdicts.values().next().unwrap().no_room[group].clone()
}

fn one(observed: &mut Observed) -> &mut Deployment {
    &mut observed.deployments[0]
}

/// Ranks on CPUs, which may share a node.
fn cpus(d: &mut Value) {
    d["spec"].as_object_mut().unwrap().remove("accelerator");
    d["spec"]["worker"] = json!({"resources": {"requests": {"cpu": "2", "memory": "8Gi"}}});
}

#[test]
fn groups_go_where_their_volume_is_at_once() {
    assert_eq!(
        chosen(&pending(local(&["b", "c"]), |_| {}), "llama-0"),
        ["b", "c"]
    );
    let said = refusal(&pending(local(&["b"]), |_| {}), "llama-0");
    assert!(
        said.contains("needs 2 nodes") && said.contains("some do not reach the volume of claim w"),
        "{said}"
    );
    // Nothing is known of it: the scheduler sees to it.
    let mut unknown = pending(local(&["b"]), |_| {});
    one(&mut unknown).claims = Arc::default();
    assert_eq!(chosen(&unknown, "llama-0"), ["a", "b"]);
}

#[test]
fn what_is_attached_to_one_node_holds_no_group_that_is_spread() {
    let said = refusal(&pending(disk("ebs.csi.aws.com"), |_| {}), "llama-0");
    assert!(
        said.starts_with("the volume of claim w is attached to one node at a time, and the group's 2 pods are on as many nodes: take a claim"),
        "{said}"
    );
    // Its driver attaches nothing, whatever the access modes say.
    assert_eq!(
        chosen(&pending(disk("efs.csi.aws.com"), |_| {}), "llama-0"),
        ["a", "b"]
    );
}

#[test]
fn pods_that_may_share_a_node_are_all_where_the_volume_is() {
    let mut observed = pending(disk("ebs.csi.aws.com"), cpus);
    assert_eq!(chosen(&observed, "llama-0"), ["a", "a"]);
    // One that has room for one of them is none.
    observed.nodes[0]
        .used
        .insert(0, llamero_core::resources::Resources::new().with("cpu", 13_000));
    assert_eq!(chosen(&observed, "llama-0"), ["b", "b"]);
}

#[test]
fn others_of_the_deployment_go_where_it_is_mounted() {
    let mut observed = pending(disk("ebs.csi.aws.com"), |d| {
        cpus(d);
        d["spec"]["replicas"] = json!(2);
    });
    let deployment = one(&mut observed);
    let second = group(
        deployment,
        "llama-1",
        &[(0, Some("c"), Some("u0")), (0, Some("c"), Some("u1"))],
    );
    deployment.groups.push(second);
    assert_eq!(chosen(&observed, "llama-0"), ["c", "c"]);
    let last = observed.nodes.len() - 1;
    assert_eq!(observed.nodes[last].name, "c");
    observed.nodes[last].unschedulable = true;
    let said = refusal(&observed, "llama-0");
    assert!(
        said.contains("some are cordoned")
            && said.contains("some are not c, where claim w is mounted, which is for one node at a time"),
        "{said}"
    );
}

#[test]
fn groups_that_are_placed_at_once_are_where_the_first_of_them_is() {
    let mut observed = pending(disk("ebs.csi.aws.com"), |d| {
        cpus(d);
        d["spec"]["replicas"] = json!(2);
        d["spec"]["worker"]["resources"]["requests"] = json!({"cpu": "6", "memory": "8Gi"});
    });
    let deployment = one(&mut observed);
    let second = group(deployment, "llama-1", &[(0, None, None), (0, None, None)]);
    deployment.groups.push(second);
    // A node has room for one group; the other one does not go where the volume is not.
    assert_eq!(chosen(&observed, "llama-0"), ["a", "a"]);
    let said = refusal(&observed, "llama-1");
    assert!(
        said.contains("some are not a, where claim w is mounted"),
        "{said}"
    );
}

#[test]
fn no_nodes_are_asked_for_that_would_be_no_help() {
    let provision = |d: &mut Value| d["spec"]["placement"] = json!({"whenFull": "Provision"});
    let observed = pending(disk("ebs.csi.aws.com"), provision);
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let mut observed = pending(disk("efs.csi.aws.com"), provision);
    observed.nodes.truncate(1);
    assert!(!decide(&observed, NOW).steps.is_empty(), "nodes are asked for");
}

#[test]
fn old_names_of_zones_mean_those_of_today() {
    let zone = json!([{"key": "failure-domain.beta.kubernetes.io/zone", "operator": "In", "values": ["z"]}]);
    let volume = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": zone}]}}});
    let mut observed = pending(volume, |_| {});
    for node in &mut observed.nodes[1..] {
        node.labels
            .insert("topology.kubernetes.io/zone".into(), "z".into());
    }
    assert_eq!(chosen(&observed, "llama-0"), ["b", "c"]);
}

#[test]
fn who_reads_the_headers_goes_where_it_is_mounted_too() {
    let mut observed = pending(disk("ebs.csi.aws.com"), cpus);
    let deployment = one(&mut observed);
    deployment.groups = vec![group(
        deployment,
        "llama-0",
        &[(0, Some("c"), Some("u0")), (0, Some("c"), Some("u1"))],
    )];
    let mut object = (*deployment.object).clone();
    object.status.as_mut().unwrap().checkpoint.as_mut().unwrap().key = "of another split".into();
    deployment.object = Arc::new(object);
    let made = |observed: &Observed| {
        let steps = decide(observed, NOW).steps;
        let mut nodes = steps.into_iter().filter_map(|step| match step.action {
            Action::CreateInspectPod { node, .. } => Some(node),
            _ => None,
        });
        nodes.next().unwrap()
    };
    assert_eq!(made(&observed), "c");
    one(&mut observed).claims = Arc::default();
    assert_eq!(made(&observed), llamero_core::placement::ANY_NODE);
}
