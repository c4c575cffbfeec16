//! Pods that ask for more than their template says, once they are admitted: room is found for what they ask, or it is said what is missing.

use llamero_api::group::Successor;
use llamero_core::{
    decide,
    observed::{Deployment, Observed, Pod},
    plan::Plan,
    resources::Resources,
    time,
};

use crate::build::*;

const GIB: i64 = 1 << 30;

/// What the template asks for, with this much memory instead of 2 GiB.
fn asks(memory: i64) -> Resources {
    let asked = Resources::new().with(GPU, 1).with("pods", 1);
    asked.with("memory", memory * GIB).with("cpu", 250)
}

fn admitted(index: i32, attempt: i32, memory: i64) -> Pod {
    Pod {
        request: Some(asks(memory)),
        ..gated("llama-0", index, attempt, &format!("u{index}"))
    }
}

/// The pods of the group exist and are gated, with this much memory each.
fn gated_group(d: &mut Deployment, memory: [i64; 2]) {
    d.groups = vec![group(d, "llama-0", &[(0, Some("a"), None), (0, Some("b"), None)])];
    d.groups[0].pods = vec![admitted(0, 0, memory[0]), admitted(1, 0, memory[1])];
}

/// The group waits for nodes, and knows what its pods ask for.
fn waiting(memory: i64) -> Observed {
    with(|d| {
        d.groups = vec![group(d, "llama-0", &[(1, None, None), (1, None, None)])];
        spec(&mut d.groups[0], |spec| {
            spec.admitted = asks(memory).to_quantities()
        });
    })
}

fn message<'p>(plan: &'p Plan, reason: &str) -> &'p str {
    &plan
        .steps
        .iter()
        .find(|step| step.reason == reason)
        .unwrap()
        .message
}

#[test]
fn what_admission_added_is_written_down_before_any_gate_is_lifted() {
    let observed = with(|d| gated_group(d, [2, 5]));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Larger"]);
    let after = written(&plan, "llama-0");
    assert!(after.members.iter().all(|m| m.attempt == 1 && m.node.is_none()));
    assert_eq!(after.admitted, asks(5).to_quantities());
    // The first time nobody waits.
    assert!(after.place_after.is_none() && after.failures.is_empty() && after.placement_failures == 0);
    let told = message(&plan, "Larger");
    assert!(
        told.contains("250m cpu instead of 0, 5.0 GiB memory instead of 2.0 GiB")
            && told.contains("LimitRange"),
        "{told}"
    );
}

#[test]
fn room_is_looked_for_by_what_pods_ask_for() {
    let mut observed = waiting(5);
    let busy = |free: i64| Resources::new().with("memory", (64 - free) * GIB);
    observed.nodes[0].used.insert(0, busy(4));
    let nodes = |observed: &Observed| {
        let plan = decide(observed, NOW);
        let members = written(&plan, "llama-0").members.clone();
        members.into_iter().filter_map(|m| m.node).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&observed), ["b", "c"]);
    // Nor is the room of a group that waits for its pods promised to another.
    for name in ["b", "c"] {
        let at = observed.nodes.iter().position(|node| node.name == name).unwrap();
        observed.nodes[at].used.insert(0, busy(6));
    }
    let second = waiting(5).deployments.remove(0).groups.remove(0);
    let mut first = second.clone();
    spec(&mut first, |spec| {
        for (member, node) in spec.members.iter_mut().zip(["b", "c"]) {
            (member.node, member.placed_at) = (Some(node.to_owned()), Some(time::to_time(NOW)));
        }
    });
    let mut other = second;
    std::sync::Arc::make_mut(&mut other.object).metadata.name = Some("llama-1".into());
    observed
        .nodes
        .iter_mut()
        .for_each(|node| node.allocatable = node.allocatable.clone().with(GPU, 8));
    observed.deployments[0].groups = vec![first, other];
    std::sync::Arc::make_mut(&mut observed.deployments[0].object)
        .spec
        .replicas = 2;
    let plan = decide(&observed, NOW);
    let verdict = plan.verdicts.values().next().unwrap();
    let told = &verdict.no_room["llama-1"];
    assert!(
        told.contains("needs 2 nodes with 250m cpu, 5.0 GiB memory") && told.contains("as they are admitted"),
        "{told}"
    );
}

#[test]
fn pods_that_grow_again_are_waited_for() {
    let observed = with(|d| {
        gated_group(d, [6, 6]);
        spec(&mut d.groups[0], |spec| spec.admitted = asks(5).to_quantities());
    });
    let plan = decide(&observed, NOW);
    let after = written(&plan, "llama-0");
    assert_eq!(after.admitted, asks(6).to_quantities());
    assert_eq!(after.place_after.as_ref().map(time::millis), Some(NOW + 5000));
    assert_eq!(
        (after.failures[0].reason.as_str(), after.failures[0].charged),
        ("Larger", false)
    );
}

#[test]
fn what_was_added_may_not_be_any_more() {
    // There is room for the template, but not for what the last pods asked for.
    let mut observed = waiting(70);
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Reserved"]);
    let after = written(&plan, "llama-0");
    assert!(after.admitted.is_empty() && after.placement_failures == 1);
    assert!(after.members.iter().all(|m| m.node.is_some()));
    // There is room for neither.
    for node in &mut observed.nodes {
        node.used.insert(0, Resources::new().with(GPU, 1));
    }
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), [""; 0]);

    // Pods that ask for less than was set aside: no more is kept for them, and nothing where the template says as much.
    for (memory, kept) in [(3, asks(3).to_quantities()), (2, asks(2).to_quantities())] {
        let observed = with(|d| {
            gated_group(d, [memory, 2]);
            spec(&mut d.groups[0], |spec| spec.admitted = asks(9).to_quantities());
        });
        let plan = decide(&observed, NOW);
        assert_eq!(words(&plan), ["write llama-0: Recorded"]);
        assert_eq!(written(&plan, "llama-0").admitted, kept);
    }
    let observed = with(|d| {
        gated_group(d, [2, 2]);
        for pod in &mut d.groups[0].pods {
            pod.request = Some(
                Resources::new()
                    .with("memory", 2 * GIB)
                    .with(GPU, 1)
                    .with("pods", 1),
            );
        }
        spec(&mut d.groups[0], |spec| spec.admitted = asks(9).to_quantities());
    });
    assert!(written(&decide(&observed, NOW), "llama-0").admitted.is_empty());
}

#[test]
fn new_groups_begin_with_what_pods_of_their_siblings_ask_for() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        spec(&mut d.groups[0], |spec| spec.admitted = asks(5).to_quantities());
        std::sync::Arc::make_mut(&mut d.object).spec.replicas = 2;
    });
    let made = |observed: &Observed| {
        let plan = decide(observed, NOW);
        plan.steps.iter().find_map(|step| match &step.action {
            llamero_core::Action::CreateGroup { spec, .. } => Some(spec.admitted.clone()),
            _ => None,
        })
    };
    assert_eq!(made(&observed), Some(asks(5).to_quantities()));
    spec(&mut observed.deployments[0].groups[0], |spec| {
        spec.template.worker.env.clear();
        spec.template.worker.labels.insert("mesh".into(), "on".into());
    });
    assert_eq!(made(&observed), Some([].into()), "its pods are made otherwise");
}

#[test]
fn a_successor_that_asks_for_more_is_looked_for_room_again() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        spec(&mut d.groups[0], |spec| {
            spec.disrupted_since = Some(time::to_time(NOW));
            spec.members[1].successor = Some(Successor {
                attempt: 1,
                node: "c".into(),
                placed_at: time::to_time(NOW),
                pod_uid: Some("s".into()),
            });
        });
        d.groups[0].pods.push(Pod {
            uid: "s".into(),
            ..admitted(1, 1, 5)
        });
    });
    observed.nodes[1].unschedulable = true;
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: SuccessorDropped"]);
    let after = written(&plan, "llama-0");
    assert_eq!(after.admitted, asks(5).to_quantities());
    assert!(after.members[1].successor.is_none() && after.members[1].attempt == 0);
    assert!(message(&plan, "SuccessorDropped").contains("5.0 GiB memory instead of 2.0 GiB"));
}
