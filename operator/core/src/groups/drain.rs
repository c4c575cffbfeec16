//! How a group goes: the gateway stops sending when it sees `Draining`, the leader finishes what runs, then the object is deleted and its
//! pods follow by their owner references.

use llamero_api::group::Intent;

use super::{GroupView, members};
use crate::{
    observed::{Pod, PodPhase},
    plan::{Action, Confirm, EventKind, FormTarget, Step},
    time::{self, Millis},
};

/// Marks a group as going.
#[must_use]
pub fn begin(view: &GroupView<'_>, why: &str, now: Millis) -> Step {
    let mut spec = view.spec().clone();
    spec.intent = Intent::Drain;
    spec.drain_since = Some(time::to_time(now));
    Step {
        action: members::write(view, spec, Confirm::default()),
        reason: "Draining",
        message: format!("draining: {why}"),
        event: EventKind::Normal,
    }
}

/// Drains the leader, and deletes the group when nothing runs any more or grace has passed. When to look again.
pub fn drain(view: &GroupView<'_>, now: Millis, steps: &mut Vec<Step>) -> Option<Millis> {
    let grace = view.spec().template.grace_seconds().saturating_mul(1000);
    let give_up = view
        .spec()
        .drain_since
        .as_ref()
        .map_or(now, |since| time::millis(since) + grace);
    // One that this operator has just begun to listen to may well have requests.
    let busy = view
        .leader()
        .filter(|pod| busy(pod))
        .or_else(|| view.unheard_leader(now));
    let Some(leader) = busy.filter(|_| now < give_up) else {
        steps.push(Step {
            action: Action::DeleteGroup {
                group: view.key.clone(),
                uid: view.uid(),
            },
            reason: "Removed",
            message: format!("deleting group {}", view.key.name),
            event: EventKind::Normal,
        });
        return None;
    };
    if let (Some(ip), Some(report)) = (&leader.ip, &leader.report)
        && !report.draining
    {
        steps.push(Step {
            action: Action::DrainGroup {
                group: view.key.clone(),
                leader: FormTarget {
                    pod_uid: leader.uid.clone(),
                    ip: ip.clone(),
                },
            },
            reason: "Draining",
            message: "asking the leader to finish what runs".to_owned(),
            event: EventKind::None,
        });
    }
    Some(give_up)
}

/// The leader could have requests: it runs and belongs to a generation.
fn busy(pod: &Pod) -> bool {
    pod.phase == PodPhase::Running
        && pod.deletion.is_none()
        && (pod.ready || pod.report.as_ref().is_some_and(|report| report.generation > 0))
}
