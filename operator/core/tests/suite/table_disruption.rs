//! Nodes that are being taken away: members get successors before they go.

use llamero_api::group::{RankPhase, Successor};
use llamero_core::{
    decide,
    observed::{Observed, Refusal},
    time,
};

use crate::build::*;

/// A serving group on nodes a and b; b is cordoned, c has room.
fn cordoned() -> Observed {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    observed.nodes[1].unschedulable = true;
    observed
}

fn noted() -> Observed {
    let mut observed = cordoned();
    spec(&mut observed.deployments[0].groups[0], |s| {
        s.disrupted_since = Some(time::to_time(NOW))
    });
    observed
}

/// Its successor on c, recorded or not.
fn succeeded(uid: Option<&str>) -> Observed {
    let mut observed = noted();
    spec(&mut observed.deployments[0].groups[0], |s| {
        s.members[1].successor = Some(Successor {
            attempt: 1,
            node: "c".into(),
            placed_at: time::to_time(NOW),
            pod_uid: uid.map(str::to_owned),
        });
    });
    observed
}

#[test]
fn a_member_on_a_cordoned_node_is_succeeded_before_it_goes() {
    assert_eq!(words(&decide(&cordoned(), NOW)), ["write llama-0: Disrupted"]);
    let plan = decide(&noted(), NOW);
    assert_eq!(words(&plan), ["write llama-0: Reserved"]);
    let successor = written(&plan, "llama-0").members[1].successor.clone().unwrap();
    assert_eq!((successor.attempt, successor.node.as_str()), (1, "c"));

    assert_eq!(words(&decide(&succeeded(None), NOW)), ["create pod llama-0-1-1"]);
    let mut observed = succeeded(None);
    observed.deployments[0].groups[0]
        .pods
        .push(gated("llama-0", 1, 1, "s"));
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-0: Recorded"]);
    let mut observed = succeeded(Some("s"));
    observed.deployments[0].groups[0]
        .pods
        .push(gated("llama-0", 1, 1, "s"));
    assert_eq!(words(&decide(&observed, NOW)), ["ungate llama-0-1-1 to c"]);
    // It loads while the old one serves; nothing is to be done.
    let loading = running("llama-0", 1, 1, "s", "c", 0, RankPhase::Loading);
    *observed.deployments[0].groups[0].pods.last_mut().unwrap() = loading;
    assert!(decide(&observed, NOW).steps.is_empty());
    let loaded = running("llama-0", 1, 1, "s", "c", 0, RankPhase::Connecting);
    *observed.deployments[0].groups[0].pods.last_mut().unwrap() = loaded;
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Moved"]);
    let after = written(&plan, "llama-0").clone();
    assert_eq!((after.generation, after.members[1].attempt), (2, 1));
    assert_eq!(
        (
            after.members[1].pod_uid.as_deref(),
            after.members[1].node.as_deref()
        ),
        (Some("s"), Some("c"))
    );

    // One Form swaps them; the old pod serves on until every member knows.
    spec(&mut observed.deployments[0].groups[0], |s| *s = after);
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["form llama-0 generation 2 at 2 pods", "write llama-0: Disrupted"]
    );
    for pod in observed.deployments[0].groups[0]
        .pods
        .iter_mut()
        .filter(|pod| pod.attempt == 1 || pod.index == 0)
    {
        pod.report.as_mut().unwrap().generation = 2;
    }
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["delete pod llama-0-1-0", "write llama-0: Disrupted"]
    );
}

#[test]
fn a_taint_of_who_takes_nodes_away_counts_like_a_cordon() {
    let mut observed = cordoned();
    observed.nodes[1].unschedulable = false;
    assert!(decide(&observed, NOW).steps.is_empty());
    observed.nodes[1].taints =
        vec![serde_json::from_value(serde_json::json!({"key": "going", "effect": "NoSchedule"})).unwrap()];
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-0: Disrupted"]);
    observed.nodes[1].taints[0].key = "gone-soon".into();
    let plan = decide(&observed, NOW);
    let failure = &written(&plan, "llama-0").failures[0];
    assert_eq!(
        (failure.reason.as_str(), failure.charged, failure.index),
        ("Disrupted", false, 1)
    );
}

#[test]
fn both_members_move_at_once() {
    let mut observed = noted();
    observed.nodes[0].unschedulable = true;
    observed.nodes.push(node("d", 1));
    let plan = decide(&observed, NOW);
    let nodes: Vec<String> = written(&plan, "llama-0")
        .members
        .iter()
        .filter_map(|m| Some(m.successor.as_ref()?.node.clone()))
        .collect();
    assert_eq!(nodes, ["c", "d"]);
}

#[test]
fn without_room_the_group_serves_until_the_deadline_and_then_leaves_within_the_budget() {
    let mut observed = noted();
    observed.nodes.truncate(2);
    let plan = decide(&observed, NOW + 1000);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = status_at(&observed, NOW + 1000);
    let get = |type_: &str| condition(&status, type_);
    assert_eq!((get("Ready").0, get("Placed").0), ("True", "True"));
    let (_, why, message) = get("Progressing");
    assert_eq!(why, "Moving");
    assert!(message.contains("no room for a successor"), "{message}");
    let late = NOW + 600_000;
    for pod in &mut observed.deployments[0].groups[0].pods {
        let report = pod.report.as_mut().unwrap();
        (report.received_at, report.alive_at) = (late, late);
    }
    assert_eq!(words(&decide(&observed, late)), ["write llama-0: Draining"]);
}

#[test]
fn a_successor_that_is_refused_or_lost_is_dropped_and_another_is_tried_later() {
    let mut observed = succeeded(None);
    observed.deployments[0].groups[0].refusals = vec![Refusal {
        target: "CreatePod llama-0-1-1".into(),
        message: "exceeded quota".into(),
        at: NOW,
        times: 1,
    }];
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: SuccessorDropped"]);
    let after = written(&plan, "llama-0").clone();
    assert!(after.members[1].successor.is_none() && after.place_after.is_some());
    observed.deployments[0].groups[0].refusals.clear();
    spec(&mut observed.deployments[0].groups[0], |s| *s = after);
    assert!(decide(&observed, NOW + 1000).steps.is_empty());
    let plan = decide(&observed, NOW + 5_000);
    assert_eq!(
        written(&plan, "llama-0").members[1]
            .successor
            .as_ref()
            .unwrap()
            .attempt,
        2
    );
}

#[test]
fn a_member_that_is_lost_meanwhile_is_replaced_by_its_successor() {
    let mut observed = succeeded(Some("s"));
    let group = &mut observed.deployments[0].groups[0];
    group
        .pods
        .push(running("llama-0", 1, 1, "s", "c", 0, RankPhase::Loading));
    let old = group.pods[1].clone();
    group.pods[1] = ended(old, 137, "killed");
    group.pods[0].report.as_mut().unwrap().serving = false;
    let plan = decide(&observed, NOW);
    let after = written(&plan, "llama-0");
    assert_eq!(
        (after.members[1].attempt, after.members[1].pod_uid.as_deref()),
        (1, Some("s"))
    );
    assert_eq!((after.generation, after.members[0].attempt), (2, 0));
}

#[test]
fn a_cordon_that_is_lifted_calls_the_successor_off() {
    let mut observed = succeeded(Some("s"));
    observed.nodes[1].unschedulable = false;
    observed.deployments[0].groups[0]
        .pods
        .push(gated("llama-0", 1, 1, "s"));
    let plan = decide(&observed, NOW);
    assert!(written(&plan, "llama-0").members[1].successor.is_none());
}

#[test]
fn a_budget_that_is_refused_holds_nothing_else_up() {
    let mut observed = noted();
    let group = &mut observed.deployments[0].groups[0];
    group.budget = None;
    let both = words(&decide(&observed, NOW));
    assert_eq!(both, ["apply pdb Some(Int(2))", "write llama-0: Reserved"]);
    observed.deployments[0].groups[0].refusals = vec![Refusal {
        target: "Apply llama-0".into(),
        message: "exceeded quota: budgets".into(),
        at: NOW,
        times: 4,
    }];
    assert_eq!(words(&decide(&observed, NOW + 1)), ["write llama-0: Reserved"]);
}

#[test]
fn unready_pods_may_be_evicted_only_while_no_rank_holds_weights() {
    let policy = |loaded: i64, before: bool| {
        let mut observed = cordoned();
        observed.nodes[1].unschedulable = false;
        let group = &mut observed.deployments[0].groups[0];
        let budget = llamero_core::children::disruption_budget(&group.object, 2, loaded == 0);
        group.budget = before.then(|| budget.into());
        for pod in &mut group.pods {
            pod.report.as_mut().unwrap().ranks[0].loaded_bytes = loaded;
        }
        let plan = decide(&observed, NOW);
        let steps = plan.steps.into_iter();
        let mut budgets = steps.filter_map(|step| match step.action {
            llamero_core::Action::Apply {
                object: llamero_core::children::ManagedObject::Budget(budget),
                ..
            } => Some(budget.spec.unwrap().unhealthy_pod_eviction_policy.unwrap()),
            _ => None,
        });
        budgets.next()
    };
    for before in [false, true] {
        assert_eq!(policy(1, before).as_deref(), Some("IfHealthyBudget"));
    }
    assert_eq!(policy(0, true).as_deref(), Some("AlwaysAllow"));
    assert_eq!(policy(0, false), None, "there is nothing to protect yet");
}

/// What a group that does not serve is like, whose second member is gone or goes.
fn not_serving(change: impl FnOnce(&mut llamero_core::observed::Group)) -> Observed {
    let mut observed = cordoned();
    observed.nodes.truncate(2);
    observed.nodes[0].unschedulable = true;
    let group = &mut observed.deployments[0].groups[0];
    group.pods[0].report.as_mut().unwrap().serving = false;
    change(group);
    observed
}

type State = dyn Fn(&mut llamero_core::observed::Group);

fn without_the_second(group: &mut llamero_core::observed::Group) {
    group.pods.truncate(1);
    spec(group, |s| {
        s.members[1] = serde_json::from_value(serde_json::json!({"index": 1, "attempt": 4})).unwrap();
    });
}

/// Its survivor holds weights, so its budget refuses evictions; the member without room never comes.
#[test]
fn a_drain_ends_by_the_deadline_for_groups_that_are_not_whole() {
    let failed = |group: &mut llamero_core::observed::Group| {
        without_the_second(group);
        spec(group, |s| {
            s.failures = (1..=4)
                .map(|i| {
                    let failure = serde_json::json!({"time": time::to_time(NOW - i * 1000), "index": 1, "attempt": 1,
                        "reason": "Exited", "charged": true, "message": "it crashed", "node": "b"});
                    serde_json::from_value(failure).unwrap()
                })
                .collect();
        });
    };
    let placing = |group: &mut llamero_core::observed::Group| {
        group.pods[1] = gated("llama-0", 1, 1, "u1");
        spec(group, |s| {
            s.members[1].attempt = 1;
            s.members[1].pod_uid = None;
            s.members[1].placed_at = Some(time::to_time(NOW));
        });
    };
    let loading = |group: &mut llamero_core::observed::Group| {
        for pod in &mut group.pods {
            pod.report.as_mut().unwrap().ranks[0].phase = RankPhase::Loading;
        }
    };
    let states: [(&str, &State); 4] = [
        ("recovering", &without_the_second),
        ("failed", &failed),
        ("placing", &placing),
        ("loading", &loading),
    ];
    for (name, state) in states {
        let mut observed = not_serving(state);
        let plan = decide(&observed, NOW);
        assert_eq!(words(&plan).last().unwrap(), "write llama-0: Disrupted", "{name}");
        let noted = written(&plan, "llama-0").clone();
        spec(&mut observed.deployments[0].groups[0], |s| *s = noted);
        let due = NOW + 600_000;
        let plan = decide(&observed, NOW + 1_000);
        assert!(
            !words(&plan).iter().any(|word| word.contains("Draining")),
            "{name}"
        );
        assert!(plan.next_at.unwrap() <= due, "{name}");
        let group = &mut observed.deployments[0].groups[0];
        for report in group.pods.iter_mut().filter_map(|pod| pod.report.as_mut()) {
            (report.received_at, report.alive_at) = (due, due);
        }
        // It is placed again and again, and is so just now.
        spec(group, |s| {
            let placed = s.members.iter_mut().filter(|m| m.node.is_some());
            placed.for_each(|m| m.placed_at = Some(time::to_time(due)));
        });
        assert_eq!(
            words(&decide(&observed, due)),
            ["write llama-0: Draining"],
            "{name}"
        );
        // A cordon that is lifted in time leaves it where it is.
        observed.nodes[0].unschedulable = false;
        observed.nodes[1].unschedulable = false;
        spec(&mut observed.deployments[0].groups[0], |s| {
            let placed = s.members.iter_mut().filter(|m| m.node.is_some());
            placed.for_each(|m| m.placed_at = Some(time::to_time(NOW)));
        });
        let plan = decide(&observed, NOW + 1_000);
        assert!(written(&plan, "llama-0").disrupted_since.is_none(), "{name}");
    }
}

/// There is room for no successor, and none of the groups may be missing.
#[test]
fn without_unavailability_a_group_stays_and_says_what_keeps_it() {
    let mut observed = noted();
    observed.nodes.truncate(2);
    let object = std::sync::Arc::make_mut(&mut observed.deployments[0].object);
    object.spec.rollout.max_unavailable = 0;
    let late = NOW + 600_000;
    for pod in &mut observed.deployments[0].groups[0].pods {
        let report = pod.report.as_mut().unwrap();
        (report.received_at, report.alive_at) = (late, late);
    }
    let said = |observed: &Observed, now| {
        let status = status_at(observed, now);
        condition(&status, "Progressing").2.to_owned()
    };
    assert!(!said(&observed, NOW + 1_000).contains("maxUnavailable"));
    let plan = decide(&observed, late);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let message = said(&observed, late);
    assert!(
        message.contains(
            "does not leave its node after disruption.deadline either, as rollout.maxUnavailable 0"
        ) && message.contains("raise rollout.maxUnavailable"),
        "{message}"
    );
    // It goes as soon as it does not serve, or may.
    let object = std::sync::Arc::make_mut(&mut observed.deployments[0].object);
    object.spec.rollout.max_unavailable = 1;
    assert_eq!(words(&decide(&observed, late)), ["write llama-0: Draining"]);
}
