//! Which groups come and go.
//!
//! A group keeps the template it was made from; a changed template means another group. There are never more than `desired + maxSurge`
//! groups, and while a surge has room no serving group goes before its replacement serves. Where it has none, voluntary steps never
//! leave fewer than `desired − maxUnavailable` ready groups. Groups that are not ready go first and never block. With the strategy
//! `Recreate` all older groups go at once, and the first new one is made when the last of them is gone.

use std::collections::BTreeSet;

use llamero_api::{
    deployment::RolloutStrategy,
    group::{GroupTemplate, Intent, LlamaGroupSpec, Member},
    labels,
};

use crate::{
    groups::{GroupView, MemberView, drain},
    observed::Deployment,
    plan::{Action, EventKind, Key, Step},
    time::Millis,
};

/// How many groups there are to be, and what new ones are made from.
#[derive(Clone, Debug)]
pub struct Target {
    /// Groups.
    pub groups: i32,
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
    leaving: &BTreeSet<String>,
    now: Millis,
    steps: &mut Vec<Step>,
) -> BTreeSet<String> {
    let desired = usize::try_from(target.groups).unwrap_or(0);
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
    let rolling = target.template.is_some() && !deployment.object.spec.rollout.paused;
    let outdated = alive.iter().any(|view| view.spec().revision != target.revision);
    let recreate = deployment.object.spec.rollout.strategy == RolloutStrategy::Recreate;
    let surge = match rolling && outdated && !recreate {
        true => usize::try_from(deployment.object.spec.rollout.max_surge).unwrap_or(0),
        false => 0,
    };
    let surplus = alive.len().saturating_sub(desired + surge);
    let mut going = BTreeSet::new();
    for view in alive.drain(..surplus) {
        steps.push(drain::begin(view, &format!("{desired} groups are wanted"), now));
        going.insert(view.key.name.clone());
    }
    let floor =
        desired.saturating_sub(usize::try_from(deployment.object.spec.rollout.max_unavailable).unwrap_or(0));
    let fits = surge > 0
        && !alive
            .iter()
            .any(|view| view.spec().revision == target.revision && homeless(view));
    let mut budget = Budget {
        ready: alive.iter().filter(|view| view.ready).count(),
        floor,
    };
    // Who must leave before who may: a node that goes takes its group with it anyway.
    for view in alive.iter().filter(|view| leaving.contains(&view.key.name)) {
        if budget.spend(view) {
            let why = "a node is being taken away, and there was no room to move within disruption.deadline";
            steps.push(drain::begin(view, why, now));
            going.insert(view.key.name.clone());
        }
    }
    if rolling {
        alive.retain(|view| !going.contains(&view.key.name));
        if recreate {
            budget.floor = 0;
        } else if fits {
            budget.floor = desired;
        }
        replace_outdated(&alive, target, &mut budget, now, steps, &mut going);
    }
    // Groups on their way out hold their nodes until they are gone.
    let old_ones_left = views.iter().any(|view| view.spec().revision != target.revision);
    if let Some(template) = target
        .template
        .as_ref()
        .filter(|_| !(rolling && recreate && old_ones_left))
    {
        let current = alive
            .iter()
            .filter(|view| view.spec().revision == target.revision);
        let room = (desired + surge).saturating_sub(views.len());
        let missing = if surge > 0 {
            room.min(desired.saturating_sub(current.count()))
        } else {
            room
        };
        create_missing(deployment, key, views, target, template, missing, steps);
    }
    going
}

/// No nodes have room for any of it, or a quota has none.
fn homeless(view: &GroupView<'_>) -> bool {
    let status = view.group.object.status.as_ref();
    let no_room = status.is_some_and(|status| status.unplaceable_since.is_some());
    view.members.iter().all(MemberView::unplaced) && (no_room || view.spec().placement_failures > 0)
}

/// How many groups may go: one budget for rollout and disruption.
struct Budget {
    ready: usize,
    floor: usize,
}

impl Budget {
    /// Whether the group may go; a group that does not serve always may.
    const fn spend(&mut self, view: &GroupView<'_>) -> bool {
        if !view.ready {
            return true;
        }
        if self.ready <= self.floor {
            return false;
        }
        self.ready -= 1;
        true
    }
}

fn replace_outdated(
    alive: &[&GroupView<'_>],
    target: &Target,
    budget: &mut Budget,
    now: Millis,
    steps: &mut Vec<Step>,
    going: &mut BTreeSet<String>,
) {
    for view in alive
        .iter()
        .filter(|view| view.spec().revision != target.revision)
    {
        if !budget.spend(view) {
            continue;
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
    missing: usize,
    steps: &mut Vec<Step>,
) {
    let mut names: BTreeSet<String> = views.iter().map(|view| view.key.name.clone()).collect();
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
                successor: None,
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
            disrupted_since: None,
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
