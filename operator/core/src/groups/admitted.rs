//! Pods that ask for more than their template says: admission has put containers into them, defaults of a LimitRange, or the overhead of a RuntimeClass.
//!
//! ```text
//! placed by the template --> gated pods exist as admitted --> they ask for more: written down, new attempts --> placed by what they ask for --> released
//! ```
//! A gated pod holds nothing, so what it asks for is known before anything happens. New groups begin with what their siblings' pods ask for. Where there is
//! no room for that, and there would be for the template, it is tried again with waits: what was added may not be any more.
#![expect(
    clippy::indexing_slicing,
    reason = "a place in a view is one in the list of members that it was made from"
)]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use llamero_api::group::{GroupTemplate, LlamaGroupSpec};

use super::{Context, GroupView, MemberView, members};
use crate::{
    observed::Pod,
    plan::{Confirm, EventKind, Step},
    resources::{self, Resources},
};

/// Reason of an attempt that asked for more than was set aside.
pub const LARGER: &str = "Larger";

/// Whether the pod, which holds nothing yet, asks for more than is set aside for it.
#[must_use]
pub fn is_larger(spec: &LlamaGroupSpec, pod: &Pod) -> bool {
    let asked = pod.request.as_ref().filter(|_| pod.gated);
    asked.is_some_and(|asked| !resources::of_group(spec).covers(asked))
}

/// Writes down what pods ask for, so that room is looked for anew: of members that were placed together none is released before.
#[must_use]
pub fn place_anew(view: &GroupView<'_>, context: &Context<'_>) -> Option<Step> {
    let larger: Vec<&MemberView<'_>> = view
        .members
        .iter()
        .filter(|m| m.pod.is_some_and(|pod| is_larger(view.spec(), pod)))
        .collect();
    let first = larger.first()?;
    let mut spec = view.spec().clone();
    let words = raise(&mut spec, larger.iter().filter_map(|m| m.pod));
    let placements: BTreeSet<_> = larger.iter().map(|m| members::batch(m.member)).collect();
    for (at, member) in view.members.iter().enumerate() {
        let together = placements.contains(&members::batch(member.member));
        if together && !member.unplaced() && !member.scheduled() {
            members::reset(&mut spec.members[at]);
        }
    }
    // Pods that grow with every attempt are waited for longer and longer; so are those of a definition that drops what was written down.
    let tried = larger.iter().any(|m| m.member.attempt > 0);
    let again = tried || !view.spec().admitted.is_empty() || spec.placement_failures > 0;
    if again {
        members::remember(&mut spec, first, LARGER, words.clone(), context.now);
        members::back_off(&mut spec, context.now);
    }
    Some(Step {
        action: members::write(view, spec, Confirm::default()),
        reason: LARGER,
        message: format!("{words}; room is looked for anew"),
        event: EventKind::Normal,
    })
}

/// Raises what is set aside to what these pods ask for, and says so.
pub fn raise<'p>(spec: &mut LlamaGroupSpec, pods: impl Iterator<Item = &'p Pod>) -> String {
    let before = resources::of_group(spec);
    let mut asked = before.clone();
    for request in pods.filter_map(|pod| pod.request.as_ref()) {
        asked.raise_to(request);
    }
    let more: Vec<String> = asked
        .iter()
        .filter(|(name, amount)| *amount > before.get(name))
        .map(|(name, amount)| {
            let set_aside = resources::show(name, before.get(name));
            format!("{} {name} instead of {set_aside}", resources::show(name, amount))
        })
        .collect();
    spec.admitted = beyond(&spec.template, &asked);
    format!(
        "pods were admitted that ask for {} (injected containers, defaults of a LimitRange, overhead of a RuntimeClass)",
        more.join(", ")
    )
}

/// What is set aside for a group whose pods all wait at their gates: no more than they ask for.
#[must_use]
pub fn exact(view: &GroupView<'_>) -> BTreeMap<String, Quantity> {
    let requests: Option<Vec<&Resources>> = view.members.iter().map(|m| m.pod?.request.as_ref()).collect();
    let Some(requests) = requests else {
        return view.spec().admitted.clone();
    };
    let mut asked = Resources::new();
    requests.into_iter().for_each(|request| asked.raise_to(request));
    beyond(&view.spec().template, &asked)
}

/// What new groups of the template begin with: what pods of another group that are made alike ask for.
#[must_use]
pub fn known(views: &[GroupView<'_>], template: &GroupTemplate) -> BTreeMap<String, Quantity> {
    let is_alike = |other: &GroupTemplate| {
        other.worker == template.worker && resources::of_template(other) == resources::of_template(template)
    };
    let mut specs = views.iter().map(GroupView::spec);
    let found = specs.find(|spec| !spec.admitted.is_empty() && is_alike(&spec.template));
    found.map(|spec| spec.admitted.clone()).unwrap_or_default()
}

/// Nothing where the template says as much.
fn beyond(template: &GroupTemplate, asked: &Resources) -> BTreeMap<String, Quantity> {
    match resources::of_template(template).covers(asked) {
        true => BTreeMap::new(),
        false => asked.to_quantities(),
    }
}
