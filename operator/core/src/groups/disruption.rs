//! Nodes that are being taken away: make before break, by member.
//!
//! ```text
//! node disrupted --> successor placed --> its pod created, recorded, released --> it has its weights --> swap: one Form --> the old pod goes
//!                        |  no room for `disruption.deadline`                         |  lost
//!                        +--> the group finishes what runs and leaves                 +--> another successor, after a backoff
//! ```
//! Only a group that serves moves its members. One that does not, whether it loads, waits for room or has given up, leaves by the same deadline
//! if it is still on such a node then: its budget lets no pod be evicted while ranks hold weights, and the drain must end.
#![expect(
    clippy::indexing_slicing,
    reason = "a place in a view is one in the list of members that it was made from"
)]

use llamero_api::{
    deployment::Disruption,
    group::{LlamaGroupSpec, Member, RankPhase, Successor},
    labels,
};

use super::{Context, GroupView, MemberView, NextSteps, admitted, effects, members};
use crate::{
    observed::{Node, Pod, PodPhase, Settings},
    placement::{Assignment, PlacementRequest},
    plan::{Action, Confirm, EventKind, Step},
    recovery, resources,
    time::{self, Millis},
};

/// Whether a node is being taken away: it is cordoned, or bears a taint of who is about to remove it.
#[must_use]
pub fn disrupted(node: &Node, settings: &Settings) -> bool {
    node.unschedulable
        || node
            .taints
            .iter()
            .any(|taint| settings.disruption_taints.iter().any(|known| known == &taint.key))
}

/// Whether a node goes too soon to load a successor.
#[must_use]
pub fn urgent(node: &Node, settings: &Settings) -> bool {
    node.taints
        .iter()
        .any(|taint| settings.urgent_taints.iter().any(|known| known == &taint.key))
}

/// Whether the group is to leave: a node is being taken away, and there has been no room for a successor within the deadline.
#[must_use]
pub fn leaves(view: &GroupView<'_>, context: &Context<'_>, policy: &Disruption) -> bool {
    deadline(view, policy).is_some_and(|at| at <= context.now)
        && view
            .members
            .iter()
            // A successor is swapped in by a group that is whole.
            .any(|m| (m.member.successor.is_none() || !view.complete()) && on_disrupted_node(m, context))
}

/// When the group leaves at the latest.
#[must_use]
pub fn deadline(view: &GroupView<'_>, policy: &Disruption) -> Option<Millis> {
    let since = view.spec().disrupted_since.as_ref()?;
    Some(time::millis(since) + policy.deadline.millis())
}

fn on_disrupted_node(member: &MemberView<'_>, context: &Context<'_>) -> bool {
    let node = member.node().and_then(|name| context.nodes.get(name));
    node.is_some_and(|node| disrupted(node, context.settings))
}

/// What is to be done about members whose nodes are being taken away, and about successors that are on their way.
pub fn advance<'a>(view: &GroupView<'a>, context: &Context<'_>, next: &mut NextSteps<'a>) {
    if let Some(step) = drop_failed(view, context)
        .or_else(|| swap(view))
        .or_else(|| note(view, context))
    {
        next.steps.push(step);
        return;
    }
    if create_pods(view, &mut next.steps) {
        return;
    }
    if let Some(step) = record(view) {
        next.steps.push(step);
        return;
    }
    lift_gates(view, &mut next.steps);
    let overdue = view
        .members
        .iter()
        .filter(|m| m.successor.is_none_or(|pod| pod.node.is_none()));
    let deadline = overdue
        .filter_map(|m| {
            Some(time::millis(&m.member.successor.as_ref()?.placed_at) + context.placement.deadline.millis())
        })
        .min();
    next.next_at = time::earlier(next.next_at, deadline);
    request_nodes(view, context, next);
}

/// Successors that will not come are dropped, and those whose node is not being taken away any more.
fn drop_failed(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let mut spec = view.spec().clone();
    let (mut words, mut failed) = (Vec::new(), false);
    for (at, member) in view.members.iter().enumerate() {
        let Some(successor) = &member.member.successor else {
            continue;
        };
        let Some(why) = failure(view, member, successor, context) else {
            continue;
        };
        failed |= !matches!(why, Dropped::NotNeeded);
        if matches!(why, Dropped::Larger(_)) {
            admitted::raise(&mut spec, member.successor.into_iter());
        }
        let (reason, message) = why.words();
        words.push(format!("member {}: {message}", member.member.index));
        members::keep_attempt(
            &mut spec,
            member.member.index,
            successor,
            reason,
            message,
            context.now,
        );
        spec.members[at].successor = None;
    }
    if words.is_empty() {
        return None;
    }
    if failed {
        members::back_off(&mut spec, context.now);
    }
    Some(Step {
        action: members::write(view, spec, Confirm::default()),
        reason: "SuccessorDropped",
        message: words.join("; "),
        event: EventKind::Normal,
    })
}

/// Why a successor is dropped.
enum Dropped {
    NotNeeded,
    Lost,
    Late(String),
    Refused(String),
    Larger(String),
}

impl Dropped {
    fn words(self) -> (&'static str, String) {
        match self {
            Self::NotNeeded => ("Deleted", "the node is not being taken away any more".to_owned()),
            Self::Lost => ("Deleted", "the successor ended before it took over".to_owned()),
            Self::Late(why) => (
                "Unschedulable",
                format!("the successor was not scheduled in time: {why}"),
            ),
            Self::Refused(why) => ("Refused", why),
            Self::Larger(why) => (admitted::LARGER, why),
        }
    }
}

fn failure(
    view: &GroupView<'_>,
    member: &MemberView<'_>,
    successor: &Successor,
    context: &Context<'_>,
) -> Option<Dropped> {
    if !on_disrupted_node(member, context) {
        return Some(Dropped::NotNeeded);
    }
    let node = context.nodes.get(successor.node.as_str());
    if node.is_none_or(|node| disrupted(node, context.settings)) {
        return Some(Dropped::Lost);
    }
    let overdue = time::millis(&successor.placed_at) + context.placement.deadline.millis() <= context.now;
    let late = |why: Option<&String>| overdue.then(|| Dropped::Late(why.cloned().unwrap_or_default()));
    match member.successor {
        Some(pod) if pod.deletion.is_some() || pod.phase.ended() => Some(Dropped::Lost),
        Some(pod) if admitted::is_larger(view.spec(), pod) => {
            let words = admitted::raise(&mut view.spec().clone(), std::iter::once(pod));
            Some(Dropped::Larger(words))
        }
        Some(pod) if pod.node.is_none() => late(pod.unschedulable.as_ref()),
        Some(_) => None,
        None if successor.pod_uid.is_some() => Some(Dropped::Lost),
        None => {
            let name = labels::pod_name(&view.key.name, member.member.index, successor.attempt);
            let refused = view
                .group
                .refusals
                .iter()
                .find(|r| r.target == format!("CreatePod {name}"));
            refused
                .map(|refusal| Dropped::Refused(refusal.message.clone()))
                .or_else(|| late(None))
        }
    }
}

/// Once every successor has its weights they take over together, in one generation.
fn swap(view: &GroupView<'_>) -> Option<Step> {
    let moving: Vec<(usize, &MemberView<'_>)> = view
        .members
        .iter()
        .enumerate()
        .filter(|(_, m)| m.member.successor.is_some())
        .collect();
    if moving.is_empty() || !moving.iter().all(|(_, m)| m.successor.is_some_and(loaded)) {
        return None;
    }
    let mut spec = view.spec().clone();
    let (mut words, mut present) = (Vec::new(), Vec::new());
    for (at, member) in moving {
        let successor = member.member.successor.clone()?;
        present.extend(successor.pod_uid.clone());
        words.push(format!("member {} on {}", member.member.index, successor.node));
        spec.members[at] = promoted(member.member.index, successor);
    }
    spec.generation = spec.generation.saturating_add(1);
    spec.placement_failures = 0;
    spec.place_after = None;
    Some(Step {
        action: members::write(
            view,
            spec,
            Confirm {
                present,
                gone: Vec::new(),
            },
        ),
        reason: "Moved",
        message: format!("successors take over: {}", words.join(", ")),
        event: EventKind::Normal,
    })
}

/// A successor in its predecessor's place.
#[must_use]
pub fn promoted(index: i32, successor: Successor) -> Member {
    Member {
        index,
        attempt: successor.attempt,
        node: Some(successor.node),
        placed_at: Some(successor.placed_at),
        pod_uid: successor.pod_uid,
        successor: None,
    }
}

/// It has its weights and waits for its peers.
fn loaded(pod: &Pod) -> bool {
    pod.phase == PodPhase::Running
        && pod.deletion.is_none()
        && pod.ip.is_some()
        && pod.report.as_ref().is_some_and(|report| {
            !report.ranks.is_empty()
                && report
                    .ranks
                    .iter()
                    .all(|rank| rank.phase == RankPhase::Connecting)
        })
}

/// Writes down since when a node is being taken away, and that none is any more.
pub fn note(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let disrupted = view.members.iter().find(|m| on_disrupted_node(m, context));
    let mut spec = view.spec().clone();
    let message = match (disrupted, &spec.disrupted_since) {
        (Some(member), None) => {
            spec.disrupted_since = Some(time::to_time(context.now));
            let node = member.node().unwrap_or_default();
            let index = member.member.index;
            match view.ready {
                true => format!("node {node} is being taken away, so member {index} moves"),
                false => format!("node {node} of member {index} is being taken away"),
            }
        }
        (None, Some(_)) => {
            spec.disrupted_since = None;
            "no node of the group is being taken away any more".to_owned()
        }
        _ => return None,
    };
    Some(Step {
        action: members::write(view, spec, Confirm::default()),
        reason: "Disrupted",
        message,
        event: EventKind::Normal,
    })
}

/// Creates pods of placed successors. Whether some were missing.
fn create_pods(view: &GroupView<'_>, steps: &mut Vec<Step>) -> bool {
    let before = steps.len();
    for member in view.members.iter().filter(|m| m.successor.is_none()) {
        if let Some(successor) = &member.member.successor {
            steps.push(effects::create_pod(view, member.member.index, successor.attempt));
        }
    }
    steps.len() > before
}

/// Records the UIDs of successors' pods. The membership stays as it is.
fn record(view: &GroupView<'_>) -> Option<Step> {
    let mut spec: LlamaGroupSpec = view.spec().clone();
    let mut present = Vec::new();
    for (at, member) in view.members.iter().enumerate() {
        if let (Some(successor), Some(pod)) = (&mut spec.members[at].successor, member.successor)
            && successor.pod_uid.is_none()
        {
            successor.pod_uid = Some(pod.uid.clone());
            present.push(pod.uid.clone());
        }
    }
    if present.is_empty() {
        return None;
    }
    Some(Step {
        message: format!("{} successors exist", present.len()),
        action: members::write(
            view,
            spec,
            Confirm {
                present,
                gone: Vec::new(),
            },
        ),
        reason: "Recorded",
        event: EventKind::None,
    })
}

fn lift_gates(view: &GroupView<'_>, steps: &mut Vec<Step>) {
    for member in &view.members {
        if let (Some(successor), Some(pod)) = (&member.member.successor, member.successor)
            && pod.gated
            && successor.pod_uid.is_some()
        {
            steps.push(Step {
                action: Action::Ungate {
                    group: view.key.clone(),
                    pod: view.pod_ref(pod),
                    node: successor.node.clone(),
                },
                reason: "Released",
                message: format!("pod {} goes to node {}", pod.name, successor.node),
                event: EventKind::None,
            });
        }
    }
}

/// Asks for nodes for successors, while the group serves.
fn request_nodes<'a>(view: &GroupView<'a>, context: &Context<'_>, next: &mut NextSteps<'a>) {
    let spec = view.spec();
    let indices: Vec<i32> = view
        .members
        .iter()
        .filter(|m| m.member.successor.is_none() && on_disrupted_node(m, context))
        .map(|m| m.member.index)
        .collect();
    if indices.is_empty() || !view.ready {
        return;
    }
    let wait = members::waits_until(spec, context.now);
    if wait.is_some() {
        next.next_at = time::earlier(next.next_at, wait);
        return;
    }
    let successor = |m: &MemberView<'_>| m.member.successor.as_ref().map(|s| s.node.clone());
    let members = view.members.iter();
    let occupied: Vec<String> = members
        .flat_map(|m| m.node().map(str::to_owned).into_iter().chain(successor(m)))
        .collect();
    next.request = Some(PlacementRequest {
        template: &spec.template,
        amounts: resources::of_group(spec),
        priority: context.priority,
        indices,
        occupied,
        avoid: recovery::avoid(&spec.failures, context.recovery, context.now),
        successors: true,
        volumes: context.mounts.needs(&spec.template, Some(view.group)),
    });
}

/// Reserves nodes for successors.
#[must_use]
pub fn assign(view: &GroupView<'_>, assignments: &[Assignment], now: Millis) -> Step {
    let mut spec = view.spec().clone();
    for assignment in assignments {
        let attempt = next_attempt(view, assignment.index);
        for member in spec.members.iter_mut().filter(|m| m.index == assignment.index) {
            member.successor = Some(Successor {
                attempt,
                node: assignment.node.clone(),
                placed_at: time::to_time(now),
                pod_uid: None,
            });
        }
    }
    let places: Vec<String> = assignments
        .iter()
        .map(|a| format!("{} on {}", a.index, a.node))
        .collect();
    Step {
        action: members::write(view, spec, Confirm::default()),
        reason: "Reserved",
        message: format!(
            "reserved room for the successors of members {}",
            places.join(", ")
        ),
        event: EventKind::Normal,
    }
}

/// An attempt that no pod of the member has had.
fn next_attempt(view: &GroupView<'_>, index: i32) -> i32 {
    let spec = view.spec();
    let members = spec
        .members
        .iter()
        .filter(|m| m.index == index)
        .map(|m| m.attempt);
    let failures = spec
        .failures
        .iter()
        .filter(|f| f.index == index)
        .map(|f| f.attempt);
    let pods = view
        .group
        .pods
        .iter()
        .filter(|p| p.index == index)
        .map(|p| p.attempt);
    members
        .chain(failures)
        .chain(pods)
        .max()
        .unwrap_or(0)
        .saturating_add(1)
}
