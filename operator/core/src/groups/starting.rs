//! Who is to blame when a group that starts gets no further: a rank that reads nothing, or ranks that have their weights and do not
//! come together.
#![expect(
    clippy::indexing_slicing,
    reason = "a place in a view is one in the list of members that it was made from"
)]

use llamero_api::group::RankPhase;

use super::{Context, GroupView, losses::Loss};
use crate::{
    observed::{Rank, Report},
    status::group::difference,
    time::{self, Millis},
};

/// Members that hold a start up: positions in the view, and how they are lost.
#[must_use]
pub fn stuck(view: &GroupView<'_>, context: &Context<'_>) -> Vec<(usize, Loss)> {
    if view.ready {
        return Vec::new();
    }
    let unread = unread(view, context);
    if unread.is_empty() {
        unformed(view, context).into_iter().collect()
    } else {
        unread
    }
}

/// When somebody is to blame at the earliest, if nothing moves until then.
#[must_use]
pub fn next_deadline(view: &GroupView<'_>, context: &Context<'_>) -> Option<Millis> {
    if view.ready {
        return None;
    }
    let (load, form) = (
        context.recovery.load_timeout.millis(),
        context.recovery.form_timeout.millis(),
    );
    let reading = reading(view, context)
        .map(|(_, since, _)| since.saturating_add(load))
        .min();
    let forming = formed_since(view).map(|since| since.saturating_add(form));
    let due = [reading, forming].into_iter().flatten().min()?;
    (due > context.now).then_some(due)
}

/// When anything of a rank moved last.
fn moved_at(report: &Report, rank: &Rank) -> Option<Millis> {
    Some(report.received_at.saturating_sub(rank.still_millis?))
}

/// Ranks of healthy pods, with the positions of their members.
fn ranks<'a>(view: &'a GroupView<'_>) -> impl Iterator<Item = (usize, &'a Report, &'a Rank)> {
    let members = view.members.iter().enumerate().filter(|(_, m)| m.healthy());
    members
        .filter_map(|(at, m)| Some((at, m.pod?.report.as_ref()?)))
        .flat_map(|(at, report)| report.ranks.iter().map(move |rank| (at, report, rank)))
}

/// Ranks on their way to their weights, with the position of their member and the time when anything of them moved last. One of which
/// nothing ever moved, and which was not started again, is measured from the time by which its container had to run.
fn reading<'a>(
    view: &'a GroupView<'_>,
    context: &'a Context<'_>,
) -> impl Iterator<Item = (usize, Millis, &'a Rank)> {
    ranks(view)
        .filter(|(_, _, rank)| matches!(rank.phase, RankPhase::Preflight | RankPhase::Loading))
        .filter_map(move |(at, report, rank)| {
            let fresh = rank.restarts == 0 && rank.loaded_bytes == 0;
            let placed = view.members[at].member.placed_at.as_ref().filter(|_| fresh);
            let ran_by = placed.map(|placed| {
                time::millis(placed)
                    .saturating_add(context.placement.deadline.millis())
                    .saturating_add(context.placement.start_deadline.millis())
            });
            Some((at, moved_at(report, rank).or(ran_by)?, rank))
        })
}

/// Whether a member's supervisor still speaks of the present.
fn heard(view: &GroupView<'_>, at: usize, now: Millis) -> bool {
    let pod = view.members[at].pod;
    pod.is_some_and(|pod| pod.fresh_report(now).is_some())
}

/// Ranks that have read nothing of their shard for too long, as they say themselves.
fn unread(view: &GroupView<'_>, context: &Context<'_>) -> Vec<(usize, Loss)> {
    let patience = context.recovery.load_timeout.millis();
    let mut lost: Vec<(usize, Loss)> = Vec::new();
    for (at, since, rank) in reading(view, context) {
        let overdue = since.saturating_add(patience) <= context.now;
        if overdue && heard(view, at, context.now) && lost.iter().all(|(other, _)| *other != at) {
            let message = format!(
                "rank {} read nothing of its shard for {} (recovery.loadTimeout), after {} of {} bytes",
                rank.rank, context.recovery.load_timeout, rank.loaded_bytes, rank.total_bytes
            );
            lost.push((at, Loss::charged("Stalled", message)));
        }
    }
    lost
}

/// Since when all ranks of a whole group have had their weights and moved nothing. Ranks that differ are told, and moving them helps nobody.
fn formed_since(view: &GroupView<'_>) -> Option<Millis> {
    let expected = usize::try_from(view.spec().template.ranks()).ok()?;
    if !view.complete() || ranks(view).count() != expected || difference(view).is_some() {
        return None;
    }
    let mut since = Millis::MIN;
    for (_, report, rank) in ranks(view) {
        match rank.phase {
            RankPhase::Connecting | RankPhase::Warming => since = since.max(moved_at(report, rank)?),
            _ => return None,
        }
    }
    Some(since)
}

/// The member to replace when ranks do not come together: the last one that still connects, else the last.
fn unformed(view: &GroupView<'_>, context: &Context<'_>) -> Option<(usize, Loss)> {
    let patience = context.recovery.form_timeout.millis();
    formed_since(view).filter(|since| since.saturating_add(patience) <= context.now)?;
    if !(0..view.members.len()).all(|at| heard(view, at, context.now)) {
        return None;
    }
    let behind = ranks(view)
        .filter(|(_, _, rank)| rank.phase == RankPhase::Connecting)
        .last();
    let (at, _, rank) = behind.or_else(|| ranks(view).last())?;
    let words = if rank.message.is_empty() {
        String::new()
    } else {
        format!(": {}", rank.message)
    };
    let message = format!(
        "all ranks have their weights and do not serve after {} (recovery.formTimeout); rank {} is not further{words}",
        context.recovery.form_timeout, rank.rank
    );
    Some((at, Loss::charged("Stalled", message)))
}
