//! Whether a deployment can be left alone.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::{
    groups::GroupView,
    observed::{Deployment, Group, OPEN, PodPhase},
    plan::{Acceptance, Key, Verdict},
    time::Millis,
};

/// How soon one that is not at rest is looked at again.
pub(super) const UNSETTLED: Millis = 1_000;
/// How soon one at rest is looked at again.
const SETTLED: Millis = 60_000;
/// Over this time the looks at many are spread.
const SPREAD: u64 = 30_000;

/// How soon one at rest whose number of groups follows the load: a sample that says the same as a stale one is no change.
const SCALED: Millis = 5_000;

/// How long one at rest is left alone when nothing changes.
pub(super) fn pause(key: &Key, deployment: Option<&Deployment>) -> Millis {
    if deployment.is_some_and(|d| d.object.spec.autoscaling.is_some()) {
        return SCALED;
    }
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    SETTLED.saturating_add(i64::try_from(hasher.finish() % SPREAD).unwrap_or(0))
}

/// Whether everything is as it should be, and everybody is heard: then only a change or a deadline that was told can ask for something.
pub(super) fn rests(deployment: &Deployment, verdict: &Verdict, now: Millis) -> bool {
    let groups = &deployment.groups;
    verdict.acceptance == Acceptance::Accepted
        && verdict.no_room.is_empty()
        && verdict.no_room_to_move.is_empty()
        && deployment.refusals.is_empty()
        && usize::try_from(verdict.desired) == Ok(groups.len())
        && groups.iter().all(|group| serves_undisturbed(group, now))
}

fn serves_undisturbed(group: &Group, now: Millis) -> bool {
    let view = GroupView::of(group, now);
    let heard = |pod: &crate::observed::Pod| {
        let open = pod.report.as_ref().is_some_and(|report| report.alive_at == OPEN);
        pod.phase == PodPhase::Running && pod.deletion.is_none() && open
    };
    view.ready
        && view.orphans.is_empty()
        && group.writing.is_none()
        && group.refusals.is_empty()
        && view
            .members
            .iter()
            .all(|m| m.member.successor.is_none() && m.pod.is_some_and(heard))
}
