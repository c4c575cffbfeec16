//! A group goes on without members for which there is no room, and takes them back when there is.
//!
//! ```text
//! complete --member lost--> waits --no room for degradedAfter, and the others hold the model--> serves without it
//!    ^                        |                                                                      |
//!    |<-----room at once------+                                        room: its successor is placed and loads beside
//!    +---------------- it has its weights, and had its room for degradedAfter: one Form -------------+
//! ```
//! Nothing is decided by what is only hoped for: a member that is given up has no node, and one that is taken back has its weights. A
//! successor that fails before costs the serving group nothing. Each change is one write, with a generation of its own.

use std::collections::BTreeSet;

use llamero_api::{
    deployment::{Degraded, Recovery},
    group::{GroupTemplate, RankPhase},
};
use llamero_settings::memory::FEWEST_TOKENS;

use super::{Context, GroupView, MemberView, members};
use crate::{
    plan::{Confirm, EventKind, Step},
    time::{self, Millis},
};

/// The ranks that the group does without, in the order in which their members were given up.
#[must_use]
pub fn ranks(view: &GroupView<'_>) -> Vec<u32> {
    let (template, per_pod) = (&view.spec().template, view.spec().template.ranks_per_pod.max(1));
    let of = |index: &i32| {
        let first = index.saturating_mul(per_pod);
        first..first.saturating_add(per_pod).min(template.ranks())
    };
    let all = view.spec().without.iter().flat_map(of);
    all.map(i32::unsigned_abs).collect()
}

/// Gives up members for which no room was found in time, if the others hold the model.
#[must_use]
pub fn go_on_without(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let due = due(view, context)?;
    if due > context.now {
        return None;
    }
    let missing = missing(view);
    let mut spec = view.spec().clone();
    spec.without.extend(&missing);
    fits(&spec.template, &spec.without).ok()?;
    spec.generation = spec.generation.saturating_add(1);
    let (all, left) = (
        view.members.len(),
        view.members.len().saturating_sub(spec.without.len()),
    );
    Some(Step {
        message: format!(
            "no room for member {} within {} (recovery.degradedAfter): the group goes on with {left} of {all} members, which take over \
             its part of the model; generation {} begins",
            list(&missing),
            context.recovery.degraded_after,
            spec.generation
        ),
        action: members::write(view, spec, Confirm::default()),
        reason: "Degraded",
        event: EventKind::Warning,
    })
}

/// Takes members back that have their weights and have had their room for a while.
#[must_use]
pub fn take_back(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let (back, _): (Vec<i32>, Vec<Millis>) =
        ready(view, context).filter(|(_, at)| *at <= context.now).unzip();
    if back.is_empty() || !view.whole() {
        return None;
    }
    let mut spec = view.spec().clone();
    spec.without.retain(|index| !back.contains(index));
    spec.generation = spec.generation.saturating_add(1);
    let missing = match spec.without.as_slice() {
        [] => "the group is whole again".to_owned(),
        without => format!("member {} is still missing", list(without)),
    };
    Some(Step {
        message: format!(
            "member {} has its weights and takes its part of the model back; {missing}; generation {} begins",
            list(&back),
            spec.generation
        ),
        action: members::write(view, spec, Confirm::default()),
        reason: "Restored",
        event: EventKind::Normal,
    })
}

/// When a member is given up or taken back at the earliest, if that is still to come.
#[must_use]
pub fn next_deadline(view: &GroupView<'_>, context: &Context<'_>) -> Option<Millis> {
    let back = ready(view, context).map(|(_, at)| at).min();
    let due = [due(view, context), back].into_iter().flatten();
    due.filter(|at| *at > context.now).min()
}

/// Why a group that lacks members does not go on without them, where that is allowed.
#[must_use]
pub fn refusal(view: &GroupView<'_>, recovery: &Recovery) -> Option<String> {
    if recovery.degraded != Degraded::Allow || missing(view).is_empty() {
        return None;
    }
    let without: Vec<i32> = view.spec().without.iter().copied().chain(missing(view)).collect();
    let why = fits(&view.spec().template, &without).err()?;
    Some(format!(
        "the others cannot do without member {}: {why}",
        list(&without)
    ))
}

/// What a group that serves without some members has to say.
#[must_use]
pub fn serving(view: &GroupView<'_>) -> Option<String> {
    let spec = view.spec();
    if spec.without.is_empty() {
        return None;
    }
    let all = view.members.len();
    let left = all.saturating_sub(spec.without.len());
    let comes = |m: &&MemberView<'_>| view.does_without(m.member) && !m.unplaced();
    let next = match view.members.iter().find(comes) {
        Some(m) => {
            let node = m.member.node.as_deref().unwrap_or("a node");
            format!("its successor on {node} is on its way")
        }
        None => "there is no room for it: add a node, or free one".to_owned(),
    };
    let report = view.leader().and_then(|pod| pod.report.as_ref());
    let longest = report.map_or(0, |report| report.longest_sequence);
    let context = spec.template.max_context_length;
    let context = match longest {
        1.. if longest < context => {
            format!("; prompt and answer together may have {longest} of {context} tokens")
        }
        _ => String::new(),
    };
    Some(format!(
        "serves with {left} of {all} members, without {}; {next}{context}",
        list(&spec.without)
    ))
}

/// Members that take part and have no room: those that may be given up next.
fn missing(view: &GroupView<'_>) -> Vec<i32> {
    let unplaced = view.present().filter(|(_, m)| m.unplaced());
    let mut lost: Vec<(Millis, i32)> = unplaced
        .map(|(_, m)| (lost_at(view, m).unwrap_or(Millis::MAX), m.member.index))
        .collect();
    lost.sort_unstable();
    lost.into_iter().map(|(_, index)| index).collect()
}

/// When the member was lost.
fn lost_at(view: &GroupView<'_>, member: &MemberView<'_>) -> Option<Millis> {
    let failures = view.spec().failures.iter();
    let of_member = failures.filter(|failure| failure.index == member.member.index);
    of_member.map(|failure| time::millis(&failure.time)).max()
}

/// When the group goes on without those that have no room: it has formed before, everybody else is there, and no node has had room since they
/// were lost, or since that was found out. Members that wait for their next try for another reason are not given up.
fn due(view: &GroupView<'_>, context: &Context<'_>) -> Option<Millis> {
    if context.recovery.degraded != Degraded::Allow || view.spec().generation == 0 || !view.lacks_room() {
        return None;
    }
    let there = |m: &MemberView<'_>| m.recorded() && m.healthy() && m.scheduled();
    let (unplaced, rest): (Vec<_>, Vec<_>) = view.present().partition(|(_, m)| m.unplaced());
    if !rest.iter().all(|(_, m)| there(m)) || !view.has_survivors(|_| false) {
        return None;
    }
    let lost = unplaced.iter().map(|(_, m)| lost_at(view, m));
    let last = lost.collect::<Option<Vec<_>>>()?.into_iter().max()?;
    let status = view.group.object.status.as_ref()?;
    let no_room_since = time::millis(status.unplaceable_since.as_ref()?);
    Some(
        last.max(no_room_since)
            .saturating_add(context.recovery.degraded_after.millis()),
    )
}

/// Members that the group does without and that have their weights, and when they are taken back.
fn ready<'a>(view: &'a GroupView<'_>, context: &'a Context<'_>) -> impl Iterator<Item = (i32, Millis)> + 'a {
    let away = view.members.iter().filter(move |m| view.does_without(m.member));
    away.filter_map(move |m| {
        let pod = m.pod.filter(|_| m.recorded() && m.healthy() && m.scheduled())?;
        let report = pod.fresh_report(context.now)?;
        let loaded = !report.ranks.is_empty()
            && report
                .ranks
                .iter()
                .all(|rank| rank.phase == RankPhase::Connecting);
        let placed = m
            .member
            .placed_at
            .as_ref()
            .filter(|_| loaded && pod.ip.is_some())?;
        let at = time::millis(placed).saturating_add(context.recovery.degraded_after.millis());
        Some((m.member.index, at))
    })
}

/// Whether the ranks of the other members hold the model, by what each has for weights, keys and values. Shares are as equal as heads and
/// leaves allow; the workers look more closely before they change anything.
fn fits(template: &GroupTemplate, without: &[i32]) -> Result<(), String> {
    if template.accelerator_resource.is_some() {
        return Err("a rank on a GPU keeps the part of the model that it began with".to_owned());
    }
    if without.contains(&0) {
        return Err("member 0 leads".to_owned());
    }
    let (tensor, per_pod) = (template.tensor.max(1), template.ranks_per_pod.max(1));
    let lost: BTreeSet<i32> = (0..template.ranks())
        .filter(|rank| without.contains(&(rank / per_pod)))
        .collect();
    for stage in 0..template.pipeline.max(1) {
        let of_stage = |rank: &&i32| **rank / tensor == stage;
        let gone = i64::try_from(lost.iter().filter(of_stage).count()).unwrap_or(i64::MAX);
        let all = i64::from(tensor);
        let left = all.saturating_sub(gone);
        if left <= 0 {
            return Err(format!("no rank of stage {stage} would be left"));
        }
        let grown = |bytes: i64| bytes.max(0).saturating_mul(all).div_euclid(left);
        let (weights, kv) = (template.weight_bytes_per_rank, template.kv_bytes_per_rank);
        let has = weights.saturating_add(kv);
        let context = template.max_context_length.max(1);
        // A sequence of full length needs all of `kv` at most.
        let tokens = i64::from(FEWEST_TOKENS).min(context);
        let fewest = kv / context * tokens;
        let needs = grown(weights).saturating_add(grown(fewest));
        if needs > has {
            return Err(format!(
                "each of the {left} ranks left of {all} would need {needs} bytes for weights and the keys and values of {tokens} tokens, and has \
                 {has}"
            ));
        }
    }
    Ok(())
}

fn list(indices: &[i32]) -> String {
    let words: Vec<String> = indices.iter().map(i32::to_string).collect();
    words.join(", ")
}
