//! An operator that may read no nodes: the scheduler alone chooses, and what the operator cannot know does no harm.

use llamero_api::{
    deployment::{condition as kind, reason},
    group::RankPhase,
};
use llamero_core::{decide, observed::Observed, placement::ANY_NODE};

use crate::build::*;

fn unpinned(change: impl FnOnce(&mut llamero_core::observed::Deployment)) -> Observed {
    let mut observed = with(change);
    observed.settings.unpinned = true;
    observed.nodes.clear();
    observed
}

/// A serving group whose nodes the scheduler chose.
fn serving_anywhere(d: &llamero_core::observed::Deployment) -> llamero_core::observed::Group {
    let mut group = serving(d, "llama-0", ["a", "b"]);
    spec(&mut group, |spec| {
        for member in &mut spec.members {
            member.node = Some(ANY_NODE.to_owned());
        }
    });
    group
}

#[test]
fn members_go_wherever_the_scheduler_puts_them() {
    let observed = unpinned(|d| d.groups = vec![group(d, "llama-0", &[(0, None, None), (0, None, None)])]);
    let plan = decide(&observed, NOW);
    assert_eq!(
        words(&plan),
        ["apply pdb Some(Int(1))", "write llama-0: Reserved"]
    );
    let members = &written(&plan, "llama-0").members;
    assert!(
        members.iter().all(|m| m.node.as_deref() == Some(ANY_NODE)),
        "{members:?}"
    );

    let any = Some(ANY_NODE);
    let observed = unpinned(|d| {
        d.groups = vec![group(d, "llama-0", &[(0, any, Some("u0")), (0, any, Some("u1"))])];
        d.groups[0].pods = vec![gated("llama-0", 0, 0, "u0"), gated("llama-0", 1, 0, "u1")];
    });
    let plan = decide(&observed, NOW);
    let ungate: Vec<String> = words(&plan)
        .into_iter()
        .filter(|word| word.starts_with("ungate"))
        .collect();
    assert_eq!(ungate, ["ungate llama-0-0-0 to *", "ungate llama-0-1-0 to *"]);
    assert!(
        plan.steps
            .iter()
            .any(|step| step.message == "pod llama-0-0-0 goes to any node")
    );
}

#[test]
fn what_is_not_scheduled_by_the_deadline_is_rolled_back_whole() {
    let any = Some(ANY_NODE);
    let observed = unpinned(|d| {
        d.groups = vec![group(d, "llama-0", &[(0, any, Some("u0")), (0, any, Some("u1"))])];
        let mut bound = gated("llama-0", 0, 0, "u0");
        (bound.gated, bound.node) = (false, Some("a".into()));
        let mut waits = gated("llama-0", 1, 0, "u1");
        (waits.gated, waits.unschedulable) = (false, Some("0/3 nodes are available".into()));
        d.groups[0].pods = vec![bound, waits];
    });
    let deadline = NOW - 1000 + 120_000;
    let plan = decide(&observed, deadline);
    let after = written(&plan, "llama-0");
    assert!(after.members.iter().all(|m| m.node.is_none() && m.attempt == 1));
    assert_eq!(
        (after.failures.len(), after.failures[0].node.as_deref()),
        (1, None)
    );
    assert!(
        plan.steps
            .iter()
            .any(|step| step.message.contains("0/3 nodes are available"))
    );
}

#[test]
fn who_serves_on_nodes_that_nobody_may_read_is_not_lost() {
    let mut observed = unpinned(|d| d.groups = vec![serving_anywhere(d)]);
    // One pod may be evicted, since nobody moves ahead of a drain.
    assert_eq!(words(&decide(&observed, NOW)), ["apply pdb Some(Int(1))"]);
    let told = status_at(&observed, NOW);
    let (status, why, message) = condition(&told, kind::UNPINNED);
    assert_eq!((status, why), ("True", reason::NODES_UNREADABLE));
    assert!(message.contains("rbac.clusterReader"), "{message}");
    assert_eq!(condition(&told, kind::READY).0, "True");

    // With permission again, and a node of theirs cordoned: the pods say where they are.
    observed.settings.unpinned = false;
    observed.nodes = vec![node("a", 1), node("b", 1), node("c", 1)];
    count_usage(&mut observed);
    assert!(
        !status_at(&observed, NOW)
            .conditions
            .iter()
            .any(|found| found.type_ == kind::UNPINNED)
    );
    observed.nodes[1].unschedulable = true;
    let plan = decide(&observed, NOW);
    let told = plan.steps.iter().find(|step| step.reason == "Disrupted").unwrap();
    assert_eq!(told.message, "node b is being taken away, so member 1 moves");
}

#[test]
fn a_member_that_is_silent_is_lost_when_a_peer_answers_or_its_pod_is_not_ready() {
    let lost = |pod_ready: bool, leader_answers: bool| {
        let mut observed = unpinned(|d| {
            let mut group = serving_anywhere(d);
            group.pods[0].report.as_mut().unwrap().serving = false;
            group.pods[0].report.as_mut().unwrap().ranks[0].phase = RankPhase::Connecting;
            group.pods.iter_mut().for_each(|pod| pod.ready = pod_ready);
            status(&mut group, |status| status.ready = false);
            d.groups = vec![group];
        });
        // Long enough for any patience of the template.
        let now = NOW + 600_000;
        let leader = &mut observed.deployments[0].groups[0].pods[0];
        if leader_answers {
            let report = leader.report.as_mut().unwrap();
            (report.received_at, report.alive_at) = (now, now);
        }
        let plan = decide(&observed, now);
        let mut steps = plan.steps.iter();
        steps.any(|step| step.reason == "MemberLost" && step.message.contains("member 1 on b: NodeLost"))
    };
    assert!(lost(true, true), "a peer proves that the fault is not ours");
    assert!(lost(false, false), "the kubelet or its controller says so");
    assert!(
        !lost(true, false),
        "nobody is heard, and all pods are ready: it may be us"
    );
}
