//! Given these pods, this plan: one group from nodes to serving, and through losses.

use llamero_api::group::{GroupPhase, Intent, RankPhase};
use llamero_core::{decide, observed::Refusal, plan::Action, time};

use crate::build::*;

#[test]
fn a_new_deployment_gets_its_group() {
    let plan = decide(&with(|_| {}), NOW);
    assert_eq!(words(&plan), ["create group llama-0"]);
    let Action::CreateGroup { spec, .. } = &plan.steps[0].action else {
        panic!()
    };
    assert_eq!(spec.members.len(), 2);
    assert_eq!(spec.template.worker.image.as_deref(), Some("worker:1"));
    assert!(
        spec.members
            .iter()
            .all(|m| m.node.is_none() && m.pod_uid.is_none())
    );
}

#[test]
fn step_1_nodes_are_written_before_any_pod() {
    let observed = with(|d| d.groups = vec![group(d, "llama-0", &[(0, None, None), (0, None, None)])]);
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Reserved"]);
    let nodes: Vec<_> = written(&plan, "llama-0")
        .members
        .iter()
        .map(|m| m.node.as_deref())
        .collect();
    assert_eq!(nodes, [Some("a"), Some("b")]);
    assert_eq!(written(&plan, "llama-0").generation, 0);
}

#[test]
fn step_2_all_pods_are_created_gated() {
    let observed = with(|d| {
        d.groups = vec![group(d, "llama-0", &[(0, Some("a"), None), (0, Some("b"), None)])];
        d.groups[0].pods = vec![gated("llama-0", 0, 0, "u0")];
    });
    assert_eq!(words(&decide(&observed, NOW)), ["create pod llama-0-1-0"]);
}

#[test]
fn step_3_pods_are_recorded_before_any_gate_is_lifted() {
    let observed = with(|d| {
        d.groups = vec![group(d, "llama-0", &[(0, Some("a"), None), (0, Some("b"), None)])];
        d.groups[0].pods = vec![gated("llama-0", 0, 0, "u0"), gated("llama-0", 1, 0, "u1")];
    });
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Recorded"]);
    assert_eq!(written(&plan, "llama-0").generation, 1);
    let Action::WriteGroup {
        confirm,
        resource_version,
        ..
    } = &plan.steps[0].action
    else {
        panic!()
    };
    assert_eq!(confirm.present, ["u0", "u1"]);
    assert_eq!(resource_version, "7");
}

#[test]
fn step_4_gates_are_lifted_to_the_recorded_nodes() {
    let observed = with(|d| {
        d.groups = vec![group(
            d,
            "llama-0",
            &[(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))],
        )];
        d.groups[0].pods = vec![gated("llama-0", 0, 0, "u0"), gated("llama-0", 1, 0, "u1")];
    });
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["ungate llama-0-0-0 to a", "ungate llama-0-1-0 to b"]
    );
}

#[test]
fn step_5_past_the_deadline_the_whole_attempt_is_rolled_back() {
    let observed = with(|d| {
        d.groups = vec![group(
            d,
            "llama-0",
            &[(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))],
        )];
        let mut unscheduled = gated("llama-0", 1, 0, "u1");
        unscheduled.gated = false;
        unscheduled.unschedulable = Some("0/3 nodes: insufficient nvidia.com/gpu".into());
        let mut bound = gated("llama-0", 0, 0, "u0");
        bound.gated = false;
        bound.node = Some("a".into());
        d.groups[0].pods = vec![bound, unscheduled];
    });
    let deadline = NOW - 1000 + 120_000;
    assert!(words(&decide(&observed, deadline - 1)).is_empty());
    assert_eq!(decide(&observed, NOW).next_at, Some(deadline));

    let plan = decide(&observed, deadline);
    assert_eq!(words(&plan), ["write llama-0: RolledBack"]);
    let spec = written(&plan, "llama-0");
    assert!(
        spec.members
            .iter()
            .all(|m| m.attempt == 1 && m.node.is_none() && m.pod_uid.is_none())
    );
    assert_eq!(spec.place_after.as_ref().map(time::millis), Some(deadline + 5000));
    assert_eq!(spec.failures[0].reason, "Unschedulable");
    assert!(plan.steps[0].message.contains("insufficient nvidia.com/gpu"));
}

#[test]
fn pods_of_a_rolled_back_attempt_go() {
    let observed = with(|d| {
        d.groups = vec![group(d, "llama-0", &[(1, None, None), (1, None, None)])];
        spec(&mut d.groups[0], |s| {
            s.place_after = Some(time::to_time(NOW + 5000))
        });
        d.groups[0].pods = vec![gated("llama-0", 0, 0, "u0"), gated("llama-0", 1, 0, "u1")];
    });
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["delete pod llama-0-0-0", "delete pod llama-0-1-0"]);
    assert_eq!(plan.next_at, Some(NOW + 5000));
}

#[test]
fn form_waits_for_all_addresses_and_goes_to_those_that_do_not_know() {
    let mut observed = with(|d| {
        d.groups = vec![group(
            d,
            "llama-0",
            &[(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))],
        )];
        d.groups[0].pods = vec![
            running("llama-0", 0, 0, "u0", "a", 1, RankPhase::Connecting),
            running("llama-0", 1, 0, "u1", "b", 0, RankPhase::Preflight),
        ];
    });
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["form llama-0 generation 1 at 1 pods"]);
    let Action::Form { members, targets, .. } = &plan.steps[0].action else {
        panic!()
    };
    let ports: Vec<_> = members.iter().map(|m| (m.rank, m.ip.as_str(), m.port)).collect();
    assert_eq!(ports, [(0, "10.0.0.1", 18100), (1, "10.0.0.2", 18100)]);
    assert_eq!(targets[0].pod_uid, "u1");
    observed.deployments[0].groups[0].pods[0].ip = None;
    assert!(words(&decide(&observed, NOW)).is_empty());
}

#[test]
fn a_serving_group_needs_nothing() {
    let plan = decide(&with(|d| d.groups = vec![serving(d, "llama-0", ["a", "b"])]), NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
}

#[test]
fn a_deleted_pod_is_replaced_and_the_survivor_kept() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        d.groups[0].pods.remove(1);
    });
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: MemberLost"]);
    let after = written(&plan, "llama-0");
    assert_eq!(
        (after.members[0].attempt, after.members[0].pod_uid.as_deref()),
        (0, Some("llama-0-u0"))
    );
    assert_eq!(
        (after.members[1].attempt, after.members[1].node.as_deref()),
        (1, None)
    );
    assert_eq!((after.failures[0].charged, after.generation), (false, 1));

    let after = after.clone();
    spec(&mut observed.deployments[0].groups[0], |s| *s = after);
    let plan = decide(&observed, NOW);
    assert_eq!(written(&plan, "llama-0").members[1].node.as_deref(), Some("b"));
}

#[test]
fn a_crashed_pod_avoids_its_node_and_is_charged() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        let crashed = ended(d.groups[0].pods[1].clone(), 137, "out of memory");
        d.groups[0].pods[1] = crashed;
    });
    let plan = decide(&observed, NOW);
    let after = written(&plan, "llama-0").clone();
    assert_eq!(
        (after.failures[0].charged, after.failures[0].exit_code),
        (true, Some(137))
    );
    assert!(plan.steps[0].message.contains("out of memory"));
    spec(&mut observed.deployments[0].groups[0], |s| *s = after);
    let plan = decide(&observed, NOW);
    assert_eq!(
        words(&plan),
        ["delete pod llama-0-1-0", "write llama-0: Reserved"]
    );
    assert_eq!(written(&plan, "llama-0").members[1].node.as_deref(), Some("c"));
    // The failed node is taken when it is the only fit.
    observed.nodes.retain(|node| node.name != "c");
    assert_eq!(
        written(&decide(&observed, NOW), "llama-0").members[1]
            .node
            .as_deref(),
        Some("b")
    );
}

#[test]
fn a_member_that_a_short_node_evicted_goes_elsewhere_uncharged() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        let mut evicted = ended(
            d.groups[0].pods[1].clone(),
            -1,
            "The node was low on resource: memory.",
        );
        (evicted.evicted, evicted.pressure) = (true, true);
        d.groups[0].pods[1] = evicted;
    });
    let after = written(&decide(&observed, NOW), "llama-0").clone();
    let failure = &after.failures[0];
    assert_eq!((failure.reason.as_str(), failure.charged), ("Pressure", false));
    assert!(
        failure.message.contains("low on resource: memory"),
        "{}",
        failure.message
    );
    let mut next = observed;
    spec(&mut next.deployments[0].groups[0], |s| *s = after);
    assert_eq!(
        written(&decide(&next, NOW), "llama-0").members[1].node.as_deref(),
        Some("c")
    );
}

#[test]
fn a_spent_budget_replaces_nobody() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        d.groups[0].pods.remove(1);
        d.groups[0].pods[0].report.as_mut().unwrap().serving = false;
        spec(&mut d.groups[0], |s| {
            s.members[1] = serde_json::from_value(serde_json::json!({"index": 1, "attempt": 4})).unwrap();
            s.failures = (1..=4)
                .map(|i| serde_json::from_value(serde_json::json!({
                    "time": time::to_time(NOW - i * 1000), "index": 1, "attempt": 1, "reason": "Exited", "charged": true, "exitCode": 2,
                    "message": "no such file", "node": "b"
                })).unwrap())
                .collect();
        });
    });
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let report = llamero_core::report(&observed, &plan, NOW);
    let status = report.groups.values().next().unwrap();
    assert_eq!(status.phase, GroupPhase::Failed);
    assert!(
        status.message.contains("restart budget of 3") && status.message.contains("code 2: no such file"),
        "{}",
        status.message
    );
    // A larger budget helps at once, after the backoff.
    observed.deployments[0] = {
        let mut other = deployment(|d| d["spec"]["recovery"] = serde_json::json!({"restartBudget": 9}));
        other.groups = observed.deployments[0].groups.clone();
        other
    };
    assert_eq!(
        words(&decide(&observed, NOW + 60_000)),
        ["write llama-0: Reserved"]
    );
}

#[test]
fn before_a_group_was_formed_a_loss_takes_the_placement_back_whole() {
    let observed = with(|d| {
        d.groups = vec![group(
            d,
            "llama-0",
            &[(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))],
        )];
        let mut bound = gated("llama-0", 0, 0, "u0");
        bound.gated = false;
        bound.node = Some("a".into());
        d.groups[0].pods = vec![bound];
    });
    let plan = decide(&observed, NOW);
    assert!(
        written(&plan, "llama-0")
            .members
            .iter()
            .all(|m| m.attempt == 1 && m.node.is_none())
    );
}

#[test]
fn a_node_that_is_not_ready_costs_nothing_while_its_ranks_step() {
    let mut observed = with(|d| d.groups = vec![serving(d, "llama-0", ["a", "b"])]);
    observed.nodes[1].ready = false;
    assert!(decide(&observed, NOW).steps.is_empty());
    // Once the group stands still and the supervisor is silent too, the node is lost, and nobody is charged.
    let group = &mut observed.deployments[0].groups[0];
    group.pods[0].report.as_mut().unwrap().serving = false;
    group.pods[1].report.as_mut().unwrap().alive_at = NOW - 31_000;
    let plan = decide(&observed, NOW);
    let after = written(&plan, "llama-0");
    assert_eq!(
        (after.failures[0].reason.as_str(), after.failures[0].charged),
        ("NodeLost", false)
    );
    assert_eq!(after.members[0].attempt, 0);
}

#[test]
fn a_superseded_member_that_terminates_slowly_is_hurried() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        d.groups[0].pods[1].deletion = Some(60);
        spec(&mut d.groups[0], |s| {
            s.members[1] = serde_json::from_value(serde_json::json!({"index": 1, "attempt": 1})).unwrap();
        });
    });
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["delete pod llama-0-1-0 in 5", "write llama-0: Reserved"]
    );
}

#[test]
fn after_a_restart_of_the_operator_a_group_that_nobody_hears_yet_stays_ready() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        for pod in &mut d.groups[0].pods {
            pod.report = None;
            pod.ready = true;
        }
    });
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let reports = llamero_core::report(&observed, &plan, NOW);
    let status = reports.groups.values().next().unwrap();
    assert_eq!(
        (status.phase, status.leader_address.as_deref()),
        (GroupPhase::Serving, Some("10.0.0.1:18051"))
    );
}

#[test]
fn a_draining_group_finishes_and_goes() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        spec(&mut d.groups[0], |s| {
            s.intent = Intent::Drain;
            s.drain_since = Some(time::to_time(NOW));
        });
    });
    let mut step = |change: &dyn Fn(&mut llamero_core::observed::Pod), now| {
        change(&mut observed.deployments[0].groups[0].pods[0]);
        words(&decide(&observed, now))
    };
    assert_eq!(step(&|_| {}, NOW), ["drain llama-0"]);
    assert!(step(&|leader| leader.report.as_mut().unwrap().draining = true, NOW).is_empty());
    assert_eq!(step(&|_| {}, NOW + 60_000), ["delete group llama-0"]);
    assert_eq!(
        step(&|leader| *leader = ended(leader.clone(), 0, ""), NOW),
        ["delete group llama-0"]
    );
}

#[test]
fn what_can_never_work_gives_its_room_back_and_is_not_tried_at_once() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        let report = d.groups[0].pods[1].report.as_mut().unwrap();
        report.ranks[0].phase = RankPhase::Failed;
        report.ranks[0].unusable =
            Some("the cache needs 1.5 GiB, but 1.0 GiB is granted: raise engine.kvCache.memory".into());
        d.groups[0].pods[0].report.as_mut().unwrap().serving = false;
    });
    let after = written(&decide(&observed, NOW), "llama-0").clone();
    assert!(
        after.members.iter().all(|m| m.node.is_none()),
        "{:?}",
        after.members
    );
    assert_eq!(
        (after.failures[0].reason.as_str(), after.failures[0].charged),
        ("Unusable", false)
    );

    let group = &mut observed.deployments[0].groups[0];
    group.pods.clear();
    spec(group, |s| *s = after);
    observed.nodes.iter_mut().for_each(|node| node.used.clear());
    let plan = decide(&observed, NOW + 59_999);
    // Nobody holds weights any more, so the budget opens; no node is taken.
    assert_eq!(words(&plan), ["apply pdb Some(Int(2))"]);
    let status = status_at(&observed, NOW + 59_999);
    let (degraded, why, message) = condition(&status, "Degraded");
    assert_eq!((degraded, why), ("True", "WorkerUnusable"));
    assert!(message.contains("raise engine.kvCache.memory"), "{message}");
    let words = words(&decide(&observed, NOW + 60_000));
    assert!(words.contains(&"write llama-0: Reserved".to_owned()), "{words:?}");
}

#[test]
fn ranks_with_different_weights_are_told_by_name() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        for (pod, identity) in d.groups[0].pods.iter_mut().zip(["aaaa", "bbbb"]) {
            let report = pod.report.as_mut().unwrap();
            report.serving = false;
            report.ranks[0].phase = RankPhase::Connecting;
            report.ranks[0].content_identity = identity.into();
        }
    });
    let plan = decide(&observed, NOW);
    let reports = llamero_core::report(&observed, &plan, NOW);
    let group = reports.groups.values().next().unwrap();
    assert_eq!(group.content_identity, None);
    let status = reports.deployments.values().next().unwrap();
    let (_, why, message) = condition(status, "Degraded");
    assert_eq!(why, "RanksDiffer");
    assert!(
        message.contains("rank 0 on a has aaaa, rank 1 on b has bbbb"),
        "{message}"
    );
}

#[test]
fn the_identity_of_the_weights_is_in_both_statuses() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        for pod in &mut d.groups[0].pods {
            let rank = &mut pod.report.as_mut().unwrap().ranks[0];
            (rank.content_identity, rank.numerics) = ("aaaa".into(), "cpu".into());
        }
    });
    let reports = llamero_core::report(&observed, &decide(&observed, NOW), NOW);
    let group = reports.groups.values().next().unwrap();
    assert_eq!(
        (group.content_identity.as_deref(), group.numerics.as_deref()),
        (Some("aaaa"), Some("cpu"))
    );
    assert_eq!(
        reports
            .deployments
            .values()
            .next()
            .unwrap()
            .content_identity
            .as_deref(),
        Some("aaaa")
    );
}

#[test]
fn a_refused_pod_releases_the_room_of_its_whole_group() {
    let mut observed = with(|d| {
        let mut group = group(d, "llama-0", &[(0, Some("a"), None), (0, Some("b"), None)]);
        group.pods = vec![gated("llama-0", 0, 0, "u0")];
        group.refusals = vec![Refusal {
            target: "CreatePod llama-0-1-0".into(),
            message: "pods \"llama-0-1-0\" is forbidden: exceeded quota: gpus".into(),
            at: NOW,
            times: 1,
        }];
        d.groups = vec![group];
    });
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: RolledBack"]);
    let after = written(&plan, "llama-0").clone();
    assert!(
        after.members.iter().all(|m| m.node.is_none() && m.attempt == 1),
        "{:?}",
        after.members
    );
    assert_eq!(after.failures[0].reason, "Refused");
    // The room is free for others; the group comes back after its backoff, with new pods.
    let group = &mut observed.deployments[0].groups[0];
    spec(group, |s| *s = after);
    assert_eq!(reserved(&observed, "a"), 0);
    assert_eq!(words(&decide(&observed, NOW + 1000)), ["delete pod llama-0-0-0"]);
    assert!(words(&decide(&observed, NOW + 5_000)).contains(&"write llama-0: Reserved".to_owned()));
    let status = status_at(&observed, NOW + 1000);
    let (degraded, why, message) = condition(&status, "Degraded");
    assert_eq!((degraded, why), ("True", "Refused"));
    assert!(message.contains("exceeded quota: gpus"), "{message}");
}

#[test]
fn a_refused_step_waits_and_holds_back_what_depends_on_it() {
    let mut observed = with(|d| {
        let mut group = serving(d, "llama-0", ["a", "b"]);
        group.budget = None;
        group.refusals = vec![Refusal {
            target: "Apply llama-0".into(),
            message: "denied by policy".into(),
            at: NOW,
            times: 4,
        }];
        d.groups = vec![group];
    });
    let plan = decide(&observed, NOW + 1);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let due = plan.next_at.unwrap();
    assert!((NOW + 8_000..=NOW + 10_000).contains(&due), "{}", due - NOW);
    assert_eq!(decide(&observed, due).steps.len(), 1);
    observed.deployments[0].groups[0].refusals.clear();
    assert_eq!(decide(&observed, NOW + 1).steps.len(), 1);
}

#[test]
fn a_container_that_does_not_start_gives_the_room_of_its_group_back() {
    let observed = with(|d| {
        let mut group = group(
            d,
            "llama-0",
            &[(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))],
        );
        group.pods = vec![
            running("llama-0", 0, 0, "u0", "a", 0, RankPhase::Loading),
            gated("llama-0", 1, 0, "u1"),
        ];
        let stuck = &mut group.pods[1];
        (stuck.gated, stuck.node) = (false, Some("b".into()));
        stuck.waiting = Some("ImagePullBackOff: no such image".into());
        d.groups = vec![group];
    });
    // Placed a second ago; two minutes to schedule and thirty to start.
    let late = NOW - 1000 + 32 * 60_000;
    assert!(decide(&observed, late - 1).steps.is_empty());
    let plan = decide(&observed, late);
    assert_eq!(words(&plan), ["write llama-0: RolledBack"]);
    let after = written(&plan, "llama-0");
    assert!(
        after.members.iter().all(|m| m.node.is_none()),
        "{:?}",
        after.members
    );
    assert_eq!(
        (
            after.failures[0].reason.as_str(),
            after.failures[0].message.as_str()
        ),
        ("NotStarted", "ImagePullBackOff: no such image")
    );
}
