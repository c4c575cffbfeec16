//! Times that a wrong clock has written into a group's specification.
//!
//! An operator whose clock was ahead leaves times that are still to come: a failure of tomorrow, a member placed tomorrow. Believed, they would hold deadlines open
//! and decisions up until tomorrow; forgotten, they would hide failures. So all of them are moved back together, by as much as the latest one lies
//! ahead, before anything else is decided: the last thing that happened counts as of now, and the others keep their distances from it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use llamero_api::group::LlamaGroupSpec;

use super::{GroupView, members, provision};
use crate::{
    plan::{Confirm, EventKind, Step},
    time::{self, Millis},
};

/// The write that moves times back which lie ahead of now, if there are any.
#[must_use]
pub fn put_right(view: &GroupView<'_>, now: Millis) -> Option<Step> {
    let mut spec = view.spec().clone();
    let uid = view.uid();
    let mut ahead = 0;
    each(&mut spec, &uid, |time, wait| {
        ahead = ahead.max(began(time, wait).saturating_sub(now))
    });
    if ahead == 0 {
        return None;
    }
    each(&mut spec, &uid, |time, wait| {
        if began(time, wait) > now {
            *time = time::to_time(time::millis(time).saturating_sub(ahead));
        }
    });
    Some(Step {
        action: members::write(view, spec, Confirm::default()),
        reason: "ClockChanged",
        message: format!(
            "what was written up to {} s later than now, by a clock that was ahead, counts as of now",
            ahead.div_euclid(1000).saturating_add(1)
        ),
        event: EventKind::Normal,
    })
}

/// When the wait began that ends at `time`.
fn began(time: &Time, wait: Millis) -> Millis {
    time::millis(time).saturating_sub(wait)
}

/// Visits every time of the specification, with the wait that it is the end of: 0 for what has happened then.
fn each(spec: &mut LlamaGroupSpec, uid: &str, mut visit: impl FnMut(&mut Time, Millis)) {
    let failures = spec.placement_failures;
    let placed = spec.members.iter_mut().flat_map(|member| {
        let successor = member
            .successor
            .as_mut()
            .map(|successor| &mut successor.placed_at);
        member.placed_at.iter_mut().chain(successor)
    });
    spec.drain_since
        .iter_mut()
        .chain(&mut spec.disrupted_since)
        .chain(placed)
        .chain(spec.failures.iter_mut().map(|failure| &mut failure.time))
        .for_each(|time| visit(time, 0));
    if let Some(after) = &mut spec.place_after {
        visit(after, members::backoff(failures));
    }
    if let Some(provision) = &mut spec.provision {
        let pause = provision::pause(uid, provision.failures);
        provision.since.iter_mut().for_each(|time| visit(time, 0));
        provision
            .not_before
            .iter_mut()
            .for_each(|time| visit(time, pause));
    }
}
