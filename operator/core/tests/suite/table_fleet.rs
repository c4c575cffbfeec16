//! Which groups come and go.

use llamero_core::{
    decide,
    observed::{Demand, Deployment, InspectPod, Load, Observed, PodPhase},
    plan::Acceptance,
    time,
};
use serde_json::{Value, json};

use crate::build::*;

fn fleet(change: impl FnOnce(&mut Value), groups: &[(&str, [&str; 2])]) -> Observed {
    let mut deployment = deployment(change);
    deployment.groups = groups
        .iter()
        .map(|(name, nodes)| serving(&deployment, name, *nodes))
        .collect();
    let mut observed = observed(deployment);
    observed.nodes = ["a", "b", "c", "d", "e", "f"].map(|name| node(name, 1)).to_vec();
    count_usage(&mut observed);
    observed
}

fn one(observed: &mut Observed) -> &mut Deployment {
    &mut observed.deployments[0]
}

#[test]
fn scaling_up_fills_the_lowest_free_numbers() {
    let mut observed = fleet(|d| d["spec"]["replicas"] = json!(4), &[("llama-1", ["a", "b"])]);
    one(&mut observed).names_in_use.insert("llama-2".into());
    assert_eq!(
        words(&decide(&observed, NOW)),
        [
            "create group llama-0",
            "create group llama-3",
            "create group llama-4"
        ]
    );
}

#[test]
fn scaling_down_takes_the_group_that_serves_nobody() {
    let mut observed = fleet(
        |d| d["spec"]["replicas"] = json!(1),
        &[("llama-0", ["a", "b"]), ("llama-1", ["c", "d"])],
    );
    one(&mut observed).groups[0].pods[0]
        .report
        .as_mut()
        .unwrap()
        .serving = false;
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-0: Draining"]);
}

/// Two serving groups of a deployment that wants `replicas` of them with another image.
fn outdated(replicas: i32) -> Observed {
    let mut observed = fleet(
        |d| d["spec"]["replicas"] = json!(replicas),
        &[("llama-0", ["a", "b"]), ("llama-1", ["c", "d"])],
    );
    let mut changed = deployment(|d| {
        d["spec"]["replicas"] = json!(replicas);
        d["spec"]["worker"] = json!({"image": "worker:2"});
    });
    changed.groups = one(&mut observed).groups.clone();
    observed.deployments = vec![changed];
    observed
}

#[test]
fn a_changed_template_replaces_groups_one_by_one() {
    let mut observed = outdated(2);
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-1: Draining"]);
    // A group that does not serve goes at once and does not block.
    one(&mut observed).groups[0].pods[0]
        .report
        .as_mut()
        .unwrap()
        .serving = false;
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-0: Draining"]);
}

#[test]
fn a_rollout_waits_when_too_few_serve_and_says_so() {
    let mut observed = outdated(3);
    let changed = one(&mut observed);
    let third = group(changed, "llama-2", &[(0, None, None), (0, None, None)]);
    changed.groups.push(third);
    observed.nodes.truncate(4);
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = llamero_core::report(&observed, &plan, NOW)
        .deployments
        .into_values()
        .next()
        .unwrap();
    let progressing = status
        .conditions
        .iter()
        .find(|c| c.type_ == "Progressing")
        .unwrap();
    assert_eq!(progressing.reason, "RollingOut");
    assert!(
        progressing
            .message
            .contains("2 of 3 groups serve, so replacing more waits"),
        "{}",
        progressing.message
    );
}

#[test]
fn a_paused_rollout_replaces_nothing() {
    let mut observed = fleet(|d| d["spec"]["replicas"] = json!(1), &[("llama-0", ["a", "b"])]);
    let mut changed = deployment(|d| {
        d["spec"]["worker"] = json!({"image": "worker:2"});
        d["spec"]["rollout"] = json!({"paused": true});
    });
    changed.groups = one(&mut observed).groups.clone();
    observed.deployments = vec![changed];
    assert!(decide(&observed, NOW).steps.is_empty());
}

#[test]
fn another_default_image_of_the_operator_rolls_nobody() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    observed.settings.worker_image = "worker:99".into();
    assert!(decide(&observed, NOW).steps.is_empty());
}

#[test]
fn a_going_group_counts_until_it_is_gone() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    spec(&mut one(&mut observed).groups[0], |s| {
        s.intent = llamero_api::group::Intent::Drain;
        s.drain_since = Some(time::to_time(NOW));
    });
    assert_eq!(words(&decide(&observed, NOW)), ["drain llama-0"]);
}

#[test]
fn a_checkpoint_is_looked_into_before_any_group_is_made() {
    let unknown = |d: &mut Value| {
        d["status"] =
            json!({"checkpoint": {"key": "other", "inspectedAt": "2026-01-01T00:00:00Z", "error": "x"}})
    };
    let mut observed = observed(deployment(unknown));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["create inspect pod"]);
    let llamero_core::Action::CreateInspectPod { key, name, .. } = plan.steps[0].action.clone() else {
        panic!()
    };
    one(&mut observed).inspect = vec![InspectPod {
        name,
        uid: "i".into(),
        key: key.clone(),
        created_at: NOW,
        ..InspectPod::default()
    }];
    assert!(decide(&observed, NOW).steps.is_empty());

    let pod = &mut one(&mut observed).inspect[0];
    pod.phase = PodPhase::Succeeded;
    pod.result = Some(serde_json::to_string(&summary()).unwrap());
    let plan = decide(&observed, NOW + 2000);
    assert_eq!(words(&plan), ["create group llama-0"]);
    assert_eq!(
        plan.verdicts
            .values()
            .next()
            .unwrap()
            .checkpoint
            .as_ref()
            .unwrap()
            .key,
        key
    );
}

#[test]
fn an_unreadable_checkpoint_is_told_and_tried_again() {
    let failed = |d: &mut Value| {
        let spec = serde_json::from_value(d["spec"].clone()).unwrap();
        d["status"] = json!({"checkpoint": {
            "key": llamero_core::revision::inspect_key(&spec), "inspectedAt": time::to_time(NOW), "error": "no config.json in /model"
        }});
    };
    let mut observed = observed(deployment(failed));
    let plan = decide(&observed, NOW + 1000);
    assert!(plan.steps.is_empty());
    assert_eq!(plan.next_at, Some(NOW + 60_000));
    assert_eq!(
        plan.verdicts.values().next().unwrap().acceptance,
        Acceptance::Unreadable("no config.json in /model".into())
    );
    assert_eq!(words(&decide(&observed, NOW + 60_000)), ["create inspect pod"]);
    // The pod of the recorded inspection is cleared away.
    let key = llamero_core::revision::inspect_key(&one(&mut observed).object.spec);
    one(&mut observed).inspect = vec![InspectPod {
        name: "i".into(),
        uid: "i".into(),
        key,
        created_at: NOW - 5000,
        phase: PodPhase::Failed,
        ..InspectPod::default()
    }];
    assert_eq!(words(&decide(&observed, NOW + 1000)), ["delete pod i in 0"]);
}

#[test]
fn what_does_not_fit_takes_no_accelerator() {
    let observed = observed(deployment(|d| d["spec"]["accelerator"]["memory"] = json!("5Gi")));
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty());
    let Acceptance::Refused(why) = &plan.verdicts.values().next().unwrap().acceptance else {
        panic!()
    };
    assert!(why.contains("what would fit: parallelism.tensor 4"), "{why}");
}

#[test]
fn autoscaling_wakes_from_zero_for_a_held_request() {
    let scaled = |d: &mut Value| {
        d["spec"].as_object_mut().unwrap().remove("replicas");
        d["spec"]["autoscaling"] = json!({"minReplicas": 0, "maxReplicas": 3});
        d["status"] = json!({"desiredReplicas": 0, "autoscaling": {}});
    };
    let mut observed = observed(deployment(scaled));
    assert!(decide(&observed, NOW).steps.is_empty());
    one(&mut observed).demand = Some(Demand {
        held: 1,
        in_flight: 0,
        received_at: NOW,
    });
    assert_eq!(words(&decide(&observed, NOW)), ["create group llama-0"]);
}

#[test]
fn autoscaling_follows_the_load() {
    let scaled = |d: &mut Value| {
        d["spec"].as_object_mut().unwrap().remove("replicas");
        d["spec"]["autoscaling"] = json!({"minReplicas": 1, "maxReplicas": 3, "targetRequestsPerGroup": 4});
        d["status"] = json!({"desiredReplicas": 1, "autoscaling": {}});
    };
    let mut observed = fleet(scaled, &[("llama-0", ["a", "b"])]);
    one(&mut observed).groups[0].load = Some(Load {
        running: 4,
        waiting: 5,
        received_at: NOW,
    });
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["create group llama-1", "create group llama-2"]
    );
}

#[test]
fn a_deployment_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let observed = fleet(
        |d| d["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        &[("llama-0", ["a", "b"])],
    );
    assert_eq!(decide(&observed, NOW), llamero_core::Plan::default());
}
