//! Nodes that are asked for.

use llamero_api::{deployment::reason, group::Provision};
use llamero_core::{
    decide,
    observed::{Observed, Placeholder, Priority, Refusal},
    plan::Action,
    resources::Resources,
    time::{self, Millis},
};
use serde_json::{Value, json};

use crate::build::*;

const MINUTE: Millis = 60_000;

/// A group of two that finds one free node of three, and asks since then.
fn asking(since: Option<Millis>, placeholders: &[(i32, Option<&str>)]) -> Observed {
    changed(since, placeholders, |_| {})
}

fn changed(
    since: Option<Millis>,
    placeholders: &[(i32, Option<&str>)],
    change: impl FnOnce(&mut Value),
) -> Observed {
    let mut deployment = deployment(|d| {
        d["spec"]["placement"] = json!({"whenFull": "Provision"});
        change(d);
    });
    let mut group = group(&deployment, "llama-0", &[(0, None, None), (0, None, None)]);
    group.placeholders = placeholders
        .iter()
        .map(|(index, node)| placeholder(*index, *node))
        .collect();
    spec(&mut group, |spec| {
        spec.provision = since.map(|at| Provision {
            since: Some(time::to_time(at)),
            ..Provision::default()
        });
    });
    deployment.groups = vec![group];
    let mut observed = observed(deployment);
    for node in ["a", "b"] {
        let node = observed.nodes.iter_mut().find(|n| n.name == node).unwrap();
        node.used.insert(0, Resources::new().with(GPU, 1));
    }
    for (_, name) in placeholders {
        if let Some(node) = observed.nodes.iter_mut().find(|n| Some(n.name.as_str()) == *name) {
            node.used.insert(-1, Resources::new().with(GPU, 1));
        }
    }
    observed
}

fn placeholder(index: i32, node: Option<&str>) -> Placeholder {
    Placeholder {
        name: format!("llama-0-{index}-room-0"),
        uid: format!("uid-room-{index}"),
        index,
        node: node.map(str::to_owned),
        ..Placeholder::default()
    }
}

fn steps(observed: &Observed) -> Vec<String> {
    words(&decide(observed, NOW))
}

#[test]
fn the_clock_begins_before_anything_is_asked_for() {
    let plan = decide(&asking(None, &[]), NOW);
    assert_eq!(words(&plan), ["write llama-0: Provisioning"]);
    let provision = written(&plan, "llama-0").provision.clone().unwrap();
    assert_eq!(provision.since, Some(time::to_time(NOW)));
    assert_eq!(
        steps(&asking(Some(NOW), &[])),
        [
            "create placeholder llama-0-0-room-0",
            "create placeholder llama-0-1-room-0"
        ]
    );
    // What is there already, though it is on its way out, is not made again.
    assert_eq!(
        steps(&asking(Some(NOW), &[(1, None)])),
        ["create placeholder llama-0-0-room-0"]
    );
}

#[test]
fn status_says_how_many_have_come() {
    let observed = asking(Some(NOW), &[(0, Some("c")), (1, None)]);
    assert!(steps(&observed).is_empty());
    let status = status_at(&observed, NOW);
    let (placed, why, message) = condition(&status, "Placed");
    assert_eq!((placed, why), ("False", reason::PROVISIONING));
    assert!(
        message.contains(
            "are short of nvidia.com/gpu; placeholders ask for 2 nodes or rooms, 1 of which have come, for 20m"
        ),
        "{message}"
    );
    assert_eq!(condition(&status, "Progressing").1, reason::PROVISIONING);
    assert_eq!(decide(&observed, NOW).next_at, Some(NOW + 20 * MINUTE));
}

#[test]
fn members_take_the_room_of_placeholders_once_there_is_enough_for_all() {
    let mut observed = asking(Some(NOW), &[(0, Some("c")), (1, Some("d"))]);
    let mut added = node("d", 1);
    added.used.insert(-1, Resources::new().with(GPU, 1));
    observed.nodes.push(added);
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: Reserved"]);
    let spec = written(&plan, "llama-0").clone();
    let nodes: Vec<_> = spec.members.iter().filter_map(|m| m.node.as_deref()).collect();
    assert_eq!(nodes, ["c", "d"]);
    // They stay until the scheduler has put the members there.
    let group = &mut observed.deployments[0].groups[0];
    crate::build::spec(group, |old| *old = spec);
    assert!(steps(&observed).iter().all(|step| step.starts_with("create pod")));
}

#[test]
fn they_go_when_all_members_are_on_their_nodes() {
    let mut observed = with(|deployment| {
        std::sync::Arc::make_mut(&mut deployment.object)
            .spec
            .placement
            .when_full = llamero_api::deployment::WhenFull::Provision;
        let mut group = serving(deployment, "llama-0", ["a", "b"]);
        group.placeholders = vec![placeholder(1, Some("c"))];
        spec(&mut group, |spec| {
            spec.provision = Some(Provision {
                since: Some(time::to_time(NOW)),
                ..Provision::default()
            });
        });
        deployment.groups = vec![group];
    });
    assert_eq!(steps(&observed), ["delete pod llama-0-1-room-0"]);
    observed.deployments[0].groups[0].placeholders[0].terminating = true;
    assert!(steps(&observed).is_empty());
}

#[test]
fn what_did_not_come_in_time_gives_back_what_did_and_waits_longer_each_time() {
    let late = NOW - 20 * MINUTE;
    let mut observed = asking(Some(late), &[(0, Some("c")), (1, None)]);
    let plan = decide(&observed, NOW);
    assert_eq!(
        words(&plan),
        [
            "delete pod llama-0-0-room-0",
            "delete pod llama-0-1-room-0",
            "write llama-0: NotProvisioned"
        ]
    );
    assert!(
        plan.steps[2].message.contains("1 had come"),
        "{}",
        plan.steps[2].message
    );
    let provision = written(&plan, "llama-0").provision.clone().unwrap();
    assert_eq!((&provision.since, provision.failures), (&None, 1));
    let again = time::millis(provision.not_before.as_ref().unwrap());
    assert!(
        (10 * MINUTE..=13 * MINUTE).contains(&(again - NOW)),
        "{}",
        again - NOW
    );

    let group = &mut observed.deployments[0].groups[0];
    spec(group, |spec| spec.provision = Some(provision.clone()));
    assert_eq!(
        steps(&observed),
        ["delete pod llama-0-0-room-0", "delete pod llama-0-1-room-0"]
    );
    observed.deployments[0].groups[0].placeholders.clear();
    let plan = decide(&observed, NOW);
    assert!(
        plan.steps.is_empty() && plan.next_at == Some(again),
        "{:?}",
        plan.next_at
    );
    let status = status_at(&observed, NOW);
    let (_, why, message) = condition(&status, "Placed");
    assert!(
        why == reason::PROVISIONING && message.contains("asked for 1 times in a row"),
        "{why} {message}"
    );
    // Nodes that come late are taken all the same.
    observed.nodes.push(node("d", 1));
    assert_eq!(steps(&observed), ["write llama-0: Reserved"]);
    observed.nodes.pop();
    let plan = decide(&observed, again);
    assert_eq!(words(&plan), ["write llama-0: Provisioning"]);
    assert_eq!(written(&plan, "llama-0").provision.as_ref().unwrap().failures, 1);
}

#[test]
fn an_evicted_placeholder_is_made_again() {
    let mut observed = asking(Some(NOW), &[(0, None), (1, None)]);
    let placeholders = |observed: &mut Observed, change: &dyn Fn(&mut Vec<Placeholder>)| {
        change(&mut observed.deployments[0].groups[0].placeholders);
    };
    placeholders(&mut observed, &|all| all[0].ended = true);
    assert_eq!(steps(&observed), ["create placeholder llama-0-0-room-1"]);
    // Not without end.
    placeholders(&mut observed, &|all| {
        for number in 1..3 {
            all.push(Placeholder {
                name: format!("llama-0-0-room-{number}"),
                ..all[0].clone()
            });
        }
    });
    assert!(steps(&observed).is_empty(), "{:?}", steps(&observed));
}

#[test]
fn a_node_that_can_have_no_member_any_more_holds_no_room() {
    let mut observed = asking(Some(NOW), &[(0, Some("c")), (1, None)]);
    observed.nodes[2].unschedulable = true;
    assert_eq!(steps(&observed), ["delete pod llama-0-0-room-0"]);
    // Its kubelet may be gone: what terminates there is not waited for.
    observed.deployments[0].groups[0].placeholders[0].terminating = true;
    assert_eq!(steps(&observed), ["create placeholder llama-0-0-room-1"]);
}

#[test]
fn what_is_left_without_a_node_goes_as_soon_as_all_members_have_one() {
    let mut observed = asking(Some(NOW), &[(0, Some("c")), (1, None)]);
    spec(&mut observed.deployments[0].groups[0], |spec| {
        for (member, node) in spec.members.iter_mut().zip(["b", "c"]) {
            member.node = Some(node.to_owned());
            member.placed_at = Some(time::to_time(NOW));
        }
    });
    let steps = steps(&observed);
    assert!(
        steps.contains(&"delete pod llama-0-1-room-0".to_owned())
            && !steps.contains(&"delete pod llama-0-0-room-0".to_owned()),
        "{steps:?}"
    );
}

#[test]
fn nobody_asks_while_a_quota_refuses_members_of_the_namespace() {
    let mut observed = asking(Some(NOW), &[(0, Some("c")), (1, None)]);
    let mut other = serving(&observed.deployments[0], "llama-1", ["a", "b"]);
    other.refusals = vec![Refusal {
        target: "CreatePod llama-1-1-1".into(),
        message: "exceeded quota".into(),
        at: NOW,
        times: 1,
    }];
    std::sync::Arc::make_mut(&mut observed.deployments[0].object)
        .spec
        .replicas = 2;
    observed.deployments[0].groups.push(other);
    let steps = steps(&observed);
    assert!(
        steps.contains(&"delete pod llama-0-0-room-0".to_owned())
            && steps.iter().all(|step| !step.starts_with("create placeholder")),
        "{steps:?}"
    );
}

#[test]
fn the_next_try_begins_in_another_domain() {
    let late = NOW - 20 * MINUTE;
    let mut observed = changed(Some(late), &[(0, Some("c")), (1, None)], |d| {
        d["spec"]["placement"]["topologyKey"] = json!("zone");
        d["spec"]["placement"]["policy"] = json!("Required");
    });
    for node in &mut observed.nodes {
        node.labels
            .insert("zone".into(), format!("zone-of-{}", node.name));
    }
    let plan = decide(&observed, NOW);
    let provision = written(&plan, "llama-0").provision.clone().unwrap();
    assert_eq!(provision.avoided_domain.as_deref(), Some("zone-of-c"));
}

#[test]
fn a_placement_that_is_rolled_back_starts_no_new_clock() {
    let since = NOW - 5 * MINUTE;
    let mut observed = asking(Some(since), &[(0, Some("c"))]);
    spec(&mut observed.deployments[0].groups[0], |spec| {
        for (member, node) in spec.members.iter_mut().zip(["b", "c"]) {
            member.node = Some(node.to_owned());
            member.placed_at = Some(time::to_time(NOW - 3 * MINUTE));
        }
    });
    let plan = decide(&observed, NOW);
    let spec = written(&plan, "llama-0");
    assert!(spec.placement_failures == 1 && spec.members[0].node.is_none());
    assert_eq!(spec.provision.as_ref().unwrap().since, Some(time::to_time(since)));
}

#[test]
fn nobody_asks_any_more_when_the_user_says_wait() {
    let mut observed = asking(Some(NOW), &[(0, Some("c")), (1, None)]);
    let object = std::sync::Arc::make_mut(&mut observed.deployments[0].object);
    object.spec.placement.when_full = llamero_api::deployment::WhenFull::Wait;
    let plan = decide(&observed, NOW);
    assert_eq!(
        words(&plan),
        [
            "delete pod llama-0-0-room-0",
            "delete pod llama-0-1-room-0",
            "write llama-0: Withdrawn"
        ]
    );
    // Asking again later is a new beginning.
    assert_eq!(written(&plan, "llama-0").provision, None);
}

#[test]
fn a_group_that_only_stands_beside_one_that_is_replaced_asks_for_nothing() {
    let mut observed = asking(Some(NOW), &[]);
    let old = serving(&observed.deployments[0], "llama-1", ["a", "b"]);
    observed.deployments[0].groups.push(old);
    let plan = decide(&observed, NOW);
    let asks = |action: &Action| matches!(action, Action::CreatePlaceholder { .. });
    assert!(
        plan.steps.iter().all(|step| !asks(&step.action)),
        "{:?}",
        words(&plan)
    );
    // Where another one is wanted it does.
    std::sync::Arc::make_mut(&mut observed.deployments[0].object)
        .spec
        .replicas = 2;
    let plan = decide(&observed, NOW);
    assert!(
        plan.steps.iter().any(|step| asks(&step.action)),
        "{:?}",
        words(&plan)
    );
}

#[test]
fn a_lost_member_asks_for_its_node_alone() {
    let mut observed = with(|deployment| {
        std::sync::Arc::make_mut(&mut deployment.object)
            .spec
            .placement
            .when_full = llamero_api::deployment::WhenFull::Provision;
        let mut group = serving(deployment, "llama-0", ["a", "b"]);
        group.pods.pop();
        spec(&mut group, |spec| {
            spec.members[1] = serde_json::from_value(json!({"index": 1, "attempt": 1})).unwrap();
            spec.provision = Some(Provision {
                since: Some(time::to_time(NOW)),
                ..Provision::default()
            });
        });
        deployment.groups = vec![group];
    });
    for node in ["b", "c"] {
        let node = observed.nodes.iter_mut().find(|n| n.name == node).unwrap();
        node.used.insert(0, Resources::new().with(GPU, 1));
    }
    let plan = decide(&observed, NOW);
    assert!(
        words(&plan).contains(&"create placeholder llama-0-1-room-0".to_owned()),
        "{:?}",
        words(&plan)
    );
    let made = plan
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::CreatePlaceholder { .. }));
    assert_eq!(made.count(), 1);
}

#[test]
fn pods_that_could_not_take_the_room_ask_for_nothing_and_say_why() {
    let mut observed = changed(None, &[], |d| {
        d["spec"]["worker"] = json!({"priorityClassName": "low"});
    });
    let low = Priority {
        value: -5,
        preempts: true,
    };
    observed.priority_classes.insert("low".into(), low);
    assert!(steps(&observed).is_empty());
    let status = status_at(&observed, NOW);
    let (_, _, message) = condition(&status, "Placed");
    assert!(message.contains("could not take the room"), "{message}");
}

#[test]
fn a_refused_placeholder_is_told_and_waits() {
    let mut observed = asking(Some(NOW), &[]);
    observed.deployments[0].groups[0].refusals = [0, 1]
        .map(|index| Refusal {
            target: format!("CreatePlaceholder llama-0-{index}-room-0"),
            message: "no PriorityClass with name llamero-placeholder was found".into(),
            at: NOW,
            times: 1,
        })
        .into();
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    assert!(
        plan.next_at.is_some_and(|at| at < NOW + 2_000),
        "{:?}",
        plan.next_at
    );
}
