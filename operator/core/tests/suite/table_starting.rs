//! Deadlines of a start: what is silent, what reads nothing, what does not come together.

use llamero_api::group::{RankPhase, RankStatus};
use llamero_core::{decide, observed::Observed, time};

use crate::build::*;

const MINUTE: i64 = 60_000;

/// A group on nodes a and b whose pods run and report these phases, placed at [`NOW`] less a second.
fn starting(phases: [RankPhase; 2]) -> Observed {
    let mut deployment = deployment(|_| {});
    let members = [(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))];
    let mut group = group(&deployment, "llama-0", &members);
    group.pods = vec![
        running("llama-0", 0, 0, "u0", "a", 1, phases[0]),
        running("llama-0", 1, 0, "u1", "b", 1, phases[1]),
    ];
    group.pods[0].report.as_mut().unwrap().serving = false;
    deployment.groups = vec![group];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    observed
}

/// All ranks tell now that nothing of them has moved for so long.
fn still(observed: &mut Observed, now: i64, still: [Option<i64>; 2]) {
    let pods = observed.deployments[0].groups[0].pods.iter_mut();
    for (pod, still) in pods.zip(still) {
        let report = pod.report.as_mut().unwrap();
        (report.received_at, report.alive_at) = (now, now);
        report.ranks[0].still_millis = still;
    }
}

#[test]
fn a_rank_that_reads_nothing_is_replaced_and_its_peer_keeps_its_weights() {
    let mut observed = starting([RankPhase::Connecting, RankPhase::Loading]);
    let now = NOW + 20 * MINUTE;
    still(&mut observed, now, [Some(15 * MINUTE), Some(10 * MINUTE - 1)]);
    let plan = decide(&observed, now);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    assert_eq!(plan.next_at, Some(now + 1));
    still(&mut observed, now, [Some(15 * MINUTE), Some(10 * MINUTE)]);
    let plan = decide(&observed, now);
    assert_eq!(words(&plan), ["write llama-0: MemberLost"]);
    let spec = written(&plan, "llama-0");
    assert_eq!((spec.members[0].attempt, spec.members[1].attempt), (0, 1));
    let failure = &spec.failures[0];
    assert_eq!((failure.reason.as_str(), failure.charged), ("Stalled", true));
    assert!(
        failure
            .message
            .contains("rank 1 read nothing of its shard for 10m"),
        "{}",
        failure.message
    );
}

#[test]
fn a_rank_that_never_read_a_byte_is_measured_from_when_it_had_to_run() {
    let mut observed = starting([RankPhase::Connecting, RankPhase::Preflight]);
    let rank = &mut observed.deployments[0].groups[0].pods[1]
        .report
        .as_mut()
        .unwrap()
        .ranks[0];
    rank.loaded_bytes = 0;
    // Two minutes to schedule, thirty to start, ten to read.
    let due = NOW - 1000 + 42 * MINUTE;
    still(&mut observed, due - 1, [Some(0), None]);
    assert!(decide(&observed, due - 1).steps.is_empty());
    still(&mut observed, due, [Some(0), None]);
    assert_eq!(words(&decide(&observed, due)), ["write llama-0: MemberLost"]);
    // A process that was started again is at its beginning.
    let rank = &mut observed.deployments[0].groups[0].pods[1]
        .report
        .as_mut()
        .unwrap()
        .ranks[0];
    rank.restarts = 1;
    assert!(decide(&observed, due).steps.is_empty());
}

#[test]
fn ranks_that_do_not_come_together_are_told_and_the_one_that_connects_is_replaced() {
    let mut observed = starting([RankPhase::Warming, RankPhase::Connecting]);
    let now = NOW + 20 * MINUTE;
    still(&mut observed, now, [Some(11 * MINUTE), Some(9 * MINUTE)]);
    assert!(
        decide(&observed, now).steps.is_empty(),
        "the last one has its weights since 9 minutes"
    );
    still(&mut observed, now, [Some(11 * MINUTE), Some(10 * MINUTE)]);
    let plan = decide(&observed, now);
    assert_eq!(words(&plan), ["write llama-0: MemberLost"]);
    let failure = &written(&plan, "llama-0").failures[0];
    assert_eq!(failure.index, 1);
    assert!(
        failure.message.contains("do not serve after 10m"),
        "{}",
        failure.message
    );
}

#[test]
fn ranks_with_different_weights_are_not_shuffled() {
    let mut observed = starting([RankPhase::Connecting, RankPhase::Connecting]);
    let now = NOW + 60 * MINUTE;
    still(&mut observed, now, [Some(30 * MINUTE), Some(30 * MINUTE)]);
    for (pod, identity) in observed.deployments[0].groups[0]
        .pods
        .iter_mut()
        .zip(["one", "other"])
    {
        pod.report.as_mut().unwrap().ranks[0].content_identity = identity.into();
    }
    assert!(decide(&observed, now).steps.is_empty());
}

#[test]
fn a_pod_that_never_answers_gives_its_accelerators_back() {
    let mut observed = starting([RankPhase::Connecting, RankPhase::Connecting]);
    observed.deployments[0].groups[0].pods[1].report = None;
    let due = NOW - 1000 + 32 * MINUTE;
    still_one(&mut observed, due - 1);
    let plan = decide(&observed, due - 1);
    assert!(
        plan.steps.iter().all(|step| step.reason != "RolledBack"),
        "{:?}",
        words(&plan)
    );
    still_one(&mut observed, due);
    let plan = decide(&observed, due);
    assert_eq!(words(&plan), ["write llama-0: RolledBack"]);
    let spec = written(&plan, "llama-0");
    assert!(spec.members.iter().all(|m| m.node.is_none()));
    assert_eq!(spec.failures.len(), 1, "the pod that answers is not to blame");
    assert_eq!(spec.failures[0].index, 1);
    assert!(
        spec.failures[0]
            .message
            .contains("nobody answers at its control port"),
        "{}",
        spec.failures[0].message
    );
}

#[test]
fn an_operator_that_has_just_started_blames_nobody_for_not_having_been_heard_yet() {
    let mut observed = starting([RankPhase::Connecting, RankPhase::Connecting]);
    let group = &mut observed.deployments[0].groups[0];
    for pod in &mut group.pods {
        pod.report = None;
    }
    let ranks = group.pods.iter().enumerate().map(|(rank, pod)| RankStatus {
        rank: i32::try_from(rank).unwrap(),
        pod: pod.name.clone(),
        phase: RankPhase::Loading,
        ..RankStatus::default()
    });
    let ranks: Vec<RankStatus> = ranks.collect();
    status(group, |status| (status.ranks, status.loaded_bytes) = (ranks, 1));
    let plan = decide(&observed, time::millis(&time::to_time(NOW)) + 600 * MINUTE);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
}

fn still_one(observed: &mut Observed, now: i64) {
    let report = observed.deployments[0].groups[0].pods[0].report.as_mut().unwrap();
    (report.received_at, report.alive_at) = (now, now);
}
