//! Which placement requests are met, and in which order.

use std::{cmp::Reverse, collections::BTreeMap};

use llamero_api::deployment::Placement;

use super::Decided;
use crate::{
    groups::{
        GroupView, disruption, members,
        provision::{self, Asked},
    },
    observed::Observed,
    placement::{Ledger, NoRoom, PlacementRequest, Placer},
    plan::Key,
    refusals, resources,
    time::{self, Millis},
    volumes::GivenNodes,
};

/// A placement request and whose it is.
pub(super) struct Queued<'a> {
    pub(super) deployment: Key,
    pub(super) view: GroupView<'a>,
    pub(super) request: PlacementRequest<'a>,
    /// Nodes may be asked for where there is no room.
    pub(super) provision: Option<&'a Placement>,
}

impl Queued<'_> {
    /// High priority first; then replacements, whose survivors hold accelerators; then by age and name.
    fn order(&self, created: Option<Millis>) -> (Reverse<i32>, bool, Option<Millis>, usize, Key) {
        let whole = self.request.indices.len() == self.view.members.len();
        (
            Reverse(self.request.priority.value),
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
    let mut given = GivenNodes::default();
    for Queued {
        deployment,
        view,
        mut request,
        provision,
    } in requests
    {
        given.settle(&deployment.namespace, &mut request.volumes);
        let known = refused.iter().find(|(other, _)| other.asks_the_same(&request));
        let answer = match known {
            Some((_, missing)) => Err(missing.clone()),
            None => placer.place(&ledger, &request),
        };
        // Where nodes can be asked for, they are asked for what pods really need.
        let as_template = slimmer(&view, &request).filter(|_| answer.is_err() && provision.is_none());
        let is_new =
            |slim: &&PlacementRequest<'_>| !refused.iter().any(|(other, _)| other.asks_the_same(slim));
        let retried = as_template
            .as_ref()
            .filter(is_new)
            .and_then(|request| placer.place(&ledger, request).ok());
        let slimmer = retried.is_some();
        match retried.map_or(answer, Ok) {
            Ok(assignments) => {
                let amounts = as_template.as_ref().filter(|_| slimmer);
                let amounts = &amounts.unwrap_or(&request).amounts;
                for assignment in &assignments {
                    ledger.reserve(&assignment.node, amounts);
                    given.note(&deployment.namespace, &request.volumes, &assignment.node);
                }
                decided.plan.steps.push(if request.successors {
                    disruption::assign(&view, &assignments, now)
                } else {
                    members::assign(&view, &assignments, slimmer, now)
                });
                if let Some((acts, _)) = decided.each.get_mut(&deployment) {
                    *acts = true;
                }
            }
            Err(missing) => {
                let asked = provision.map(|placement| provision::ask(&view, &request, placement, now));
                let what = (&deployment, &view, request.successors);
                tell_missing(what, &missing, asked.unwrap_or_default(), now, decided);
                if known.is_none() && refused.len() < MOST_REFUSED {
                    refused.extend(as_template.map(|slim| (slim, missing.clone())));
                    refused.push((request, missing));
                }
            }
        }
    }
}

/// The same request by what the template says, where pods asked for more the last time: that may not be so any more.
fn slimmer<'a>(view: &GroupView<'_>, request: &PlacementRequest<'a>) -> Option<PlacementRequest<'a>> {
    let whole = !request.successors && !view.spec().admitted.is_empty();
    whole.then(|| PlacementRequest {
        amounts: resources::of_template(request.template),
        ..request.clone()
    })
}

/// Says what is missing for a group, or for successors in it, and how far nodes are asked for.
fn tell_missing(
    (deployment, view, successors): (&Key, &GroupView<'_>, bool),
    missing: &NoRoom,
    asked: Asked,
    now: Millis,
    decided: &mut Decided,
) {
    let asks = asked.asks;
    let words = take_in(asked, deployment, view, now, decided);
    let Some(verdict) = decided.plan.verdicts.get_mut(deployment) else {
        return;
    };
    let name = &view.key.name;
    if asks {
        verdict.provisioning.insert(name.clone());
    }
    let missing_of = if successors {
        &mut verdict.no_room_to_move
    } else {
        &mut verdict.no_room
    };
    let mut told = missing.0.clone();
    if !view.spec().admitted.is_empty() {
        told.push_str(
            "; that is what its pods ask for as they are admitted (injected containers, a LimitRange, a RuntimeClass)",
        );
    }
    if let Some(words) = words {
        told = format!("{told}; {words}");
    }
    missing_of.insert(name.clone(), told);
}

/// Takes in what comes of a request without room, but for steps that were refused a moment ago. How far it is.
fn take_in(
    mut asked: Asked,
    deployment: &Key,
    view: &GroupView<'_>,
    now: Millis,
    decided: &mut Decided,
) -> Option<String> {
    let held = refusals::hold_each(&mut asked.steps, &view.group.refusals, now);
    let next_at = time::earlier(asked.next_at, held);
    decided.plan.next_at = time::earlier(decided.plan.next_at, next_at);
    if let Some((acts, own)) = decided.each.get_mut(deployment) {
        *acts |= !asked.steps.is_empty();
        *own = time::earlier(*own, next_at);
    }
    decided.plan.steps.extend(asked.steps);
    asked.words
}
