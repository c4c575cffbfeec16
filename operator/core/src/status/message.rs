//! Why a group is not further, in words, with the way out.
//!
//! Texts change only when the fact does: they hold no loads, countdowns or free amounts, so that a group that waits writes nothing.

use llamero_api::{
    deployment::Recovery,
    group::{GroupPhase, MemberFailure, RankPhase, RankStatus},
};

use super::group::difference;
use crate::{
    groups::{GroupView, MemberView, degraded, losses, members},
    observed::Pod,
    recovery::{self, Permit},
    refusals,
    time::Millis,
};

/// What is known of a group when its message is written.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The group.
    pub view: &'a GroupView<'a>,
    /// How far it is.
    pub phase: GroupPhase,
    /// Its ranks as they are reported.
    pub ranks: &'a [RankStatus],
    /// Budget and backoff.
    pub policy: &'a Recovery,
    /// Why it has no room, when that was found out in this pass.
    pub missing: Option<&'a str>,
    /// The present.
    pub now: Millis,
}

/// Why the group is not further; empty when there is nothing to say.
#[must_use]
pub fn message(told: &Told<'_>) -> String {
    let view = told.view;
    if let Some(refusal) = refusals::latest(&view.group.refusals) {
        return refusal;
    }
    if let Some(difference) = difference(view) {
        return difference;
    }
    let or = |words: &str| words.to_owned();
    match told.phase {
        GroupPhase::Serving => serving(told),
        GroupPhase::Draining => "finishes what runs, then goes".to_owned(),
        GroupPhase::Failed => failed(told),
        GroupPhase::Pending => waiting(told),
        GroupPhase::Placing => placing(told),
        GroupPhase::Starting => not_starting(view)
            .or_else(|| first_words(told.ranks))
            .unwrap_or_else(|| or("pods start")),
        GroupPhase::Loading => first_words(told.ranks).unwrap_or_else(|| or("ranks read their shards")),
        GroupPhase::Forming => slow(told)
            .or_else(|| first_words(told.ranks))
            .unwrap_or_else(|| or("ranks connect and warm up")),
        GroupPhase::Recovering => recovering(told),
    }
}

fn pods<'a>(view: &'a GroupView<'_>) -> impl Iterator<Item = &'a Pod> {
    view.members.iter().filter_map(|m| m.pod)
}

fn last_failure(view: &GroupView<'_>) -> String {
    view.spec().failures.last().map(describe).unwrap_or_default()
}

fn failed(told: &Told<'_>) -> String {
    let failures = &told.view.spec().failures;
    let last = last_failure(told.view);
    if let Permit::UnusableUntil(_) = recovery::permit(failures, told.policy, told.now) {
        return format!(
            "{last}; a changed specification is tried at once, the same one after a minute, then after twice the last wait, up to every 15 minutes"
        );
    }
    let spent = recovery::incidents(failures, told.policy, told.now).len();
    format!(
        "{spent} failures within {} spend the restart budget of {}; the last: {last}",
        told.policy.restart_window, told.policy.restart_budget
    )
}

fn placing(told: &Told<'_>) -> String {
    let unscheduled = pods(told.view).filter(|pod| pod.node.is_none());
    match unscheduled.filter_map(|pod| pod.unschedulable.clone()).next() {
        Some(why) => format!("waits for the scheduler: {why}"),
        None if told.view.members.iter().any(MemberView::unplaced) => waiting(told),
        None => "pods are created and scheduled".to_owned(),
    }
}

/// The pod that does not start, as the kubelet says.
fn not_starting(view: &GroupView<'_>) -> Option<String> {
    pods(view).find_map(|pod| {
        let why = pod.waiting.as_ref()?;
        Some(format!("pod {} does not start: {why}", pod.name))
    })
}

/// A step takes long, and it is no hang.
fn slow(told: &Told<'_>) -> Option<String> {
    losses::slow(told.view, told.now).then(|| {
        format!(
            "a step has taken longer than {} (recovery.stallTimeout) and its layers still move, so it is slow and not stuck: lower engine.maxBatchedTokens, give the ranks more processors, or raise recovery.stallTimeout",
            told.view.spec().template.stall_timeout
        )
    })
}

fn recovering(told: &Told<'_>) -> String {
    let view = told.view;
    let room = told.missing.map(|missing| {
        let room = format!("no room for a replacement: {missing}");
        match degraded::refusal(view, told.policy) {
            Some(why) => format!("{room}; {why}"),
            None => room,
        }
    });
    if let Some(slow) = slow(told) {
        return slow;
    }
    let now_doing = room
        .or_else(|| not_starting(view))
        .or_else(|| first_words(told.ranks))
        .unwrap_or_else(|| "survivors keep their weights".to_owned());
    if view.spec().failures.is_empty() {
        return now_doing;
    }
    format!("{now_doing}; {}", last_failure(view))
}

/// What a group that serves has to say: that it moves, or that a device of it wants to be looked at.
fn serving(told: &Told<'_>) -> String {
    if let Some(missing) = degraded::serving(told.view) {
        return missing;
    }
    let moves = moving(told.view);
    if !moves.is_empty() {
        return moves;
    }
    let warned = told.ranks.iter().find_map(|rank| {
        let device = rank.device.as_ref().filter(|device| !device.warning.is_empty())?;
        let node = rank.node.as_deref().unwrap_or("no node");
        Some(format!(
            "rank {} on {node}, {} {}: {}",
            rank.rank, device.name, device.id, device.warning
        ))
    });
    warned.unwrap_or_default()
}

/// Which members move to other nodes; the way out where there is none.
fn moving(view: &GroupView<'_>) -> String {
    let moves: Vec<String> = view
        .members
        .iter()
        .filter_map(|m| {
            let (from, to) = (m.member.node.as_deref()?, &m.member.successor.as_ref()?.node);
            Some(format!("member {} moves from {from} to {to}", m.member.index))
        })
        .collect();
    if moves.is_empty() && view.spec().disrupted_since.is_some() {
        return "a node is being taken away, and there is no room for a successor yet: add a node, or let the group leave".to_owned();
    }
    moves.join(", ")
}

fn waiting(told: &Told<'_>) -> String {
    let spec = told.view.spec();
    let last = || last_failure(told.view);
    match (told.missing, members::waits_until(spec, told.now)) {
        (Some(missing), _) => missing.to_owned(),
        (None, Some(_)) => format!(
            "placement was rolled back {} times, and is tried again after a while: {}",
            spec.placement_failures,
            last()
        ),
        (None, None) if !spec.failures.is_empty() => format!("waits before the next try: {}", last()),
        (None, None) => "waits for nodes".to_owned(),
    }
}

fn first_words(ranks: &[RankStatus]) -> Option<String> {
    let rank = ranks
        .iter()
        .find(|rank| !rank.message.is_empty() && rank.phase != RankPhase::Serving)?;
    Some(format!("rank {}: {}", rank.rank, rank.message))
}

/// A failure in a sentence, with rank's member, node, exit code and last words.
#[must_use]
pub fn describe(failure: &MemberFailure) -> String {
    let node = failure.node.as_deref().unwrap_or("no node");
    let code = failure
        .exit_code
        .map(|code| format!(" with code {code}"))
        .unwrap_or_default();
    let words = if failure.message.is_empty() {
        String::new()
    } else {
        format!(": {}", failure.message)
    };
    format!(
        "member {} on {node} {}{code}{words}",
        failure.index,
        failure.reason.to_lowercase()
    )
}
