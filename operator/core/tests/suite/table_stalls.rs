//! Steps that stand still, and steps that are only slow.

use llamero_api::group::{RankPhase, RankStatus};
use llamero_core::{decide, observed::Observed};

use crate::build::*;

#[test]
fn the_rank_that_is_behind_is_blamed_for_a_stall() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        for (at, entered) in [(0, 9), (1, 8)] {
            let report = d.groups[0].pods[at].report.as_mut().unwrap();
            report.serving = false;
            report.ranks[0].entered = entered;
            report.ranks[0].idle_millis = Some(31_000);
        }
    });
    let plan = decide(&observed, NOW);
    let after = written(&plan, "llama-0");
    assert_eq!((after.members[0].attempt, after.members[1].attempt), (0, 1));
    assert_eq!(
        (after.failures[0].reason.as_str(), after.failures[0].index),
        ("Stalled", 1)
    );
}

#[test]
fn a_stall_with_equal_steps_is_a_link_and_blames_nobody_for_a_while() {
    let mut observed = with(|d| d.groups = vec![serving(d, "llama-0", ["a", "b"])]);
    let mut after = |idle| {
        for pod in &mut observed.deployments[0].groups[0].pods {
            let report = pod.report.as_mut().unwrap();
            report.serving = false;
            report.ranks[0].entered = 9;
            report.ranks[0].idle_millis = Some(idle);
        }
        decide(&observed, NOW)
    };
    assert!(after(90_000).steps.is_empty());
    let plan = after(90_001);
    assert!(
        plan.steps[0]
            .message
            .contains("a link between nodes may be broken")
    );
    assert_eq!(written(&plan, "llama-0").members[1].attempt, 1);
}

#[test]
fn a_rank_that_hangs_in_a_step_that_its_peers_have_left_is_blamed() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        let leader = d.groups[0].pods[0].report.as_mut().unwrap();
        leader.serving = false;
        leader.ranks[0].phase = RankPhase::Connecting;
        d.groups[0].pods[1].report.as_mut().unwrap().ranks[0].idle_millis = Some(31_000);
    });
    let plan = decide(&observed, NOW);
    assert_eq!(
        written(&plan, "llama-0").failures[0].message,
        "rank 1 hangs in a step for 31 s"
    );
}

#[test]
fn a_replacement_that_has_just_loaded_is_not_blamed_for_the_time_it_took() {
    let observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        for pod in &mut d.groups[0].pods {
            let report = pod.report.as_mut().unwrap();
            report.serving = false;
            report.ranks[0].phase = RankPhase::Connecting;
            report.ranks[0].idle_millis = (pod.index == 0).then_some(400_000);
        }
    });
    assert!(decide(&observed, NOW).steps.is_empty());
}

/// A group in whose step nothing was completed for 31 s, with these times in which nothing moved on each rank.
fn slow(still: [i64; 2]) -> Observed {
    with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        for (pod, still) in d.groups[0].pods.iter_mut().zip(still) {
            let report = pod.report.as_mut().unwrap();
            report.serving = false;
            let rank = &mut report.ranks[0];
            (rank.entered, rank.completed) = (5, 4);
            rank.idle_millis = Some(400_000);
            rank.still_millis = Some(still);
        }
    })
}

#[test]
fn a_slow_step_whose_layers_move_is_no_hang() {
    for still in [[100, 2_000], [100, 200_000]] {
        let plan = decide(&slow(still), NOW);
        assert!(plan.steps.is_empty(), "{still:?}: {:?}", words(&plan));
    }
}

#[test]
fn a_slow_step_is_told_and_a_stuck_layer_is_not_called_slow() {
    let message = |still| {
        let observed = slow(still);
        let reports = llamero_core::report(&observed, &decide(&observed, NOW), NOW);
        reports.groups.values().next().unwrap().message.clone()
    };
    let told = message([100, 2_000]);
    assert!(
        told.contains("slow and not stuck") && told.contains("lower engine.maxBatchedTokens"),
        "{told}"
    );
    assert!(!message([100, 200_000]).contains("slow and not stuck"));
}

/// One rank alone, which says that nothing of it moved for so long.
fn alone(still: i64) -> Observed {
    let mut deployment = deployment(|d| d["spec"]["parallelism"]["tensor"] = serde_json::json!(1));
    let mut group = group(&deployment, "llama-0", &[(0, Some("a"), Some("u0"))]);
    group.pods = vec![running("llama-0", 0, 0, "u0", "a", 1, RankPhase::Serving)];
    let report = group.pods[0].report.as_mut().unwrap();
    report.serving = false;
    report.ranks[0].idle_millis = Some(400_000);
    report.ranks[0].still_millis = Some(still);
    deployment.groups = vec![group];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    observed
}

#[test]
fn a_layer_that_is_stuck_on_the_only_rank_is_a_hang_and_a_slow_one_is_not() {
    assert!(decide(&alone(30_000), NOW).steps.is_empty());
    let plan = decide(&alone(30_001), NOW);
    assert_eq!(
        written(&plan, "llama-0").failures[0].message,
        "rank 0 hangs in a step for 30 s"
    );
}

#[test]
fn a_report_that_is_seconds_old_makes_no_layer_stuck_before_its_time() {
    let mut observed = alone(29_000);
    for (age, stuck) in [(500, false), (1_500, true)] {
        let report = observed.deployments[0].groups[0].pods[0].report.as_mut().unwrap();
        report.received_at = NOW - age;
        assert_eq!(!decide(&observed, NOW).steps.is_empty(), stuck, "{age}");
    }
}

#[test]
fn of_ranks_in_one_step_the_one_that_stopped_first_is_to_blame() {
    let plan = decide(&slow([110_000, 99_000]), NOW);
    assert_eq!(
        written(&plan, "llama-0").failures[0].message,
        "rank 0 stopped before its peers and has not moved for 110 s"
    );
    // All stopped together: a link, and the last member moves.
    let plan = decide(&slow([100_000, 100_500]), NOW);
    let failure = &written(&plan, "llama-0").failures[0];
    assert_eq!(failure.index, 1);
    assert!(
        failure.message.contains("a link between nodes may be broken"),
        "{}",
        failure.message
    );
}

/// A group that served before this operator started, whose leader answers that it does not any more, and whose second member it has never
/// heard, although the operator before it had; with how that member's node is.
fn unheard(node_ready: bool) -> Observed {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        let group = &mut d.groups[0];
        group.pods[0].report.as_mut().unwrap().serving = false;
        (group.pods[1].report, group.pods[1].unheard_since) = (None, Some(NOW));
        let ranks = group.pods.iter().zip(0..).map(|(pod, rank)| RankStatus {
            rank,
            pod: pod.name.clone(),
            phase: RankPhase::Serving,
            loaded_bytes: 1,
            ..RankStatus::default()
        });
        let ranks = ranks.collect();
        status(group, |status| {
            (status.ready, status.ranks, status.loaded_bytes) = (false, ranks, 1);
        });
    });
    observed.nodes[1].ready = node_ready;
    observed
}

/// The plan at a time at which the leader still answers.
fn later(mut observed: Observed, after: i64) -> llamero_core::Plan {
    let report = observed.deployments[0].groups[0].pods[0].report.as_mut().unwrap();
    (report.received_at, report.alive_at) = (NOW + after, NOW + after);
    decide(&observed, NOW + after)
}

#[test]
fn a_member_that_a_new_operator_never_heard_is_lost_with_its_node_after_the_usual_silence() {
    for (node_ready, patience, reason) in [(false, 30_000, "NodeLost"), (true, 60_000, "Unreachable")] {
        let early = later(unheard(node_ready), patience);
        assert!(early.steps.is_empty(), "{:?}", words(&early));
        let plan = later(unheard(node_ready), patience + 1);
        let after = written(&plan, "llama-0");
        assert_eq!((after.members[0].attempt, after.members[1].attempt), (0, 1));
        let failure = &after.failures[0];
        assert_eq!((failure.reason.as_str(), failure.index), (reason, 1));
    }
}

/// The clock begins when this operator does, not when the group was heard last.
#[test]
fn an_operator_that_has_just_started_gives_everybody_the_usual_time() {
    let mut observed = unheard(false);
    observed.nodes[0].ready = false;
    let leader = &mut observed.deployments[0].groups[0].pods[0];
    (leader.report, leader.unheard_since) = (None, Some(NOW));
    for after in [0, 1_000, 30_000] {
        let plan = decide(&observed, NOW + after);
        assert!(plan.steps.is_empty(), "{after}: {:?}", words(&plan));
    }
    // On ready nodes nobody proves that it is not this operator that hears nothing.
    observed.nodes.iter_mut().for_each(|node| node.ready = true);
    assert!(decide(&observed, NOW + 36_000_000).steps.is_empty());
}

#[test]
fn who_was_never_heard_by_any_operator_has_a_deadline_to_start() {
    let mut observed = unheard(true);
    status(&mut observed.deployments[0].groups[0], |status| {
        status.ranks.clear()
    });
    let plan = later(observed, 600_000);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
}

/// The group is not whole for want of room; that its survivor is gone too is seen all the same.
#[test]
fn a_survivor_that_is_gone_holds_no_room_until_its_peers_find_some() {
    let mut observed = unheard(false);
    let group = &mut observed.deployments[0].groups[0];
    spec(group, |s| {
        s.members[0] = serde_json::from_value(serde_json::json!({"index": 0, "attempt": 1})).unwrap();
    });
    group.pods.remove(0);
    observed.nodes.truncate(2);
    observed.nodes[0].unschedulable = true;
    assert!(decide(&observed, NOW + 30_000).steps.is_empty());
    let plan = decide(&observed, NOW + 30_001);
    assert!(written(&plan, "llama-0").members.iter().all(|m| m.node.is_none()));
}
