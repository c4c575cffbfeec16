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
//! | [`members`] | writes: take back, replace, record |
//! | [`losses`] | which members are lost, and who is to blame for a stall |
//! | [`effects`] | pods, gates, Form, the disruption budget |
//! | [`drain`] | how a group goes |

pub mod drain;
pub mod effects;
pub mod losses;
pub mod members;
pub mod view;

use std::collections::BTreeMap;

use llamero_api::{
    deployment::{Placement, Recovery},
    group::Intent,
};

use crate::{
    observed::Node,
    placement::Ask,
    plan::Step,
    recovery::{self, Permit},
    resources,
    time::{self, Millis},
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
    /// Value of the pods' priority class.
    pub priority: i32,
    /// The present.
    pub now: Millis,
}

/// What a group needs.
#[derive(Debug, Default)]
pub struct Needs<'a> {
    /// Steps.
    pub steps: Vec<Step>,
    /// Members that need nodes.
    pub ask: Option<Ask<'a>>,
    /// When to look again.
    pub next_at: Option<Millis>,
}

/// What a group needs next.
#[must_use]
pub fn needs<'a>(view: &GroupView<'a>, context: &Context<'_>) -> Needs<'a> {
    let mut needs = Needs::default();
    if view.deleting() {
        return needs;
    }
    effects::delete_strays(view, context.now, &mut needs.steps);
    if view.spec().intent == Intent::Drain {
        needs.next_at = drain::drain(view, context.now, &mut needs.steps);
        return needs;
    }
    if let Some(step) =
        members::replace_lost(view, context).or_else(|| members::take_back_overdue(view, context))
    {
        needs.steps.push(step);
        return needs;
    }
    needs.next_at = time::earlier(members::next_deadline(view, context), stall_check(view, context));
    effects::pdb(view, &mut needs.steps);
    if view.members.iter().any(MemberView::unplaced) {
        ask(view, context, &mut needs);
        return needs;
    }
    if effects::create_pods(view, &mut needs.steps) {
        return needs;
    }
    if let Some(step) = members::record(view) {
        needs.steps.push(step);
        return needs;
    }
    effects::lift_gates(view, &mut needs.steps);
    effects::form(view, &mut needs.steps);
    needs
}

/// Asks for nodes, once backoff and budget allow it.
fn ask<'a>(view: &GroupView<'a>, context: &Context<'_>, needs: &mut Needs<'a>) {
    let spec = view.spec();
    let backed_off = spec
        .place_after
        .as_ref()
        .map(time::millis)
        .filter(|at| *at > context.now);
    let wait = match recovery::permit(&spec.failures, context.recovery, context.now) {
        Permit::Now => backed_off,
        Permit::At(at) | Permit::SpentUntil(at) => Some(backed_off.map_or(at, |other| other.max(at))),
    };
    if let Some(at) = wait {
        needs.next_at = time::earlier(needs.next_at, Some(at));
        return;
    }
    let (unplaced, placed): (Vec<&MemberView<'_>>, Vec<&MemberView<'_>>) =
        view.members.iter().partition(|m| m.unplaced());
    needs.ask = Some(Ask {
        template: &spec.template,
        request: resources::of_template(&spec.template),
        priority: context.priority,
        indices: unplaced.iter().map(|m| m.member.index).collect(),
        occupied: placed.iter().filter_map(|m| m.member.node.clone()).collect(),
        avoid: recovery::avoid(&spec.failures, context.recovery, context.now),
    });
}

/// While a whole group does not serve, it is looked at again when patience ends.
fn stall_check(view: &GroupView<'_>, context: &Context<'_>) -> Option<Millis> {
    let patience = view.spec().template.stall_timeout.millis().max(1000);
    (view.whole() && !view.ready).then_some(context.now + patience)
}
