//! Which placement requests are met, and in which order.

use std::cmp::Reverse;

use crate::{
    groups::{GroupView, disruption, members},
    observed::Observed,
    placement::{Ledger, PlacementRequest, Placer},
    plan::{Key, Plan},
    time::{self, Millis},
};

/// A placement request and whose it is.
pub(super) struct Queued<'a> {
    pub(super) deployment: Key,
    pub(super) view: GroupView<'a>,
    pub(super) request: PlacementRequest<'a>,
}

impl Queued<'_> {
    /// High priority first; then replacements, whose survivors hold accelerators; then by age and name.
    fn order(&self, created: Option<Millis>) -> (Reverse<i32>, bool, Option<Millis>, usize, Key) {
        let whole = self.request.indices.len() == self.view.members.len();
        (
            Reverse(self.request.priority),
            whole,
            created,
            self.view.key.name.len(),
            self.view.key.clone(),
        )
    }
}

/// Meets requests one after another against one ledger. One that cannot be met holds nothing and does not keep others from fitting.
pub(super) fn place(
    observed: &Observed,
    mut requests: Vec<Queued<'_>>,
    placer: &dyn Placer,
    now: Millis,
    plan: &mut Plan,
) {
    if requests.is_empty() {
        return;
    }
    let created = |key: &Key| {
        let found = observed
            .deployments
            .iter()
            .find(|d| Key::of(&d.object.metadata) == *key);
        found
            .and_then(|d| d.object.metadata.creation_timestamp.as_ref())
            .map(time::millis)
    };
    requests.sort_by_cached_key(|queued| queued.order(created(&queued.deployment)));
    let mut ledger = Ledger::of(observed);
    for Queued {
        deployment,
        view,
        request,
    } in requests
    {
        match placer.place(&ledger, &request) {
            Ok(assignments) => {
                for assignment in &assignments {
                    ledger.reserve(&assignment.node, &request.amounts);
                }
                plan.steps.push(if request.successors {
                    disruption::assign(&view, &assignments, now)
                } else {
                    members::assign(&view, &assignments, now)
                });
            }
            Err(missing) => {
                if let Some(verdict) = plan.verdicts.get_mut(&deployment) {
                    let missing_of = if request.successors {
                        &mut verdict.no_room_to_move
                    } else {
                        &mut verdict.no_room
                    };
                    missing_of.insert(view.key.name.clone(), missing.0);
                }
            }
        }
    }
}
