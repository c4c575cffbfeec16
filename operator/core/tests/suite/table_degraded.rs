//! A group goes on without a member for which there is no room, and takes it back.

use llamero_api::group::{GroupPhase, MemberFailure, RankPhase};
use llamero_core::{
    decide,
    observed::{Deployment, Group, Observed},
    plan::Action,
    report,
    time::{self, Millis},
};

use crate::build::*;

const AFTER: Millis = 30_000;

/// A deployment on CPUs of which a rank may take over what the other had.
fn cpus(allow: bool, kv: i64) -> Deployment {
    let mut deployment = deployment(|d| {
        let spec = d["spec"].as_object_mut().unwrap();
        spec.remove("accelerator");
        if allow {
            spec["recovery"]["degraded"] = "Allow".into();
        }
    });
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    spec(&mut deployment.groups[0], |spec| {
        spec.template.weight_bytes_per_rank = 4 << 30;
        spec.template.kv_bytes_per_rank = kv;
        spec.template.max_context_length = 8192;
    });
    deployment
}

fn first(observed: &mut Observed) -> &mut Group {
    &mut observed.deployments[0].groups[0]
}

/// Member 1 was lost `ago` milliseconds ago, and no node has room for another.
fn lost(deployment: Deployment, ago: Millis) -> Observed {
    let mut observed = observed(deployment);
    observed.nodes.retain(|node| node.name == "a");
    // For the leader alone.
    observed.nodes[0].allocatable = observed.nodes[0].allocatable.clone().with("pods", 1);
    count_usage(&mut observed);
    let group = first(&mut observed);
    group.pods.remove(1);
    group.pods[0].report.as_mut().unwrap().serving = false;
    group.pods[0].report.as_mut().unwrap().ranks[0].phase = RankPhase::Connecting;
    status(group, |status| {
        status.phase = GroupPhase::Recovering;
        status.unplaceable_since = Some(time::to_time(NOW - ago));
    });
    spec(group, |spec| {
        let member = &mut spec.members[1];
        (member.attempt, member.node, member.pod_uid, member.placed_at) = (1, None, None, None);
        spec.failures.push(MemberFailure {
            time: time::to_time(NOW - ago),
            index: 1,
            attempt: 0,
            node: Some("b".into()),
            reason: "NodeLost".into(),
            exit_code: None,
            message: "node b is gone".into(),
            charged: false,
        });
    });
    observed
}

#[test]
fn a_group_goes_on_when_no_room_was_found_in_time_and_it_may() {
    let waits = lost(cpus(true, 8 << 30), AFTER - 1000);
    let plan = decide(&waits, NOW);
    assert!(words(&plan).is_empty(), "{:?}", words(&plan));
    assert_eq!(plan.next_at, Some(NOW + 1000));

    let mut due = lost(cpus(true, 8 << 30), AFTER);
    let plan = decide(&due, NOW);
    assert_eq!(words(&plan), ["write llama-0: Degraded"]);
    let after = written(&plan, "llama-0").clone();
    assert_eq!((after.without.as_slice(), after.generation), (&[1][..], 2));
    assert!(
        plan.steps[0].message.contains("1 of 2 members"),
        "{}",
        plan.steps[0].message
    );
    spec(first(&mut due), |spec| *spec = after);
    let plan = decide(&due, NOW);
    assert_eq!(
        words(&plan),
        ["form llama-0 generation 2 at 1 pods without ranks [1]"]
    );
    let Action::Form { members, .. } = &plan.steps[0].action else {
        panic!()
    };
    assert_eq!(members.iter().map(|m| m.rank).collect::<Vec<_>>(), [0]);

    let never = lost(cpus(false, 8 << 30), 100 * AFTER);
    assert!(words(&decide(&never, NOW)).is_empty());
    // Nobody is given up whom nobody has tried to place.
    let mut room = lost(cpus(true, 8 << 30), AFTER);
    status(first(&mut room), |status| status.unplaceable_since = None);
    room.nodes.push(node("c", 0));
    assert_eq!(words(&decide(&room, NOW)), ["write llama-0: Reserved"]);
}

#[test]
fn what_the_others_cannot_hold_is_said_with_numbers() {
    // 4 GiB of weights and 1 GiB for keys and values do not take over 4 GiB more.
    let mut small = lost(cpus(true, 1 << 30), 10 * AFTER);
    let plan = decide(&small, NOW);
    assert!(words(&plan).is_empty(), "{:?}", words(&plan));
    let told = report(&small, &plan, NOW);
    let message = told.groups.values().next().unwrap().message.clone();
    let needs = (8i64 << 30) + 2 * ((1 << 30) / 8192 * 512);
    assert!(
        message.contains("cannot do without member 1")
            && message.contains(&needs.to_string())
            && message.contains(&(5i64 << 30).to_string()),
        "{message}"
    );
    // The leader is waited for, whatever there is.
    spec(first(&mut small), |spec| {
        spec.template.kv_bytes_per_rank = 64 << 30;
        spec.members.swap(0, 1);
        (spec.members[0].index, spec.members[1].index) = (0, 1);
        spec.failures[0].index = 0;
    });
    first(&mut small).pods[0].index = 1;
    assert!(words(&decide(&small, NOW)).is_empty());
}

/// Serves without member 1.
fn degraded() -> Observed {
    let mut observed = lost(cpus(true, 8 << 30), AFTER);
    let group = first(&mut observed);
    spec(group, |spec| (spec.without, spec.generation) = (vec![1], 2));
    let report = group.pods[0].report.as_mut().unwrap();
    (report.generation, report.serving, report.longest_sequence) = (2, true, 5000);
    report.ranks[0].phase = RankPhase::Serving;
    observed
}

#[test]
fn it_says_so_and_asks_for_room() {
    let mut observed = degraded();
    let plan = decide(&observed, NOW);
    assert!(words(&plan).is_empty(), "{:?}", words(&plan));
    let told = report(&observed, &plan, NOW);
    let group = told.groups.values().next().unwrap();
    assert_eq!((group.phase, group.ready), (GroupPhase::Serving, true));
    let conditions = &told.deployments.values().next().unwrap().conditions;
    let condition = conditions.iter().find(|c| c.type_ == "Degraded").unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", "MembersMissing")
    );
    for part in ["1 of 2 members, without 1", "no room", "5000 of 8192 tokens"] {
        assert!(condition.message.contains(part), "{}", condition.message);
    }
    observed.nodes.push(node("c", 0));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Reserved"]);
    let after = written(&plan, "llama-0");
    assert_eq!(
        (after.members[1].node.as_deref(), after.generation),
        (Some("c"), 2)
    );
}

#[test]
fn a_member_comes_back_once_it_has_its_weights_and_room_for_a_while() {
    let mut observed = degraded();
    observed.nodes.push(node("c", 0));
    spec(first(&mut observed), |spec| {
        spec.members[1].node = Some("c".into());
        spec.members[1].placed_at = Some(time::to_time(NOW - AFTER));
    });
    assert_eq!(words(&decide(&observed, NOW)), ["create pod llama-0-1-1"]);
    first(&mut observed).pods.push(gated("llama-0", 1, 1, "u2"));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Recorded"]);
    let recorded = written(&plan, "llama-0").clone();
    assert_eq!((recorded.generation, recorded.without.as_slice()), (2, &[1][..]));
    spec(first(&mut observed), |spec| *spec = recorded);
    assert_eq!(words(&decide(&observed, NOW)), ["ungate llama-0-1-1 to c"]);

    // While it loads nobody is told of it, and when it dies the group serves on.
    first(&mut observed).pods[1] = running("llama-0", 1, 1, "u2", "c", 0, RankPhase::Loading);
    assert!(words(&decide(&observed, NOW)).is_empty());
    let mut dies = observed.clone();
    let pod = &mut first(&mut dies).pods[1];
    *pod = ended(pod.clone(), 1, "crashed");
    let plan = decide(&dies, NOW);
    assert_eq!(words(&plan), ["write llama-0: MemberLost"]);
    let after = written(&plan, "llama-0");
    assert_eq!((after.without.as_slice(), after.generation), (&[1][..], 2));
    assert_eq!(after.members[0].pod_uid.as_deref(), Some("llama-0-u0"));

    first(&mut observed).pods[1] = running("llama-0", 1, 1, "u2", "c", 0, RankPhase::Connecting);
    spec(first(&mut observed), |spec| {
        spec.members[1].placed_at = Some(time::to_time(NOW - AFTER + 5000));
    });
    let plan = decide(&observed, NOW);
    assert!(words(&plan).is_empty(), "{:?}", words(&plan));
    assert_eq!(plan.next_at, Some(NOW + 5000));
    let plan = decide(&observed, NOW + 5000);
    assert_eq!(words(&plan), ["write llama-0: Restored"]);
    let after = written(&plan, "llama-0").clone();
    assert_eq!((after.without.len(), after.generation), (0, 3));
    spec(first(&mut observed), |spec| *spec = after);
    assert_eq!(
        words(&decide(&observed, NOW + 5000)),
        ["form llama-0 generation 3 at 2 pods"]
    );
}

#[test]
fn without_survivors_it_begins_anew_with_all() {
    let mut observed = degraded();
    first(&mut observed).pods.clear();
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: MemberLost"]);
    assert!(written(&plan, "llama-0").without.is_empty());
}
