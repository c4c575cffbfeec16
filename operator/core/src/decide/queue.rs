//! Which placement requests are met, and in which order.

use std::{cmp::Reverse, collections::BTreeMap};

use super::Decided;
use crate::{
    groups::{GroupView, disruption, members},
    observed::Observed,
    placement::{Ledger, NoRoom, PlacementRequest, Placer},
    plan::Key,
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

/// Refusals that are remembered within a pass. What found no room finds none either after more was promised.
const MOST_REFUSED: usize = 32;

/// Meets requests one after another against one ledger. One that cannot be met holds nothing and does not keep others from fitting.
pub(super) fn place(
    observed: &Observed,
    mut requests: Vec<Queued<'_>>,
    mut ledger: Ledger<'_>,
    placer: &dyn Placer,
    now: Millis,
    decided: &mut Decided,
) {
    let created: BTreeMap<Key, Option<Millis>> = observed
        .deployments
        .iter()
        .map(|d| &d.object.metadata)
        .map(|metadata| {
            (
                Key::of(metadata),
                metadata.creation_timestamp.as_ref().map(time::millis),
            )
        })
        .collect();
    let created = |key: &Key| created.get(key).copied().flatten();
    requests.sort_by_cached_key(|queued| queued.order(created(&queued.deployment)));
    let mut refused: Vec<(PlacementRequest<'_>, NoRoom)> = Vec::new();
    for Queued {
        deployment,
        view,
        request,
    } in requests
    {
        let known = refused.iter().find(|(other, _)| other.asks_the_same(&request));
        let answer = match known {
            Some((_, missing)) => Err(missing.clone()),
            None => placer.place(&ledger, &request),
        };
        match answer {
            Ok(assignments) => {
                for assignment in &assignments {
                    ledger.reserve(&assignment.node, &request.amounts);
                }
                decided.plan.steps.push(if request.successors {
                    disruption::assign(&view, &assignments, now)
                } else {
                    members::assign(&view, &assignments, now)
                });
                if let Some((acts, _)) = decided.each.get_mut(&deployment) {
                    *acts = true;
                }
            }
            Err(missing) => {
                if let Some(verdict) = decided.plan.verdicts.get_mut(&deployment) {
                    let missing_of = if request.successors {
                        &mut verdict.no_room_to_move
                    } else {
                        &mut verdict.no_room
                    };
                    missing_of.insert(view.key.name.clone(), missing.0.clone());
                }
                if known.is_none() && refused.len() < MOST_REFUSED {
                    refused.push((request, missing));
                }
            }
        }
    }
}
