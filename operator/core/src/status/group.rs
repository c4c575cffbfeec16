//! Phase, ranks, progress and last failure of a group.

use llamero_api::{
    LlamaDeployment, LlamaGroupStatus,
    deployment::Recovery,
    group::{GroupPhase, Intent, RankPhase, RankStatus},
    labels,
};

use super::{
    message::{Told, message},
    pair, start,
};
use crate::{
    groups::{GroupView, MemberView},
    observed::{Pod, Rank},
    recovery::{self, Permit},
    time::{self, Millis},
};

/// The status of a group. `missing`: why it has no room, when that was found out in this pass.
#[must_use]
pub fn status(
    view: &GroupView<'_>,
    deployment: &LlamaDeployment,
    missing: Option<&str>,
    now: Millis,
) -> LlamaGroupStatus {
    let (spec, policy) = (view.spec(), &deployment.spec.recovery);
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
        message: message(&Told {
            view,
            phase,
            ranks: &ranks,
            policy,
            missing,
            now,
        }),
        unplaceable_since: missing.map(|_| {
            let before = view
                .group
                .object
                .status
                .as_ref()
                .and_then(|s| s.unplaceable_since.as_ref());
            before.map_or_else(|| time::to_time(now), |since| time::not_ahead(since, now))
        }),
        content_identity: identity(view, |rank| &rank.content_identity),
        numerics: identity(view, |rank| &rank.numerics),
        start: start::steps(view, phase, deployment, now),
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
        device: told.device.clone(),
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
