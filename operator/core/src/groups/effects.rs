//! What follows from a group's specification: pods, gates, Form.

use llamero_api::labels;

use super::{GroupView, MemberView, degraded};
use crate::{
    placement::unpinned,
    plan::{Action, EventKind, FormMember, FormTarget, Step},
};

/// Grace of an orphan that is already terminating but would hold its node for long.
const ORPHAN_GRACE_SECONDS: i64 = 5;

/// Deletes pods that no member claims. One that terminates already, like a deleted member that was replaced, would go on until its grace
/// ends, because members ignore SIGTERM: its grace is cut, so that the replacement gets its room. A leader's is not: it drains.
pub fn delete_orphans(view: &GroupView<'_>, steps: &mut Vec<Step>) {
    for pod in &view.orphans {
        let grace_seconds = match pod.deletion {
            None if view.hands_over(pod) => continue,
            None => None,
            Some(grace) if pod.index != 0 && !pod.phase.ended() && grace > ORPHAN_GRACE_SECONDS => {
                Some(ORPHAN_GRACE_SECONDS)
            }
            Some(_) => continue,
        };
        steps.push(Step {
            action: Action::DeletePod {
                owner: view.key.clone(),
                pod: view.pod_ref(pod),
                grace_seconds,
            },
            reason: "Superseded",
            message: format!("pod {} is not recorded in the group any more", pod.name),
            event: EventKind::None,
        });
    }
}

/// Creates the pods of placed members. Whether some were missing.
pub fn create_pods(view: &GroupView<'_>, steps: &mut Vec<Step>) -> bool {
    let before = steps.len();
    for member in view.members.iter().filter(|m| m.pod.is_none() && !m.unplaced()) {
        let (index, attempt) = (member.member.index, member.member.attempt);
        steps.push(create_pod(view, index, attempt));
    }
    steps.len() > before
}

/// Creates the gated pod of an attempt.
#[must_use]
pub fn create_pod(view: &GroupView<'_>, index: i32, attempt: i32) -> Step {
    let name = labels::pod_name(&view.key.name, index, attempt);
    Step {
        reason: "Created",
        message: format!("creating pod {name}, gated"),
        action: Action::CreatePod {
            group: view.key.clone(),
            name,
            index,
            attempt,
        },
        event: EventKind::None,
    }
}

/// Lifts the gates of a group whose members all exist and are recorded.
pub fn lift_gates(view: &GroupView<'_>, steps: &mut Vec<Step>) {
    let waits = |m: &MemberView<'_>| !(m.recorded() && m.healthy());
    let is_apart = |m: &MemberView<'_>| m.unplaced() && view.does_without(m.member);
    if view.members.iter().any(|m| waits(m) && !is_apart(m)) {
        return;
    }
    for MemberView { member, pod, .. } in &view.members {
        if let (Some(pod), Some(node)) = (pod.filter(|pod| pod.gated), &member.node) {
            steps.push(Step {
                action: Action::Ungate {
                    group: view.key.clone(),
                    pod: view.pod_ref(pod),
                    node: node.clone(),
                },
                reason: "Released",
                message: format!("pod {} goes to {}", pod.name, unpinned::shown(node)),
                event: EventKind::None,
            });
        }
    }
}

/// Tells pods that do not know it yet who the members are, once all of them have addresses.
pub fn form(view: &GroupView<'_>, steps: &mut Vec<Step>) {
    let Some(members) = form_members(view) else { return };
    let generation = view.spec().generation;
    let targets: Vec<FormTarget> = view
        .present()
        .filter_map(|(_, m)| m.pod)
        .filter(|pod| {
            pod.report
                .as_ref()
                .is_some_and(|report| report.generation < generation)
        })
        .filter_map(|pod| {
            Some(FormTarget {
                pod_uid: pod.uid.clone(),
                ip: pod.ip.clone()?,
            })
        })
        .collect();
    if targets.is_empty() {
        return;
    }
    steps.push(Step {
        message: format!(
            "telling {} pods who the members of generation {generation} are",
            targets.len()
        ),
        action: Action::Form {
            group: view.key.clone(),
            group_uid: view.uid(),
            generation,
            lost: degraded::ranks(view),
            members,
            targets,
        },
        reason: "Forming",
        event: EventKind::None,
    });
}

fn form_members(view: &GroupView<'_>) -> Option<Vec<FormMember>> {
    if !view.whole() {
        return None;
    }
    let template = &view.spec().template;
    let per_pod = template.ranks_per_pod.max(1);
    let present = |rank: &i32| !view.spec().without.contains(&(rank / per_pod));
    (0..template.ranks())
        .filter(present)
        .map(|rank| {
            let member = view.members.iter().find(|m| m.member.index == rank / per_pod)?;
            let pod = member.pod?;
            Some(FormMember {
                rank: rank.unsigned_abs(),
                pod_uid: pod.uid.clone(),
                ip: pod.ip.clone()?,
                port: labels::RANK_PORT.checked_add(u16::try_from(rank % per_pod).ok()?)?,
            })
        })
        .collect()
}
