//! Which members are lost, and who is to blame for a stall.

use std::collections::BTreeMap;

use llamero_api::group::RankPhase;

use super::{Context, GroupView, MemberView, disruption, members};
use crate::{
    observed::{Node, Pod},
    time::Millis,
};

/// How a member was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Deleted, Evicted, Exited, NodeLost, Stalled, Unreachable.
    pub reason: &'static str,
    /// Exit code of its container.
    pub exit_code: Option<i32>,
    /// Last words.
    pub message: String,
    /// Whether it counts against the budget: what the cluster does to a pod does not.
    pub charged: bool,
}

impl Loss {
    /// One without an exit code.
    pub(super) fn new(reason: &'static str, message: impl Into<String>, charged: bool) -> Self {
        Self {
            reason,
            exit_code: None,
            message: message.into(),
            charged,
        }
    }

    /// One that counts against the budget.
    pub(super) fn charged(reason: &'static str, message: String) -> Self {
        Self::new(reason, message, true)
    }
}

/// Reason of a loss that starting again cannot heal.
pub const UNUSABLE: &str = "Unusable";

/// Reason of a loss to a node that ran out of memory, disk or processes: nobody is charged, the node is avoided, and tries are backed off.
pub const PRESSURE: &str = "Pressure";

/// Whether a recorded member's pod is lost for good.
#[must_use]
pub fn loss(pod: Option<&Pod>, context: &Context<'_>) -> Option<Loss> {
    let Some(pod) = pod else {
        return Some(Loss::new("Deleted", "the pod was deleted", false));
    };
    if pod.pressure && (pod.deletion.is_some() || pod.phase.ended()) {
        let said = pod
            .exit
            .as_ref()
            .map(|exit| exit.message.trim())
            .unwrap_or_default();
        let words = if said.is_empty() {
            "the node was short of memory, disk or processes"
        } else {
            said
        };
        let message: String = words.chars().take(512).collect();
        return Some(Loss::new(PRESSURE, message, false));
    }
    if pod.evicted && (pod.deletion.is_some() || pod.phase.ended()) {
        return Some(Loss::new("Evicted", "the pod was evicted", false));
    }
    if pod.deletion.is_some() {
        return Some(Loss::new("Deleted", "the pod was deleted", false));
    }
    if let Some(why) = unusable(pod) {
        return Some(Loss {
            reason: UNUSABLE,
            exit_code: pod.exit.as_ref().map(|exit| exit.code),
            message: why.chars().take(512).collect(),
            charged: false,
        });
    }
    if pod.phase.ended() {
        let exit = pod.exit.clone().unwrap_or_default();
        let code = pod.exit.as_ref().map(|exit| exit.code);
        let words = if exit.message.is_empty() {
            exit.reason
        } else {
            exit.message
        };
        let message = words.trim().chars().take(512).collect::<String>();
        return Some(Loss {
            reason: "Exited",
            exit_code: code,
            message,
            charged: true,
        });
    }
    let name = pod.node.as_deref()?;
    match context.nodes.get(name) {
        // Nothing is known of any.
        None if context.settings.unpinned => None,
        None => Some(Loss::new("NodeLost", format!("node {name} is gone"), false)),
        Some(node) if disruption::urgent(node, context.settings) => {
            let message = format!("node {name} goes too soon for a successor to load");
            Some(Loss::new("Disrupted", message, false))
        }
        Some(_) => None,
    }
}

/// What the worker's program ends with when it can never work as it is configured.
const UNUSABLE_EXIT: i32 = 2;

/// Why a rank of the pod can never work as it is configured, in its own words.
fn unusable(pod: &Pod) -> Option<String> {
    if let Some(exit) = pod
        .exit
        .as_ref()
        .filter(|exit| pod.phase.ended() && exit.code == UNUSABLE_EXIT)
    {
        return Some(if exit.message.is_empty() {
            exit.reason.clone()
        } else {
            exit.message.clone()
        });
    }
    let ranks = pod.report.iter().flat_map(|report| &report.ranks);
    ranks
        .filter(|rank| rank.phase == RankPhase::Failed || pod.phase.ended())
        .find_map(|rank| rank.unusable.clone())
}

/// Who is to blame when a group's steps stand still: members by position in the view, and how they are lost.
#[must_use]
pub fn stalled(view: &GroupView<'_>, nodes: &BTreeMap<&str, &Node>, now: Millis) -> Vec<(usize, Loss)> {
    // Of a group that serves only those can be lost without whom it does.
    if view.ready && view.spec().without.is_empty() {
        return Vec::new();
    }
    let patience = view.spec().template.stall_timeout.millis().max(1);
    let mut silent = silent(view, nodes, patience, now);
    if view.ready {
        silent.retain(|(at, _)| view.is_apart(*at));
        return silent;
    }
    if silent.is_empty() && view.whole() {
        hanging(view, patience, now).into_iter().collect()
    } else {
        silent
    }
}

/// Members that cannot be reached. A node that is not ready costs nothing while its ranks still step; when they do not, and the
/// supervisor is silent too, it is lost. On a ready node twice the patience must pass, and a peer must prove that the fault is not ours.
/// Whom this operator has never heard, although it answered one before, is silent since this one tries: one that has just started blames
/// nobody. Whom nobody has heard yet has a deadline to start.
fn silent(
    view: &GroupView<'_>,
    nodes: &BTreeMap<&str, &Node>,
    patience: Millis,
    now: Millis,
) -> Vec<(usize, Loss)> {
    let pods = || {
        let placed = view.members.iter().enumerate();
        placed.filter_map(|(at, m)| Some((at, m, m.pod.filter(|_| m.recorded() && m.healthy())?)))
    };
    let silence = |member: &MemberView<'_>, pod: &Pod| {
        let answered = match &pod.report {
            Some(report) => Some(report.alive_at),
            None => pod.unheard_since.filter(|_| !members::starts(view, member)),
        };
        Some(now.saturating_sub(answered?))
    };
    let peer_answers = |at: usize| {
        let answers = |pod: &Pod| pod.fresh_report(now).is_some();
        pods().any(|(other, _, pod)| other != at && answers(pod))
    };
    pods()
        .filter_map(|(at, member, pod)| {
            let silence = silence(member, pod)?;
            let node = pod.node.as_deref()?;
            let node_ready = nodes.get(node).map(|node| node.ready);
            let message = format!("no answer for {} s from node {node}", silence / 1000);
            match node_ready {
                Some(false) if silence > patience => Some((at, Loss::new("NodeLost", message, false))),
                Some(true) if silence > 2 * patience && peer_answers(at) => {
                    Some((at, Loss::new("Unreachable", message, true)))
                }
                // The node may not be read; pods of one that is lost are called not ready.
                None if silence > 2 * patience && (peer_answers(at) || !pod.ready) => {
                    Some((at, Loss::new("NodeLost", message, false)))
                }
                _ => None,
            }
        })
        .collect()
}

/// A rank that claims to serve and does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hung {
    /// Steps it entered.
    entered: i64,
    /// Position of its member in the view.
    at: usize,
    rank: i32,
    /// For how long nothing of it has moved: no layer, no step.
    still: Millis,
}

/// The pod that holds the others up. While layers move anywhere a step is only slow. A rank that claims to serve while its peers have left
/// the step to connect anew hangs in it. When all hang in one step, the one that entered fewest steps is to blame; when none is behind, the
/// one that stopped moving clearly before its peers; else it is a link between nodes, which workers get a while to mend themselves
/// before the last member is moved to another node.
fn hanging(view: &GroupView<'_>, patience: Millis, now: Millis) -> Option<(usize, Loss)> {
    /// Patience with a link, as a multiple of the patience with a rank.
    const LINK: Millis = 3;
    let (hung, others) = hung(view, patience, now)?;
    let behind = *hung.iter().min()?;
    let peers = || hung.iter().filter(|other| other.at != behind.at);
    let stalled = |at, message| Some((at, Loss::new("Stalled", message, true)));
    let secs = behind.still / 1000;
    if peers().next().is_none() && (others || view.present().count() == 1) {
        let rank = behind.rank;
        return stalled(behind.at, format!("rank {rank} hangs in a step for {secs} s"));
    }
    if !others && peers().next().is_some() && peers().all(|peer| peer.entered > behind.entered) {
        return stalled(
            behind.at,
            format!(
                "rank {} entered {} steps, fewer than its peers, and nothing of it moved for {secs} s",
                behind.rank, behind.entered
            ),
        );
    }
    if others || !hung.iter().all(|rank| rank.still > LINK * patience) {
        return None;
    }
    if let Some(first) = stopped_first(&hung) {
        let secs = first.still / 1000;
        return stalled(
            first.at,
            format!(
                "rank {} stopped before its peers and has not moved for {secs} s",
                first.rank
            ),
        );
    }
    let (last, _) = view.present().last()?;
    stalled(
        last,
        format!(
            "no step was completed for {secs} s and no rank is behind: a link between nodes may be broken"
        ),
    )
}

/// Whether a whole group has completed no step within its patience although layers move on every rank: a slow step, which is no hang.
#[must_use]
pub fn slow(view: &GroupView<'_>, now: Millis) -> bool {
    let patience = view.spec().template.stall_timeout.millis().max(1);
    if view.ready || !view.whole() {
        return false;
    }
    let reports = view.present().map(|(_, m)| m.pod?.fresh_report(now));
    let Some(reports) = reports.collect::<Option<Vec<_>>>() else {
        return false;
    };
    let mut ranks = reports
        .iter()
        .flat_map(|report| report.ranks.iter().map(move |rank| (*report, rank)))
        .peekable();
    ranks.peek().is_some()
        && ranks.all(|(report, rank)| {
            let since = |millis: Option<i64>| millis.map(|m| m.saturating_add(now - report.received_at));
            rank.phase == RankPhase::Serving
                && since(rank.still_millis).is_some_and(|still| still <= patience)
                && since(rank.idle_millis).is_some_and(|idle| idle > patience)
        })
}

/// The rank whose stillness is longer than that of all ranks of other members by more than reports can be apart.
fn stopped_first(hung: &[Hung]) -> Option<Hung> {
    const APART: Millis = 3_000;
    let first = *hung.iter().max_by_key(|rank| rank.still)?;
    let mut peers = hung.iter().filter(|rank| rank.at != first.at).peekable();
    peers.peek()?;
    peers
        .all(|rank| first.still - rank.still > APART)
        .then_some(first)
}

/// Ranks that hang in a step, and whether others wait outside of it; nothing when somebody moves or is not there yet.
fn hung(view: &GroupView<'_>, patience: Millis, now: Millis) -> Option<(Vec<Hung>, bool)> {
    let mut hung = Vec::new();
    let mut others = false;
    for (at, member) in view.present() {
        let report = member.pod?.fresh_report(now)?;
        for rank in &report.ranks {
            // Workers of the release before this one only count completed steps.
            let still = rank
                .still_millis
                .or(rank.idle_millis)
                .map_or(0, |still| still.saturating_add(now - report.received_at));
            match rank.phase {
                RankPhase::Serving if still > patience => hung.push(Hung {
                    entered: rank.entered,
                    at,
                    rank: rank.rank,
                    still,
                }),
                // It still moves, or has just begun to.
                RankPhase::Serving => return None,
                RankPhase::Connecting | RankPhase::Warming => others = true,
                // It is not there yet.
                _ => return None,
            }
        }
    }
    Some((hung, others))
}
