//! Writes of `spec.members`: roll back what is overdue, replace what is lost, record what exists.
#![expect(
    clippy::indexing_slicing,
    reason = "a place in a view is one in the list of members that it was made from"
)]

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use llamero_api::{
    group::{LlamaGroupSpec, Member, MemberFailure, RankPhase, Successor},
    labels,
};

use super::{
    Context, GroupView, MemberView, admitted, disruption,
    losses::{self, Loss},
    provision, starting,
};
use crate::{
    observed::{Pod, PodPhase},
    placement::{Assignment, unpinned},
    plan::{Action, Confirm, EventKind, Step},
    time::{self, Millis},
};

/// Failures kept in the specification; more than the largest budget counts.
const KEPT_FAILURES: usize = 64;
/// First wait after a placement was rolled back; doubles up to [`LONGEST_BACKOFF`].
const FIRST_BACKOFF: Millis = 5_000;
const LONGEST_BACKOFF: Millis = 120_000;

/// The API server refused a member's pod.
pub const REFUSED: &str = "Refused";

/// A write that fences by the resource version that was read.
#[must_use]
pub fn write(view: &GroupView<'_>, spec: LlamaGroupSpec, confirm: Confirm) -> Action {
    Action::WriteGroup {
        group: view.key.clone(),
        resource_version: view
            .group
            .object
            .metadata
            .resource_version
            .clone()
            .unwrap_or_default(),
        spec: Box::new(spec),
        confirm,
    }
}

/// Reserves nodes: the first thing that happens to members, before any pod exists. `slimmer`: by what the template says, although pods asked for more.
#[must_use]
pub fn assign(view: &GroupView<'_>, assignments: &[Assignment], slimmer: bool, now: Millis) -> Step {
    let mut spec = view.spec().clone();
    if slimmer {
        // A pod that is as large as the last one sends it back, after a longer wait each time.
        spec.admitted.clear();
        spec.placement_failures = spec.placement_failures.max(1);
    }
    for assignment in assignments {
        for member in spec
            .members
            .iter_mut()
            .filter(|m| m.index == assignment.index && m.node.is_none())
        {
            member.node = Some(assignment.node.clone());
            member.placed_at = Some(time::to_time(now));
        }
    }
    spec.place_after = None;
    provision::met(&mut spec);
    let places: Vec<String> = assignments
        .iter()
        .map(|a| format!("{} on {}", a.index, unpinned::shown(&a.node)))
        .collect();
    Step {
        action: write(view, spec, Confirm::default()),
        reason: "Reserved",
        message: format!("reserved room for members {}", places.join(", ")),
        event: EventKind::Normal,
    }
}

/// Replaces lost members by their next attempt. Survivors stay as they are and keep their weights; when
/// nobody has weights there are none to keep, and the placement is rolled back whole, so that no part of a group holds accelerators.
#[must_use]
pub fn replace_lost(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let mut lost: Vec<(usize, Loss)> = view
        .members
        .iter()
        .enumerate()
        .filter(|(_, m)| m.recorded())
        .filter_map(|(at, m)| Some((at, losses::loss(m.pod, context)?)))
        .collect();
    if lost.is_empty() {
        lost = losses::stalled(view, context.nodes, context.now);
    }
    if lost.is_empty() {
        lost = starting::stuck(view, context);
    }
    if lost.is_empty() {
        return None;
    }
    let mut spec = view.spec().clone();
    let mut confirm = Confirm::default();
    let mut words = Vec::new();
    // One that the group does without costs those that serve nothing: neither their budget nor their weights.
    for (at, loss) in &mut lost {
        loss.charged &= !view.is_apart(*at);
    }
    let only_apart = lost.iter().all(|(at, _)| view.is_apart(*at));
    for (at, loss) in &lost {
        let member = &view.members[*at];
        if matches!(loss.reason, "Deleted" | "Evicted" | "Exited" | losses::PRESSURE) {
            confirm.gone.extend(member.member.pod_uid.clone());
        }
        words.push(describe(member, loss));
        let failure = failure(member, loss, context.now);
        // One word for all of a group: of a large one there would be no room for those of before.
        let is_told = |other: &MemberFailure| {
            failure.reason == losses::UNUSABLE
                && (&other.reason, &other.time) == (&failure.reason, &failure.time)
        };
        if !spec.failures.iter().any(is_told) {
            keep(&mut spec.failures, failure);
        }
        replace(&mut spec, *at, member);
    }
    let is_lost = |at: usize| lost.iter().any(|(lost, _)| *lost == at);
    // What one rank cannot do as configured its peers cannot do either, or not without it: nobody holds accelerators meanwhile.
    let unusable = lost
        .iter()
        .any(|(at, loss)| loss.reason == losses::UNUSABLE && !view.is_apart(*at));
    if unusable || !view.has_survivors(is_lost) {
        (0..spec.members.len())
            .filter(|at| !is_lost(*at) || unusable)
            .filter(|at| spec.members[*at].node.is_some())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|at| reset(&mut spec.members[at]));
        // It begins anew, with all.
        spec.without.clear();
    }
    if only_apart {
        back_off(&mut spec, context.now);
    } else {
        spec.placement_failures = 0;
        spec.place_after = None;
    }
    if !view.members.iter().any(MemberView::unplaced) {
        provision::forget(&mut spec);
    }
    Some(Step {
        action: write(view, spec, confirm),
        reason: "MemberLost",
        message: words.join("; "),
        event: EventKind::Warning,
    })
}

/// Rolls a placement back whole when not all of its pods were scheduled by the deadline, or not all of their containers run by theirs.
#[must_use]
pub fn roll_back_overdue(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let overdue: BTreeSet<Millis> = deadlines(view, context)
        .filter(|(_, at)| *at <= context.now)
        .map(|(batch, _)| batch)
        .collect();
    if overdue.is_empty() {
        return None;
    }
    let mut spec = view.spec().clone();
    let mut words = Vec::new();
    for (at, member) in view.members.iter().enumerate() {
        if !batch(member.member).is_some_and(|batch| overdue.contains(&batch)) {
            continue;
        }
        let late = deadline_of(view, member, context).is_some_and(|at| at <= context.now);
        if let Some(loss) = not_yet(view, member).filter(|_| late) {
            words.push(describe(member, &loss));
            keep(&mut spec.failures, failure(member, &loss, context.now));
        }
        reset(&mut spec.members[at]);
    }
    let wait = back_off(&mut spec, context.now);
    Some(Step {
        action: write(view, spec, Confirm::default()),
        reason: "RolledBack",
        message: format!(
            "not all pods were scheduled within {} and ran within {} after that, so the placement is rolled back; next try in {} s ({})",
            context.placement.deadline,
            context.placement.start_deadline,
            wait / 1000,
            words.join("; ")
        ),
        event: EventKind::Warning,
    })
}

/// What a member that was placed is still short of.
fn not_yet(view: &GroupView<'_>, member: &MemberView<'_>) -> Option<Loss> {
    let words =
        |words: Option<&String>, otherwise: &str| words.cloned().unwrap_or_else(|| otherwise.to_owned());
    let pod = member.pod;
    let (reason, message) = if !member.scheduled() {
        (
            "Unschedulable",
            words(pod.and_then(|pod| pod.unschedulable.as_ref()), "not scheduled"),
        )
    } else if starts(view, member) {
        let runs = pod.is_some_and(|pod| pod.phase == PodPhase::Running);
        let otherwise = if runs {
            "the container runs, but nobody answers at its control port: let the operator reach the pods' port 18052 (NetworkPolicy, firewall), or see the pod's log"
        } else {
            "the container does not run yet"
        };
        (
            "NotStarted",
            words(pod.and_then(|pod| pod.waiting.as_ref()), otherwise),
        )
    } else {
        return None;
    };
    Some(Loss {
        reason,
        exit_code: None,
        message,
        charged: false,
    })
}

/// The pod is on its node, and its supervisor has never been heard: not by this operator, and not by one before that wrote it down.
#[must_use]
pub fn starts(view: &GroupView<'_>, member: &MemberView<'_>) -> bool {
    let status = view.group.object.status.as_ref();
    let heard_before = |pod: &Pod| {
        let mut ranks = status.iter().flat_map(|status| &status.ranks);
        ranks.any(|rank| rank.pod == pod.name && rank.phase != RankPhase::Unknown)
    };
    let silent = |pod: &Pod| match pod.phase {
        PodPhase::Pending => pod.report.is_none(),
        PodPhase::Running => pod.report.is_none() && !pod.ready && !heard_before(pod),
        PodPhase::Succeeded | PodPhase::Failed => false,
    };
    member.scheduled() && member.pod.is_some_and(silent)
}

/// Rolls a placement back whole when the API server refuses one of its pods: what refused it does not heal soon, and the room is free for
/// others meanwhile. It is tried again after a backoff, with new attempts.
#[must_use]
pub fn roll_back_refused(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let refused = view.members.iter().find_map(|m| {
        let name = labels::pod_name(&view.key.name, m.member.index, m.member.attempt);
        let target = format!("CreatePod {name}");
        let waits = m.pod.is_none() && !m.unplaced();
        view.group
            .refusals
            .iter()
            .find(|refusal| waits && refusal.target == target)
            .map(|refusal| (m, refusal))
    });
    let (member, refusal) = refused?;
    let placement = batch(member.member);
    let mut spec = view.spec().clone();
    let loss = Loss::new(REFUSED, refusal.message.clone(), false);
    keep(&mut spec.failures, failure(member, &loss, context.now));
    for (at, other) in view.members.iter().enumerate() {
        if !other.unplaced() && batch(other.member) == placement {
            reset(&mut spec.members[at]);
        }
    }
    let wait = back_off(&mut spec, context.now);
    Some(Step {
        action: write(view, spec, Confirm::default()),
        reason: "RolledBack",
        message: format!(
            "a pod was refused, so the placement is rolled back; next try in {} s ({})",
            wait / 1000,
            describe(member, &loss)
        ),
        event: EventKind::Warning,
    })
}

/// Sets the time of the next placement; the wait is returned.
pub fn back_off(spec: &mut LlamaGroupSpec, now: Millis) -> Millis {
    spec.placement_failures = spec.placement_failures.saturating_add(1);
    let wait = backoff(spec.placement_failures);
    spec.place_after = Some(time::to_time(now + wait));
    wait
}

/// The wait after so many placements in a row that were rolled back.
pub(super) fn backoff(failures: i32) -> Millis {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(0).min(10);
    (FIRST_BACKOFF << doublings).min(LONGEST_BACKOFF)
}

/// Until when nothing is placed, if that is still to come.
#[must_use]
pub fn waits_until(spec: &LlamaGroupSpec, now: Millis) -> Option<Millis> {
    spec.place_after.as_ref().map(time::millis).filter(|at| *at > now)
}

/// When the next placement becomes overdue.
#[must_use]
pub fn next_deadline(view: &GroupView<'_>, context: &Context<'_>) -> Option<Millis> {
    deadlines(view, context).map(|(_, at)| at).min()
}

/// Records the UIDs of pods that all exist, and begins a new generation.
#[must_use]
pub fn record(view: &GroupView<'_>) -> Option<Step> {
    // Nobody waits for a member that the group does without and that has no pod.
    let is_apart = |m: &MemberView<'_>| !m.healthy() && view.does_without(m.member);
    let members = || view.members.iter().enumerate().filter(|(_, m)| !is_apart(m));
    let mut unrecorded = members().filter(|(_, m)| !m.recorded()).peekable();
    unrecorded.peek()?;
    // One that comes back joins once it has its weights.
    let begins = unrecorded.any(|(_, m)| !view.does_without(m.member));
    let mut spec = view.spec().clone();
    let mut present = Vec::new();
    for (at, member) in members() {
        let uid = member.pod.filter(|_| member.healthy())?.uid.clone();
        spec.members[at].pod_uid = Some(uid.clone());
        present.push(uid);
    }
    let message = if begins {
        spec.generation = spec.generation.saturating_add(1);
        let (pods, generation) = (present.len(), spec.generation);
        format!("all {pods} pods exist; generation {generation} begins")
    } else {
        let generation = spec.generation;
        format!(
            "the pods of members that come back exist; generation {generation} goes on until they have their weights"
        )
    };
    spec.admitted = admitted::exact(view);
    Some(Step {
        reason: "Recorded",
        message,
        action: write(
            view,
            spec,
            Confirm {
                present,
                gone: Vec::new(),
            },
        ),
        event: EventKind::None,
    })
}

/// Members placed together have equal times.
pub(super) fn batch(member: &Member) -> Option<Millis> {
    member.placed_at.as_ref().map(time::millis)
}

/// Placements that have a pod left to schedule or to start, and until when that may take.
fn deadlines<'a>(
    view: &'a GroupView<'_>,
    context: &'a Context<'_>,
) -> impl Iterator<Item = (Millis, Millis)> + 'a {
    let members = view.members.iter().filter(|m| !m.unplaced());
    members.filter_map(|m| Some((batch(m.member)?, deadline_of(view, m, context)?)))
}

/// Until when a placed member must be scheduled, or its container run and answer.
fn deadline_of(view: &GroupView<'_>, member: &MemberView<'_>, context: &Context<'_>) -> Option<Millis> {
    let scheduled_by = batch(member.member)?.saturating_add(context.placement.deadline.millis());
    if !member.scheduled() {
        Some(scheduled_by)
    } else if starts(view, member) {
        Some(scheduled_by.saturating_add(context.placement.start_deadline.millis()))
    } else {
        None
    }
}

/// The next attempt, without a node.
pub(super) fn reset(member: &mut Member) {
    *member = Member {
        index: member.index,
        attempt: member.attempt.saturating_add(1),
        node: None,
        placed_at: None,
        pod_uid: None,
        successor: None,
    };
}

/// Puts a lost member's successor in its place, if that is on its way, else its next attempt.
fn replace(spec: &mut LlamaGroupSpec, at: usize, member: &MemberView<'_>) {
    let alive = |pod: &Pod| pod.deletion.is_none() && !pod.phase.ended();
    let Some(successor) = spec.members[at].successor.take() else {
        return reset(&mut spec.members[at]);
    };
    if successor.pod_uid.is_some() && !member.successor.is_some_and(alive) {
        spec.members[at].attempt = successor.attempt;
        return reset(&mut spec.members[at]);
    }
    if successor.pod_uid.is_some() {
        spec.generation = spec.generation.saturating_add(1);
    }
    spec.members[at] = disruption::promoted(member.member.index, successor);
}

/// Remembers why a member's attempt went before it held anything, uncharged.
pub(super) fn remember(
    spec: &mut LlamaGroupSpec,
    member: &MemberView<'_>,
    reason: &'static str,
    message: String,
    now: Millis,
) {
    let loss = Loss::new(reason, message, false);
    keep(&mut spec.failures, failure(member, &loss, now));
}

/// Remembers an attempt that came to nothing, uncharged.
pub fn keep_attempt(
    spec: &mut LlamaGroupSpec,
    index: i32,
    successor: &Successor,
    reason: &str,
    message: String,
    now: Millis,
) {
    let failure = MemberFailure {
        time: time::to_time(now),
        index,
        attempt: successor.attempt,
        node: Some(successor.node.clone()),
        reason: reason.to_owned(),
        exit_code: None,
        message,
        charged: false,
    };
    keep(&mut spec.failures, failure);
}

fn failure(member: &MemberView<'_>, loss: &Loss, now: Millis) -> MemberFailure {
    let time: Time = time::to_time(now);
    MemberFailure {
        time,
        index: member.member.index,
        attempt: member.member.attempt,
        node: member.node().map(str::to_owned),
        reason: loss.reason.to_owned(),
        exit_code: loss.exit_code,
        message: loss.message.chars().take(512).collect(),
        charged: loss.charged,
    }
}

fn keep(failures: &mut Vec<MemberFailure>, failure: MemberFailure) {
    failures.push(failure);
    let surplus = failures.len().saturating_sub(KEPT_FAILURES);
    failures.drain(..surplus);
}

fn describe(member: &MemberView<'_>, loss: &Loss) -> String {
    let node = member.node().unwrap_or("no node");
    let code = loss
        .exit_code
        .map(|code| format!(" with code {code}"))
        .unwrap_or_default();
    format!(
        "member {} on {node}: {}{code}: {}",
        member.member.index, loss.reason, loss.message
    )
}
