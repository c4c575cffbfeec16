//! What each group needs next.
//!
//! ```text
//! unplaced --(1) write nodes--> placed --(2) create gated pods--> (3,4) record UIDs, generation + 1 --> lift gates --(5) all scheduled--> Form --> serving
//!    ^                                                                                                        |
//!    +------------------------- deadline passed, or the member was lost: attempt + 1 -------------------------+
//! ```
//! A group's specification is changed by one write a pass, and whatever depends on that write waits until it is observed.
//!
//! | module | what it decides |
//! |---|---|
//! | [`view`] | members and their pods side by side |
//! | [`members`] | writes: roll back, replace, record |
//! | [`admitted`] | pods that ask for more than their template says |
//! | [`losses`] | which members are lost, and who is to blame for a stall |
//! | [`starting`] | who holds a start up |
//! | [`degraded`] | a group goes on without members for which there is no room, and takes them back |
//! | [`disruption`] | members move off nodes that are being taken away |
//! | [`effects`] | pods, gates, Form |
//! | [`provision`] | nodes that are asked for where there are none |
//! | [`drain`] | how a group goes |
//! | [`stamps`] | times that a wrong clock has written |

pub mod admitted;
pub mod degraded;
pub mod disruption;
pub mod drain;
pub mod effects;
pub mod losses;
pub mod members;
pub mod provision;
pub mod stamps;
pub mod starting;
pub mod view;

use std::collections::BTreeMap;

use llamero_api::{
    deployment::{Disruption, Placement, Recovery},
    group::Intent,
};

use crate::{
    children,
    observed::{Node, Priority, Settings},
    placement::PlacementRequest,
    plan::Step,
    recovery::{self, Permit},
    resources,
    time::{self, Millis},
    volumes::Mounts,
};

pub use view::{GroupView, MemberView};

/// What is true for all groups of a deployment.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Deadlines of placement.
    pub placement: &'a Placement,
    /// Budget and backoff.
    pub recovery: &'a Recovery,
    /// All nodes by name.
    pub nodes: &'a BTreeMap<&'a str, &'a Node>,
    /// How the operator was installed.
    pub settings: &'a Settings,
    /// What happens when a node is being taken away.
    pub disruption: &'a Disruption,
    /// What is known of the claims that its pods mount.
    pub mounts: Mounts<'a>,
    /// What the pods' priority class gives them.
    pub priority: Priority,
    /// Whether this group may ask for nodes ([`provision::may_ask`]).
    pub may_ask: bool,
    /// The present.
    pub now: Millis,
}

/// What is to be done about a group.
#[derive(Debug, Default)]
pub struct NextSteps<'a> {
    /// Steps.
    pub steps: Vec<Step>,
    /// Members that need nodes.
    pub request: Option<PlacementRequest<'a>>,
    /// When to look again.
    pub next_at: Option<Millis>,
}

/// What is to be done next about a group.
#[must_use]
pub fn next_steps<'a>(view: &GroupView<'a>, context: &Context<'_>) -> NextSteps<'a> {
    let mut next = NextSteps::default();
    if view.deleting() {
        return next;
    }
    if let Some(step) = stamps::put_right(view, context.now) {
        next.steps.push(step);
        return next;
    }
    effects::delete_orphans(view, &mut next.steps);
    provision::withdraw(view, context, &mut next.steps);
    if view.spec().intent == Intent::Drain {
        next.next_at = drain::drain(view, context.now, &mut next.steps);
        return next;
    }
    let write = members::replace_lost(view, context)
        .or_else(|| members::roll_back_overdue(view, context))
        .or_else(|| members::roll_back_refused(view, context))
        .or_else(|| admitted::place_anew(view, context))
        .or_else(|| degraded::go_on_without(view, context))
        .or_else(|| degraded::take_back(view, context))
        .or_else(|| provision::end(view, context));
    if let Some(step) = write {
        next.steps.push(step);
        return next;
    }
    next.next_at = time::earlier(members::next_deadline(view, context), stall_check(view, context));
    next.next_at = time::earlier(next.next_at, starting::next_deadline(view, context));
    next.next_at = time::earlier(next.next_at, provision::deadline(view, context.placement));
    next.next_at = time::earlier(next.next_at, degraded::next_deadline(view, context));
    let leaves_at = disruption::deadline(view, context.disruption).filter(|at| *at > context.now);
    next.next_at = time::earlier(next.next_at, leaves_at);
    next.steps.extend(children::of_group(view, context.settings));
    // What is not whole moves nobody; its time to leave begins all the same, or a drain would wait for it for ever.
    if !view.complete()
        && let Some(step) = disruption::note(view, context)
    {
        next.steps.push(step);
        return next;
    }
    if view.members.iter().any(MemberView::unplaced) {
        request_nodes(view, context, &mut next);
        if view.lacks_room() {
            return next;
        }
    }
    if effects::create_pods(view, &mut next.steps) {
        return next;
    }
    if let Some(step) = members::record(view) {
        next.steps.push(step);
        return next;
    }
    effects::lift_gates(view, &mut next.steps);
    effects::form(view, &mut next.steps);
    if view.complete() {
        disruption::advance(view, context, &mut next);
    }
    next
}

/// Asks for nodes, once backoff and budget allow it.
fn request_nodes<'a>(view: &GroupView<'a>, context: &Context<'_>, next: &mut NextSteps<'a>) {
    let spec = view.spec();
    let backed_off = members::waits_until(spec, context.now);
    let wait = match recovery::permit(&spec.failures, context.recovery, context.now) {
        Permit::Now => backed_off,
        Permit::At(at) | Permit::SpentUntil(at) | Permit::UnusableUntil(at) => {
            Some(backed_off.map_or(at, |other| other.max(at)))
        }
    };
    if let Some(at) = wait {
        next.next_at = time::earlier(next.next_at, Some(at));
        return;
    }
    let (mut unplaced, placed): (Vec<&MemberView<'_>>, Vec<&MemberView<'_>>) =
        view.members.iter().partition(|m| m.unplaced());
    if view.lacks_room() {
        unplaced.retain(|m| !view.does_without(m.member));
    } else {
        // Each of those that the group does without helps by itself.
        unplaced.truncate(1);
    }
    next.request = Some(PlacementRequest {
        template: &spec.template,
        amounts: resources::of_group(spec),
        priority: context.priority,
        indices: unplaced.iter().map(|m| m.member.index).collect(),
        occupied: placed
            .iter()
            .filter_map(|m| m.node().map(str::to_owned))
            .collect(),
        avoid: recovery::avoid(&spec.failures, context.recovery, context.now),
        successors: false,
        volumes: context.mounts.needs(&spec.template, Some(view.group)),
    });
}

/// While a whole group does not serve, it is looked at again when patience ends.
fn stall_check(view: &GroupView<'_>, context: &Context<'_>) -> Option<Millis> {
    let patience = view.spec().template.stall_timeout.millis().max(1000);
    (view.whole() && !view.ready).then_some(context.now + patience)
}
