//! Phase, ranks, progress and last failure of a group.

use llamero_api::{
    LlamaGroupStatus,
    deployment::Recovery,
    group::{GroupPhase, Intent, MemberFailure, RankPhase, RankStatus},
    labels,
};

use super::pair;
use crate::{
    groups::{GroupView, MemberView},
    observed::{Pod, Rank},
    recovery::{self, Permit},
    refusals,
    time::{self, Millis},
};

/// The status of a group. `missing`: why it has no room, when that was found out in this pass.
#[must_use]
pub fn status(
    view: &GroupView<'_>,
    policy: &Recovery,
    missing: Option<&str>,
    now: Millis,
) -> LlamaGroupStatus {
    let spec = view.spec();
    let phase = phase(view, policy, now);
    let ranks = ranks(view, phase);
    let sum = |of: fn(&RankStatus) -> i64| ranks.iter().map(of).fold(0i64, i64::saturating_add);
    let (loaded_bytes, total_bytes) = (sum(|r| r.loaded_bytes), sum(|r| r.total_bytes));
    let ip = view.leader().and_then(|pod| pod.ip.as_deref());
    LlamaGroupStatus {
        generation: spec.generation,
        phase,
        ready: view.ready,
        leader_address: ip
            .filter(|_| view.ready)
            .map(|ip| address(ip, labels::INFERENCE_PORT)),
        loaded_bytes,
        total_bytes,
        loaded: pair(loaded_bytes, total_bytes),
        restarts: i32::try_from(recovery::incidents(&spec.failures, policy, now).len()).unwrap_or(i32::MAX),
        last_failure: spec.failures.last().cloned(),
        message: message(view, phase, &ranks, policy, missing, now),
        unplaceable_since: missing.map(|_| {
            let before = view
                .group
                .object
                .status
                .as_ref()
                .and_then(|s| s.unplaceable_since.clone());
            before.unwrap_or_else(|| time::to_time(now))
        }),
        content_identity: identity(view, |rank| &rank.content_identity),
        numerics: identity(view, |rank| &rank.numerics),
        ranks,
    }
}

/// `ip:port`, with brackets around IPv6.
fn address(ip: &str, port: u16) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

fn phase(view: &GroupView<'_>, policy: &Recovery, now: Millis) -> GroupPhase {
    let spec = view.spec();
    if view.deleting() || spec.intent == Intent::Drain {
        return GroupPhase::Draining;
    }
    if view.ready {
        return GroupPhase::Serving;
    }
    let unplaced = view.members.iter().any(MemberView::unplaced);
    if unplaced
        && matches!(
            recovery::permit(&spec.failures, policy, now),
            Permit::SpentUntil(_) | Permit::UnusableUntil(_)
        )
    {
        return GroupPhase::Failed;
    }
    if matches!(view.last_phase(), GroupPhase::Serving | GroupPhase::Recovering)
        && view.members.iter().any(|m| m.recorded() && m.healthy())
    {
        return GroupPhase::Recovering;
    }
    if view.members.iter().all(MemberView::unplaced) {
        return GroupPhase::Pending;
    }
    if unplaced || !view.members.iter().all(MemberView::scheduled) {
        return GroupPhase::Placing;
    }
    let mut known: Vec<RankPhase> = Vec::new();
    for member in &view.members {
        match member.pod.and_then(|pod| pod.report.as_ref()) {
            Some(report) if !report.ranks.is_empty() => {
                known.extend(report.ranks.iter().map(|rank| rank.phase))
            }
            _ => return GroupPhase::Starting,
        }
    }
    let any = |wanted: &[RankPhase]| known.iter().any(|phase| wanted.contains(phase));
    if any(&[RankPhase::Unknown, RankPhase::Preflight, RankPhase::Failed]) {
        GroupPhase::Starting
    } else if any(&[RankPhase::Loading]) {
        GroupPhase::Loading
    } else {
        GroupPhase::Forming
    }
}

/// Every rank, as its supervisor tells, or as it was last reported while nobody hears the supervisor.
fn ranks(view: &GroupView<'_>, phase: GroupPhase) -> Vec<RankStatus> {
    let template = &view.spec().template;
    let per_pod = template.ranks_per_pod.max(1);
    let before = view.group.object.status.as_ref();
    (0..template.ranks())
        .map(|rank| {
            let member = view.members.iter().find(|m| m.member.index == rank / per_pod);
            let Some(pod) = member.and_then(|m| m.pod) else {
                return RankStatus {
                    rank,
                    total_bytes: template.weight_bytes_per_rank,
                    ..RankStatus::default()
                };
            };
            let last = before.and_then(|s| s.ranks.iter().find(|r| r.rank == rank && r.pod == pod.name));
            let told = pod
                .report
                .as_ref()
                .and_then(|report| report.ranks.iter().find(|r| r.rank == rank));
            match (told, last) {
                (Some(told), last) => heard(told, pod, last.filter(|_| phase == GroupPhase::Serving)),
                (None, Some(last)) => last.clone(),
                (None, None) => RankStatus {
                    rank,
                    pod: pod.name.clone(),
                    node: pod.node.clone(),
                    total_bytes: template.weight_bytes_per_rank,
                    ..RankStatus::default()
                },
            }
        })
        .collect()
}

/// The counters of a rank that serves stand as of the time it began to, so that a healthy group does not write its status every second.
fn heard(told: &Rank, pod: &Pod, last: Option<&RankStatus>) -> RankStatus {
    let settled = last.filter(|last| {
        last.phase == RankPhase::Serving && told.phase == RankPhase::Serving && last.pid == told.pid
    });
    let message = match &told.last_exit {
        Some(exit) if told.message.is_empty() && told.phase == RankPhase::Failed => exit.clone(),
        _ => told.message.clone(),
    };
    RankStatus {
        rank: told.rank,
        pod: pod.name.clone(),
        node: pod.node.clone(),
        phase: told.phase,
        loaded_bytes: told.loaded_bytes,
        total_bytes: told.total_bytes,
        read_bytes: told.read_bytes,
        entered: settled.map_or(told.entered, |last| last.entered),
        completed: settled.map_or(told.completed, |last| last.completed),
        restarts: told.restarts,
        pid: told.pid,
        message,
    }
}

/// What all ranks that have weights agree upon; nothing before the first has, and nothing while two differ.
fn identity(view: &GroupView<'_>, of: fn(&Rank) -> &String) -> Option<String> {
    let mut told = loaded(view)
        .map(|(_, rank)| of(rank))
        .filter(|text| !text.is_empty());
    let first = told.next()?;
    told.all(|other| other == first).then(|| first.clone())
}

/// Ranks whose weights are in memory, with their pods.
fn loaded<'a>(view: &'a GroupView<'_>) -> impl Iterator<Item = (&'a Pod, &'a Rank)> {
    let pods = view.members.iter().filter_map(|m| m.pod);
    pods.flat_map(|pod| {
        pod.report
            .iter()
            .flat_map(move |report| report.ranks.iter().map(move |rank| (pod, rank)))
    })
}

/// Why ranks that have their weights cannot form one group, by name: they read different weights, or compute differently.
#[must_use]
pub fn difference(view: &GroupView<'_>) -> Option<String> {
    let place = |pod: &Pod| pod.node.clone().unwrap_or_else(|| pod.name.clone());
    let differing = |of: fn(&Rank) -> &String| {
        let mut ranks = loaded(view).filter(move |(_, rank)| !of(rank).is_empty());
        let (pod, rank) = ranks.next()?;
        let (other_pod, other) = ranks.find(|(_, other)| of(other) != of(rank))?;
        let short = |text: &str| text.chars().take(12).collect::<String>();
        Some((
            format!("rank {} on {} has {}", rank.rank, place(pod), short(of(rank))),
            format!(
                "rank {} on {} has {}",
                other.rank,
                place(other_pod),
                short(of(other))
            ),
        ))
    };
    if let Some((one, other)) = differing(|rank| &rank.content_identity) {
        return Some(format!(
            "the ranks read different weights, so they form no group: {one}, {other}; give every node the same files at model.source"
        ));
    }
    let (one, other) = differing(|rank| &rank.numerics)?;
    Some(format!(
        "the ranks compute differently, so they form no group: {one}, {other}; choose nodes with processors of one kind by worker.nodeSelector"
    ))
}

fn message(
    view: &GroupView<'_>,
    phase: GroupPhase,
    ranks: &[RankStatus],
    policy: &Recovery,
    missing: Option<&str>,
    now: Millis,
) -> String {
    let spec = view.spec();
    if let Some(refusal) = refusals::latest(&view.group.refusals) {
        return refusal;
    }
    if let Some(difference) = difference(view) {
        return difference;
    }
    let pods = || view.members.iter().filter_map(|m| m.pod);
    let last = || spec.failures.last().map(describe).unwrap_or_default();
    match phase {
        GroupPhase::Serving => moving(view),
        GroupPhase::Draining => "finishes what runs, then goes".to_owned(),
        GroupPhase::Failed => {
            if let Permit::UnusableUntil(_) = recovery::permit(&spec.failures, policy, now) {
                return format!(
                    "{}; a changed specification is tried at once, the same one every 15 minutes",
                    last()
                );
            }
            let spent = recovery::incidents(&spec.failures, policy, now).len();
            format!(
                "{spent} failures within {} spend the restart budget of {}; the last: {}",
                policy.restart_window,
                policy.restart_budget,
                last()
            )
        }
        GroupPhase::Pending => waiting(view, missing, now),
        GroupPhase::Placing => match pods()
            .filter(|pod| pod.node.is_none())
            .find_map(|pod| pod.unschedulable.clone())
        {
            Some(why) => format!("waits for the scheduler: {why}"),
            None if view.members.iter().any(MemberView::unplaced) => waiting(view, missing, now),
            None => "pods are created and scheduled".to_owned(),
        },
        GroupPhase::Starting => {
            let stuck = pods().find_map(|pod| {
                Some(format!(
                    "pod {} does not start: {}",
                    pod.name,
                    pod.waiting.as_ref()?
                ))
            });
            stuck
                .or_else(|| first_words(ranks))
                .unwrap_or_else(|| "pods start".to_owned())
        }
        GroupPhase::Loading => first_words(ranks).unwrap_or_else(|| "ranks read their shards".to_owned()),
        GroupPhase::Forming => first_words(ranks).unwrap_or_else(|| "ranks connect and warm up".to_owned()),
        GroupPhase::Recovering => {
            let stuck = pods().find_map(|pod| {
                Some(format!(
                    "pod {} does not start: {}",
                    pod.name,
                    pod.waiting.as_ref()?
                ))
            });
            let room = missing.map(|missing| format!("no room for a replacement: {missing}"));
            let now_doing = room
                .or(stuck)
                .or_else(|| first_words(ranks))
                .unwrap_or_else(|| "survivors keep their weights".to_owned());
            if spec.failures.is_empty() {
                now_doing
            } else {
                format!("{now_doing}; {}", last())
            }
        }
    }
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

fn waiting(view: &GroupView<'_>, missing: Option<&str>, now: Millis) -> String {
    let after = view
        .spec()
        .place_after
        .as_ref()
        .map(time::millis)
        .filter(|at| *at > now);
    match (missing, after) {
        (Some(missing), _) => missing.to_owned(),
        (None, Some(_)) => format!(
            "placement was rolled back {} times, and is tried again after a while: {}",
            view.spec().placement_failures,
            view.spec().failures.last().map(describe).unwrap_or_default()
        ),
        (None, None) if !view.spec().failures.is_empty() => {
            format!(
                "waits before the next try: {}",
                view.spec().failures.last().map(describe).unwrap_or_default()
            )
        }
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
