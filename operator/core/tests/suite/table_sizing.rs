//! By which devices a deployment is sized, and what becomes of it when others join the cluster.

use llamero_api::{
    LlamaDeploymentSpec,
    deployment::{PlanStatus, condition as kind},
};
use llamero_core::{
    Action, decide,
    observed::{Node, Observed},
    plan::Acceptance,
    policy::Policy,
    sizing,
};
use serde_json::{Value, json};

use crate::build::*;

/// A node with a GPU of so many GiB, as its label says.
fn gpu(name: &str, gibibytes: i64) -> Node {
    let mut node = node(name, 1);
    let memory = (gibibytes << 10).to_string();
    node.labels.insert("nvidia.com/gpu.memory".into(), memory);
    node.labels.insert("pool".into(), name.into());
    node
}

fn unstated(d: &mut Value) {
    d["spec"]["accelerator"].as_object_mut().unwrap().remove("memory");
}

fn sized(nodes: &[Node], worker: Value) -> PlanStatus {
    let whole = deployment(|d| {
        unstated(d);
        d["spec"]["worker"] = worker;
    });
    let spec: &LlamaDeploymentSpec = &whole.object.spec;
    sizing::plan(spec, &summary(), nodes)
}

/// Of 6 GiB and a little each rank needs, 4 GiB are weights and 2 GiB workspace.
#[test]
fn the_smallest_devices_that_it_fits_on_say_how_large_the_cache_is() {
    let cache = |plan: PlanStatus| (plan.fits, plan.kv_bytes_per_rank >> 30);
    let all = [gpu("tiny", 5), gpu("small", 15), gpu("large", 80)];
    assert_eq!(cache(sized(&all, json!({}))), (true, 9));
    assert_eq!(cache(sized(&all[2..], json!({}))), (true, 74));
    assert_eq!(
        cache(sized(&all, json!({"nodeSelector": {"pool": "large"}}))),
        (true, 74)
    );
    let refused = sized(&all, json!({"nodeSelector": {"pool": "tiny"}}));
    assert!(
        !refused.fits && refused.message.contains("gives it 5.0 GiB"),
        "{}",
        refused.message
    );

    // A taint that is not tolerated keeps pods away; one that says what state a node is in passes.
    let mut tainted = all.clone();
    let taint = |key: &str| serde_json::from_value(json!({"key": key, "effect": "NoSchedule"})).unwrap();
    tainted[1].taints = vec![taint("others")];
    assert_eq!(cache(sized(&tainted, json!({}))), (true, 74));
    assert_eq!(
        cache(sized(
            &tainted,
            json!({"tolerations": [{"key": "others", "operator": "Exists"}]})
        )),
        (true, 9)
    );
    tainted[1].taints = vec![taint("node.kubernetes.io/unschedulable"), taint(GPU)];
    tainted[1].unschedulable = true;
    assert_eq!(cache(sized(&tainted, json!({}))), (true, 9));
    let unknown = sized(&all, json!({"nodeSelector": {"pool": "none"}}));
    assert!(
        unknown.fits && unknown.message.contains("set accelerator.memory"),
        "{}",
        unknown.message
    );
}

/// A group that serves on large GPUs and was sized by them; two are wanted.
fn on_large_devices(change: impl FnOnce(&mut Value)) -> Observed {
    let mut whole = deployment(|d| {
        unstated(d);
        d["spec"]["replicas"] = json!(2);
        change(d);
    });
    whole.revisions[0].template.as_mut().unwrap().kv_bytes_per_rank = 74 << 30;
    let mut first = serving(&whole, "llama-0", ["a", "b"]);
    spec(&mut first, |s| s.template.kv_bytes_per_rank = 74 << 30);
    whole.groups = vec![first];
    let mut observed = observed(whole);
    observed.nodes = ["a", "b", "c", "d"].map(|name| gpu(name, 80)).to_vec();
    count_usage(&mut observed);
    observed
}

fn created(observed: &Observed) -> Vec<(String, i64)> {
    let plan = decide(observed, NOW);
    let steps = plan.steps.iter();
    steps
        .filter_map(|step| match &step.action {
            Action::CreateGroup { spec, .. } => {
                Some((spec.revision.clone(), spec.template.kv_bytes_per_rank >> 30))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn smaller_devices_that_join_take_nothing_from_what_serves() {
    let mut observed = on_large_devices(|_| {});
    let revision = observed.deployments[0].revisions[0].digest.clone();
    observed.nodes.push(gpu("tiny", 5));
    assert_eq!(created(&observed), [(revision.clone(), 74)]);
    // New groups keep away from devices that they were not sized for.
    let whole = &mut observed.deployments[0];
    let mut second = group(whole, "llama-1", &[(0, None, None), (0, None, None)]);
    spec(&mut second, |s| s.template.kv_bytes_per_rank = 74 << 30);
    whole.groups.push(second);
    observed.nodes[3] = gpu("d", 15);
    let plan = decide(&observed, NOW);
    let missing = &plan.verdicts.values().next().unwrap().no_room["llama-1"];
    assert!(
        missing.contains("some have devices with less memory than a rank was sized for"),
        "{missing}"
    );
}

/// All that is left for new pods is too small: looked at anew nothing would be accepted.
fn outgrown(change: impl FnOnce(&mut Value)) -> Observed {
    let mut observed = on_large_devices(change);
    for node in &mut observed.nodes {
        node.labels
            .insert("nvidia.com/gpu.memory".into(), (5 << 10).to_string());
    }
    observed
}

#[test]
fn a_later_refusal_takes_no_snapshot_away_that_serves() {
    let mut observed = outgrown(|d| d["spec"]["worker"] = json!({"image": "theirs/worker:1"}));
    let revision = observed.deployments[0].revisions[0].digest.clone();
    assert_eq!(created(&observed), [(revision, 74)]);
    let status = status_at(&observed, NOW);
    let (accepted, _, message) = condition(&status, kind::ACCEPTED);
    assert_eq!(accepted, "True");
    assert!(
        message.contains("looked at anew it would be refused") && message.contains("5.0 GiB"),
        "{message}"
    );
    assert_eq!(condition(&status, kind::STALLED).0, "False");
    // What the installation forbids is not made, whatever was accepted.
    observed.settings.policy = Policy {
        images: vec!["ours/*".into()],
        ..Policy::default()
    };
    assert_eq!(created(&observed), []);
}

#[test]
fn what_was_never_accepted_is_refused() {
    let mut observed = outgrown(|_| {});
    observed.deployments[0].revisions.clear();
    observed.deployments[0].groups.clear();
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    assert!(matches!(
        plan.verdicts.values().next().unwrap().acceptance,
        Acceptance::Refused(_)
    ));
}

/// Words that are refused change nothing about what serves, and it is kept up.
#[test]
fn refused_words_leave_the_groups_of_the_last_ones_in_number() {
    let before = on_large_devices(|_| {});
    let mut observed = on_large_devices(|d| d["spec"]["model"]["maxContextLength"] = json!(9_000));
    let new = observed.deployments[0].revisions[0].digest.clone();
    observed.deployments[0].revisions = before.deployments[0].revisions.clone();
    observed.deployments[0].groups = before.deployments[0].groups.clone();
    let old = observed.deployments[0].revisions[0].digest.clone();
    assert_ne!(new, old);
    assert_eq!(created(&observed), [(old, 74)]);
    let plan = decide(&observed, NOW);
    assert!(matches!(
        plan.verdicts.values().next().unwrap().acceptance,
        Acceptance::Refused(_)
    ));
}
