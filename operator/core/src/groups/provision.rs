//! Nodes that are asked for, with `placement.whenFull: Provision`.
//!
//! ```text
//! no room --(1) write since--> asking --(2) create placeholders--> nodes come --(3) the placer finds room--> members take it --> placeholders go
//!    ^                            |
//!    +-- (4) notBefore passed <---+ provisionDeadline passed: placeholders go, and with them the nodes that came
//! ```
//! A placeholder asks for what its member would and does nothing. Autoscalers of the cluster reckon with it as with any pod that finds no node. Its
//! priority is below that of pods that say nothing, so that the placer counts its room as free, for whichever group is whole first, and the scheduler takes
//! it away in favour of the member: nobody reads weights, has a disruption budget or waits for another group before nodes for a whole group are there.
//! The clock goes on while a placement is tried and rolled back, so that nodes that never serve are not asked for without end.

use std::collections::BTreeSet;

use llamero_api::{
    deployment::{Placement, TopologyPolicy, WhenFull},
    group::{LlamaGroupSpec, Provision},
    labels::{self, PLACEHOLDER_PRIORITY},
};

use super::{Context, GroupView, MemberView, members};
use crate::{
    observed::Placeholder,
    placement::{PlacementRequest, eligible},
    plan::{Action, Confirm, EventKind, PodRef, Step},
    time::{self, Millis},
};

/// First pause after nodes did not come in time; doubles up to [`LONGEST_PAUSE`]. Autoscalers take nodes away that nobody uses for some minutes.
const FIRST_PAUSE: Millis = 600_000;
const LONGEST_PAUSE: Millis = 3_600_000;
/// Pauses are longer by up to this many hundredths, so that many groups do not ask at one moment.
const JITTER_PERCENT: u64 = 25;
/// Placeholders of a member that may end by themselves in one try, because a node refused or evicted them.
const MOST_ENDED: usize = 3;
/// A placeholder ends by itself so long after the deadline: the operator may be gone.
const LEFT_ALONE_SECONDS: i64 = 600;

/// What comes of a request that found no room.
#[derive(Debug, Default)]
pub struct Asked {
    /// Steps.
    pub steps: Vec<Step>,
    /// When to look again.
    pub next_at: Option<Millis>,
    /// How far it is, in words that change only when the fact does.
    pub words: Option<String>,
    /// Nodes are asked for, now or after a pause.
    pub asks: bool,
}

/// Groups that may ask for nodes: not those that stand beside others only while these are replaced, which take the room that the others leave.
pub fn may_ask<'v, 'a>(
    views: &'v [GroupView<'a>],
    wanted: i32,
    revision: &str,
) -> impl Iterator<Item = &'v GroupView<'a>> {
    let holds = |view: &&GroupView<'_>| !view.members.iter().all(MemberView::unplaced);
    let holding = views.iter().filter(holds);
    let rest = usize::try_from(wanted)
        .unwrap_or(0)
        .saturating_sub(holding.clone().count());
    let mut waiting: Vec<&GroupView<'_>> = views
        .iter()
        .filter(|view| view.wanted() && !holds(view))
        .collect();
    waiting.sort_by_key(|view| view.spec().revision != revision);
    holding.chain(waiting.into_iter().take(rest))
}

/// Asks for the nodes of a request that found no room.
#[must_use]
pub fn ask(
    view: &GroupView<'_>,
    request: &PlacementRequest<'_>,
    placement: &Placement,
    now: Millis,
) -> Asked {
    if placement.when_full != WhenFull::Provision {
        return Asked::default();
    }
    if !request.priority.preempts || request.priority.value <= PLACEHOLDER_PRIORITY {
        return Asked {
            words: Some(format!(
                "no nodes are asked for, because the pods could not take the room of placeholders: choose a worker.priorityClassName above {PLACEHOLDER_PRIORITY} that preempts"
            )),
            ..Asked::default()
        };
    }
    let provision = view.spec().provision.clone().unwrap_or_default();
    let paused_until = provision
        .not_before
        .as_ref()
        .map(time::millis)
        .filter(|at| *at > now);
    match (&provision.since, paused_until) {
        (Some(_), _) => Asked {
            steps: missing_placeholders(view, request, placement),
            words: Some(asking(view, request, placement)),
            asks: true,
            next_at: None,
        },
        (None, Some(at)) => Asked {
            next_at: Some(at),
            words: Some(paused(&provision, placement)),
            asks: true,
            steps: Vec::new(),
        },
        (None, None) => begin(view, provision, request, placement, now),
    }
}

/// Until when nodes are asked for.
#[must_use]
pub fn deadline(view: &GroupView<'_>, placement: &Placement) -> Option<Millis> {
    let since = view.spec().provision.as_ref()?.since.as_ref().map(time::millis)?;
    let waits = view.members.iter().any(MemberView::unplaced);
    waits.then(|| since.saturating_add(placement.provision_deadline.millis()))
}

/// The write that ends the asking, when its time is over or the user wants none any more.
#[must_use]
pub fn end(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let deadline = deadline(view, context.placement)?;
    if context.placement.when_full != WhenFull::Provision {
        let words = "nodes are asked for no more (placement.whenFull)".to_owned();
        return Some(change(view, None, "Withdrawn", words, EventKind::Normal));
    }
    (deadline <= context.now).then(|| give_up(view, context))
}

/// The clock begins before anything is asked for, so that no crash starts it again.
fn begin(
    view: &GroupView<'_>,
    provision: Provision,
    request: &PlacementRequest<'_>,
    placement: &Placement,
    now: Millis,
) -> Asked {
    let words = asking(view, request, placement);
    let provision = Provision {
        since: Some(time::to_time(now)),
        not_before: None,
        ..provision
    };
    Asked {
        words: Some(words.clone()),
        steps: vec![change(
            view,
            Some(provision),
            "Provisioning",
            words,
            EventKind::Normal,
        )],
        asks: true,
        next_at: None,
    }
}

fn give_up(view: &GroupView<'_>, context: &Context<'_>) -> Step {
    let failures = view
        .spec()
        .provision
        .as_ref()
        .map_or(0, |provision| provision.failures);
    let failures = failures.saturating_add(1);
    let pause = pause(&view.uid(), failures);
    let provision = Provision {
        since: None,
        failures,
        not_before: Some(time::to_time(context.now.saturating_add(pause))),
        avoided_domain: domain_that_came_short(view, context),
    };
    let came = view
        .group
        .placeholders
        .iter()
        .filter(|one| one.node.is_some())
        .count();
    let message = format!(
        "{}; {came} had come and are given back",
        paused(&provision, context.placement)
    );
    change(
        view,
        Some(provision),
        "NotProvisioned",
        message,
        EventKind::Warning,
    )
}

/// Where a group must not leave its domain, the first placeholder that found a node drew the others there, and there were not enough: the next try is
/// to begin elsewhere.
fn domain_that_came_short(view: &GroupView<'_>, context: &Context<'_>) -> Option<String> {
    let template = &view.spec().template;
    let key = template.topology_key.as_deref()?;
    let is_free = view.members.iter().all(MemberView::unplaced);
    if template.topology_policy != TopologyPolicy::Required || !is_free {
        return None;
    }
    let mut nodes = view
        .group
        .placeholders
        .iter()
        .filter_map(|one| one.node.as_deref());
    let labels = &context.nodes.get(nodes.next()?)?.labels;
    labels.get(key).cloned()
}

/// The pause after nodes did not come so many times in a row.
pub(super) fn pause(group: &str, failures: i32) -> Millis {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(0).min(10);
    let pause = (FIRST_PAUSE << doublings).min(LONGEST_PAUSE);
    time::spread(pause, JITTER_PERCENT, (group, failures))
}

fn change(
    view: &GroupView<'_>,
    provision: Option<Provision>,
    reason: &'static str,
    message: String,
    event: EventKind,
) -> Step {
    let mut spec = view.spec().clone();
    spec.provision = provision;
    Step {
        action: members::write(view, spec, Confirm::default()),
        reason,
        message,
        event,
    }
}

/// Placeholders of the members of the request that have none. One that goes, or has ended, holds nothing; its name is not used again.
fn missing_placeholders(
    view: &GroupView<'_>,
    request: &PlacementRequest<'_>,
    placement: &Placement,
) -> Vec<Step> {
    let missing = request.indices.iter().filter_map(|index| {
        let of_member: Vec<&Placeholder> = view
            .group
            .placeholders
            .iter()
            .filter(|one| one.index == *index)
            .collect();
        let ended = of_member.iter().filter(|one| one.ended).count();
        if ended >= MOST_ENDED || of_member.iter().any(|one| holds(one)) {
            return None;
        }
        let mut names = (0..).map(|number| labels::placeholder_name(&view.key.name, *index, number));
        let name = names.find(|name| of_member.iter().all(|one| one.name != *name))?;
        Some(Step {
            reason: "Provisioning",
            message: format!("placeholder {name} asks for a node"),
            action: Action::CreatePlaceholder {
                group: view.key.clone(),
                name,
                index: *index,
                most_seconds: placement.provision_deadline.millis() / 1000 + LEFT_ALONE_SECONDS,
            },
            event: EventKind::None,
        })
    });
    missing.collect()
}

const fn holds(one: &Placeholder) -> bool {
    !one.terminating && !one.ended
}

/// Takes placeholders away whose room nobody waits for any more: all members are on their nodes, nodes are not asked for, the node can have no member
/// any more, or there are two. Those without a node go as soon as all members have one, so that no node is added for nobody.
pub fn withdraw(view: &GroupView<'_>, context: &Context<'_>, steps: &mut Vec<Step>) {
    let since = view
        .spec()
        .provision
        .as_ref()
        .and_then(|provision| provision.since.as_ref());
    let asks = view.wanted() && context.may_ask && since.is_some();
    let in_time = deadline(view, context.placement).is_none_or(|at| at > context.now);
    let waits = asks && in_time && context.placement.when_full == WhenFull::Provision && !view.complete();
    let unplaced = view.members.iter().any(MemberView::unplaced);
    let needs = context.mounts.needs(&view.spec().template, Some(view.group));
    let usable = |node: &str| {
        let node = context.nodes.get(node);
        node.is_some_and(|node| {
            eligible::check(&view.spec().template, node).is_ok() && needs.check(node).is_ok()
        })
    };
    let mut seen = BTreeSet::new();
    for one in view.group.placeholders.iter().filter(|one| !one.terminating) {
        let keeps = match &one.node {
            // It is kept to be counted.
            _ if one.ended => waits,
            Some(node) => waits && usable(node) && seen.insert(one.index),
            None => waits && unplaced && seen.insert(one.index),
        };
        if keeps {
            continue;
        }
        steps.push(Step {
            action: Action::DeletePod {
                owner: view.key.clone(),
                pod: PodRef {
                    key: view.key.sibling(&one.name),
                    uid: one.uid.clone(),
                },
                grace_seconds: None,
            },
            reason: "Withdrawn",
            message: format!("placeholder {} holds room for nobody any more", one.name),
            event: EventKind::None,
        });
    }
}

/// A whole group lost members: if they find no room, nodes are asked for anew.
pub fn forget(spec: &mut LlamaGroupSpec) {
    if let Some(provision) = &mut spec.provision {
        provision.since = None;
    }
    spec.provision = spec
        .provision
        .take()
        .filter(|provision| *provision != Provision::default());
}

/// Members have nodes. The placeholders stay until the scheduler has put them there.
pub fn met(spec: &mut LlamaGroupSpec) {
    let since = spec.provision.take().and_then(|provision| provision.since);
    spec.provision = since.map(|since| Provision {
        since: Some(since),
        ..Provision::default()
    });
}

fn asking(view: &GroupView<'_>, request: &PlacementRequest<'_>, placement: &Placement) -> String {
    let wanted = request.indices.len();
    let placeholders = view.group.placeholders.iter();
    let came =
        placeholders.filter(|one| holds(one) && one.node.is_some() && request.indices.contains(&one.index));
    format!(
        "placeholders ask for {wanted} nodes or rooms, {} of which have come, for {} (placement.provisionDeadline)",
        came.count(),
        placement.provision_deadline
    )
}

fn paused(provision: &Provision, placement: &Placement) -> String {
    format!(
        "nodes were asked for {} times in a row and not all came within {} (placement.provisionDeadline), so they are asked for again after a while: see quota and log of the autoscaler",
        provision.failures, placement.provision_deadline
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_differ_between_groups() {
        let of = |failures| pause("uid", failures) / FIRST_PAUSE;
        assert_eq!((of(1), of(2), of(3)), (1, 2, 4));
        let longest = pause("uid", i32::MAX);
        assert!(
            (LONGEST_PAUSE..=LONGEST_PAUSE * 5 / 4).contains(&longest),
            "{longest}"
        );
        let all: std::collections::BTreeSet<Millis> = (0..20).map(|n| pause(&n.to_string(), 1)).collect();
        assert!(all.len() > 10, "{all:?}");
    }
}
