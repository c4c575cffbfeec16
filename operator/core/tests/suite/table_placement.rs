//! Which nodes a group gets, and what is said when there are none.

use k8s_openapi::api::core::v1::Taint;
use llamero_core::{
    decide,
    observed::{Observed, Priority},
    resources::Resources,
};
use serde_json::{Value, json};

use crate::build::*;

fn pending(change: impl FnOnce(&mut Value)) -> Observed {
    let mut deployment = deployment(change);
    let members = vec![(0, None, None); usize::try_from(deployment.object.spec.pods()).unwrap()];
    deployment.groups = vec![group(&deployment, "llama-0", &members)];
    observed(deployment)
}

fn chosen(observed: &Observed) -> Vec<String> {
    written(&decide(observed, NOW), "llama-0")
        .members
        .iter()
        .filter_map(|m| m.node.clone())
        .collect()
}

fn refusal(observed: &Observed) -> String {
    let plan = decide(observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    plan.verdicts.values().next().unwrap().no_room["llama-0"].clone()
}

#[test]
fn a_group_that_does_not_fit_holds_nothing_and_says_what_is_missing() {
    let mut observed = pending(|_| {});
    observed.nodes[0].used.insert(0, Resources::new().with(GPU, 1));
    observed.nodes[2].ready = false;
    assert_eq!(
        refusal(&observed),
        "needs 2 nodes with 2.0 GiB memory, 1 nvidia.com/gpu each; too few have room: some are not ready, some are short of nvidia.com/gpu"
    );
    // Pods of others come and go: the text stays while what is missing does.
    let before = refusal(&observed);
    observed.nodes[1]
        .used
        .insert(0, Resources::new().with(GPU, 1).with("memory", 1 << 30));
    assert_eq!(refusal(&observed), before);
}

#[test]
fn room_of_lower_priority_counts_and_is_taken_last() {
    let mut observed = pending(|d| d["spec"]["worker"] = json!({"priorityClassName": "high"}));
    let high = Priority {
        value: 100,
        preempts: true,
    };
    observed.priority_classes.insert("high".into(), high);
    observed.nodes[0].used.insert(0, Resources::new().with(GPU, 1));
    assert_eq!(chosen(&observed), ["b", "c"]);
    observed.nodes[1].used.insert(100, Resources::new().with(GPU, 1));
    assert_eq!(chosen(&observed), ["a", "c"]);
    // The class says preemptionPolicy: Never.
    let patient = Priority {
        preempts: false,
        ..high
    };
    observed.priority_classes.insert("high".into(), patient);
    assert!(
        refusal(&observed).contains("too few have room: some are short of nvidia.com/gpu"),
        "{}",
        refusal(&observed)
    );
}

#[test]
fn whole_nodes_are_kept_for_large_groups() {
    let mut observed = pending(|_| {});
    observed.nodes = vec![node("big", 8), node("small", 1), node("tiny", 1)];
    assert_eq!(chosen(&observed), ["small", "tiny"]);
}

#[test]
fn taints_selectors_and_cordons_are_respected() {
    let taint = Taint {
        key: "gpu".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    let mut observed = pending(|d| d["spec"]["worker"] = json!({"nodeSelector": {"pool": "x"}}));
    observed.nodes.push(node("d", 1));
    for node in &mut observed.nodes {
        node.labels.insert("pool".into(), "x".into());
    }
    observed.nodes[0].taints.push(taint);
    observed.nodes[1].unschedulable = true;
    assert_eq!(chosen(&observed), ["c", "d"]);
    observed.nodes[2].labels.clear();
    let said = refusal(&observed);
    assert!(
        said.contains("some have the taint gpu that is not tolerated"),
        "{said}"
    );
    assert!(
        said.contains("some are cordoned")
            && said.contains("some lack the label pool=x of worker.nodeSelector"),
        "{said}"
    );
}

#[test]
fn the_taint_of_their_own_accelerator_keeps_nobody_away() {
    let mut observed = pending(|_| {});
    for node in &mut observed.nodes {
        node.taints.push(Taint {
            key: GPU.into(),
            value: Some("present".into()),
            effect: "NoSchedule".into(),
            ..Taint::default()
        });
    }
    assert_eq!(chosen(&observed), ["a", "b"]);
    observed.nodes[0].taints[0].effect = "NoExecute".into();
    assert_eq!(chosen(&observed), ["b", "c"]);
}

fn zones(observed: &mut Observed, zones: &[(&str, &str)]) {
    observed.nodes = zones
        .iter()
        .map(|(name, zone)| {
            let mut node = node(name, 1);
            node.labels.insert("zone".into(), (*zone).to_owned());
            node
        })
        .collect();
}

#[test]
fn a_required_domain_is_not_left() {
    let mut observed =
        pending(|d| d["spec"]["placement"] = json!({"topologyKey": "zone", "policy": "Required"}));
    zones(&mut observed, &[("a", "1"), ("b", "2"), ("c", "2")]);
    assert_eq!(chosen(&observed), ["b", "c"]);
    zones(&mut observed, &[("a", "1"), ("b", "2"), ("c", "3")]);
    assert!(refusal(&observed).contains("all with one value of zone; there are too few"));
}

#[test]
fn a_preferred_domain_is_left_only_when_it_must_be() {
    let mut observed = pending(|d| d["spec"]["placement"] = json!({"topologyKey": "zone"}));
    zones(
        &mut observed,
        &[
            ("a", "1"),
            ("b", "2"),
            ("c", "2"),
            ("d", "3"),
            ("e", "3"),
            ("f", "3"),
        ],
    );
    // The tightest domain that fits.
    assert_eq!(chosen(&observed), ["b", "c"]);
    zones(&mut observed, &[("a", "1"), ("b", "2")]);
    assert_eq!(chosen(&observed), ["a", "b"]);
}

#[test]
fn a_replacement_stays_in_the_domain_of_the_survivors() {
    let mut deployment =
        deployment(|d| d["spec"]["placement"] = json!({"topologyKey": "zone", "policy": "Required"}));
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    deployment.groups[0].pods.remove(1);
    spec(&mut deployment.groups[0], |s| {
        s.members[1] = serde_json::from_value(json!({"index": 1, "attempt": 1})).unwrap()
    });
    let mut observed = observed(deployment);
    zones(&mut observed, &[("a", "2"), ("b", "1"), ("c", "1"), ("d", "2")]);
    count_usage(&mut observed);
    assert_eq!(
        written(&decide(&observed, NOW), "llama-0").members[1]
            .node
            .as_deref(),
        Some("d")
    );
}

#[test]
fn reservations_of_unbound_members_are_kept_from_others() {
    let mut deployment = deployment(|d| d["spec"]["replicas"] = json!(2));
    deployment.groups = vec![
        group(
            &deployment,
            "llama-0",
            &[(0, Some("a"), None), (0, Some("b"), None)],
        ),
        group(&deployment, "llama-1", &[(0, None, None), (0, None, None)]),
    ];
    let observed = observed(deployment);
    assert_eq!(reserved(&observed, "a"), 1);
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["create pod llama-0-0-0", "create pod llama-0-1-0"]);
    assert!(
        plan.verdicts.values().next().unwrap().no_room["llama-1"]
            .contains("some are short of nvidia.com/gpu")
    );
}

#[test]
fn a_replacement_is_served_before_a_new_group() {
    let mut deployment = deployment(|d| d["spec"]["replicas"] = json!(2));
    let mut hurt = serving(&deployment, "llama-1", ["a", "b"]);
    hurt.pods.remove(1);
    spec(&mut hurt, |s| {
        s.members[1] = serde_json::from_value(json!({"index": 1, "attempt": 1})).unwrap()
    });
    deployment.groups = vec![
        group(&deployment, "llama-0", &[(0, None, None), (0, None, None)]),
        hurt,
    ];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-1: Reserved"]);
}

#[test]
fn several_ranks_share_a_pod_and_ask_for_all_their_devices() {
    let mut observed = pending(|d| {
        d["spec"]["parallelism"]["tensor"] = json!(8);
        d["spec"]["accelerator"]["perNode"] = json!(4);
    });
    observed.nodes = vec![node("a", 8), node("b", 3), node("c", 4)];
    assert_eq!(chosen(&observed), ["a", "c"]);
}

/// Two ranks on CPUs, of 8 GiB each as they ask for.
fn cpus(d: &mut Value) {
    d["spec"].as_object_mut().unwrap().remove("accelerator");
    d["spec"]["worker"] = json!({"resources": {"requests": {"cpu": "2", "memory": "8Gi"}}});
}

#[test]
fn ranks_on_cpus_share_a_node_where_there_is_one_only() {
    let mut observed = pending(cpus);
    observed.nodes.truncate(1);
    assert_eq!(chosen(&observed), ["a", "a"]);
}

#[test]
fn ranks_on_cpus_have_nodes_of_their_own_where_there_are_such_nodes() {
    let mut observed = pending(cpus);
    assert_eq!(chosen(&observed), ["a", "b"]);
    // What would have to be preempted is no such node.
    for node in &mut observed.nodes[1..] {
        node.used.insert(-1, Resources::new().with("memory", 64 << 30));
    }
    assert_eq!(chosen(&observed), ["a", "a"]);
}

#[test]
fn a_shared_node_must_have_room_for_both() {
    let mut observed = pending(cpus);
    observed.nodes.truncate(1);
    observed.nodes[0].allocatable = Resources::new()
        .with("cpu", 3000)
        .with("memory", 64 << 30)
        .with("pods", 110);
    assert_eq!(
        refusal(&observed),
        "needs room for 2 pods with 2 cpu, 8.0 GiB memory each; there are too few"
    );
}

#[test]
fn who_asks_for_nodes_of_their_own_waits_for_them() {
    for (change, said) in [
        (
            cpus_apart as fn(&mut Value),
            "needs 2 nodes with 2 cpu, 8.0 GiB memory each; there are too few",
        ),
        (
            (|_| {}) as fn(&mut Value),
            "needs 2 nodes with 2.0 GiB memory, 1 nvidia.com/gpu each; there are too few",
        ),
    ] {
        let mut observed = pending(change);
        observed.nodes.truncate(1);
        assert_eq!(refusal(&observed), said);
    }
}

fn cpus_apart(d: &mut Value) {
    cpus(d);
    d["spec"]["placement"] = json!({"onePodPerNode": "Required"});
}

#[test]
fn devices_may_be_shared_out_on_one_node_where_the_user_allows_it() {
    let mut observed = pending(|d| d["spec"]["placement"] = json!({"onePodPerNode": "Preferred"}));
    observed.nodes = vec![node("big", 8), node("c", 1)];
    assert_eq!(chosen(&observed), ["big", "c"]);
    observed.nodes.pop();
    assert_eq!(chosen(&observed), ["big", "big"]);
    observed.nodes[0].used.insert(0, Resources::new().with(GPU, 7));
    assert!(
        refusal(&observed).contains("needs room for 2 pods")
            && refusal(&observed).contains("there are too few")
    );
}

/// A group from before there was a choice keeps its nodes apart, whatever the operator's default is now.
#[test]
fn an_older_group_stays_on_nodes_of_its_own() {
    let mut deployment = deployment(cpus);
    deployment.groups = vec![group(&deployment, "llama-0", &[(0, None, None), (0, None, None)])];
    spec(&mut deployment.groups[0], |s| s.template.one_pod_per_node = None);
    let mut observed = observed(deployment);
    observed.nodes.truncate(1);
    assert!(refusal(&observed).starts_with("needs 2 nodes"));
}

#[test]
fn a_replacement_goes_to_a_node_of_its_own_before_it_shares_one() {
    let hurt = |nodes: &[&str]| {
        let mut deployment = deployment(cpus);
        deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
        deployment.groups[0].pods.remove(1);
        spec(&mut deployment.groups[0], |s| {
            s.members[1] = serde_json::from_value(json!({"index": 1, "attempt": 1})).unwrap()
        });
        let mut observed = observed(deployment);
        observed.nodes.retain(|node| nodes.contains(&node.name.as_str()));
        count_usage(&mut observed);
        written(&decide(&observed, NOW), "llama-0").members[1]
            .node
            .clone()
    };
    assert_eq!(hurt(&["a", "c"]).as_deref(), Some("c"));
    assert_eq!(hurt(&["a"]).as_deref(), Some("a"));
}
