//! Which groups come and go.
//!
//! A group keeps the template it was made from; a changed template means another group. Voluntary steps never leave fewer than
//! `desired − maxUnavailable` ready groups and never make more than `desired` groups. Groups that are not ready go first and never block.

use std::collections::BTreeSet;

use llamero_api::{
    deployment::Rollout,
    group::{GroupTemplate, Intent, LlamaGroupSpec, Member},
    labels,
};

use crate::{
    groups::{GroupView, drain},
    observed::Deployment,
    plan::{Action, EventKind, Key, Step},
    time::Millis,
};

/// What new groups are made from.
#[derive(Clone, Debug)]
pub struct Target {
    /// Digest of the template.
    pub revision: String,
    /// The template; absent while the checkpoint is not known or does not fit. Then no group is made and none is replaced.
    pub template: Option<GroupTemplate>,
}

/// Creates and drains groups. Names of the groups that a step was made for: nothing else is decided about them in this pass.
pub fn fleet(
    deployment: &Deployment,
    key: &Key,
    views: &[GroupView<'_>],
    target: &Target,
    desired: i32,
    now: Millis,
    steps: &mut Vec<Step>,
) -> BTreeSet<String> {
    let desired = usize::try_from(desired).unwrap_or(0);
    let mut alive: Vec<&GroupView<'_>> = views.iter().filter(|view| view.wanted()).collect();
    // The ones to lose first: not ready, then of an older revision, then less far, then the highest number.
    alive.sort_by_key(|v| {
        (
            v.ready,
            v.spec().revision == target.revision,
            v.last_phase(),
            std::cmp::Reverse((v.key.name.len(), v.key.name.clone())),
        )
    });
    let surplus = alive.len().saturating_sub(desired);
    let mut going = BTreeSet::new();
    for view in alive.drain(..surplus) {
        steps.push(drain::begin(view, &format!("{desired} groups are wanted"), now));
        going.insert(view.key.name.clone());
    }
    if target.template.is_some() && !deployment.object.spec.rollout.paused {
        replace_outdated(
            &alive,
            target,
            desired,
            &deployment.object.spec.rollout,
            now,
            steps,
            &mut going,
        );
    }
    if let Some(template) = &target.template {
        create_missing(deployment, key, views, target, template, desired, steps);
    }
    going
}

fn replace_outdated(
    alive: &[&GroupView<'_>],
    target: &Target,
    desired: usize,
    rollout: &Rollout,
    now: Millis,
    steps: &mut Vec<Step>,
    going: &mut BTreeSet<String>,
) {
    let floor = desired.saturating_sub(usize::try_from(rollout.max_unavailable).unwrap_or(0));
    let mut ready = alive.iter().filter(|view| view.ready).count();
    for view in alive
        .iter()
        .filter(|view| view.spec().revision != target.revision)
    {
        if view.ready {
            if ready <= floor {
                continue;
            }
            ready -= 1;
        }
        steps.push(drain::begin(
            view,
            &format!("revision {} replaces {}", target.revision, view.spec().revision),
            now,
        ));
        going.insert(view.key.name.clone());
    }
}

/// Groups that are on their way out still hold their nodes, so they count.
fn create_missing(
    deployment: &Deployment,
    key: &Key,
    views: &[GroupView<'_>],
    target: &Target,
    template: &GroupTemplate,
    desired: usize,
    steps: &mut Vec<Step>,
) {
    let mut names: BTreeSet<String> = views.iter().map(|view| view.key.name.clone()).collect();
    let missing = desired.saturating_sub(names.len());
    names.extend(deployment.names_in_use.iter().cloned());
    let free = (0u32..)
        .map(|ordinal| labels::group_name(&key.name, ordinal))
        .filter(|name| !names.contains(name));
    for name in free.take(missing) {
        let members = (0..template.pods().min(256))
            .map(|index| Member {
                index,
                attempt: 0,
                node: None,
                placed_at: None,
                pod_uid: None,
            })
            .collect();
        let spec = LlamaGroupSpec {
            deployment: key.name.clone(),
            revision: target.revision.clone(),
            template: template.clone(),
            generation: 0,
            members,
            intent: Intent::Run,
            drain_since: None,
            placement_failures: 0,
            place_after: None,
            failures: Vec::new(),
        };
        steps.push(Step {
            message: format!("creating group {name}"),
            action: Action::CreateGroup {
                deployment: key.clone(),
                deployment_uid: deployment.object.metadata.uid.clone().unwrap_or_default(),
                name,
                spec: Box::new(spec),
            },
            reason: "Created",
            event: EventKind::Normal,
        });
    }
}
