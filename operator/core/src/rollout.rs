//! Which groups come and go.
//!
//! A group keeps the template it was made from; a changed template means another group. There are never more than `desired + maxSurge`
//! groups, and while a surge has room no serving group goes before its replacement serves. Where it has none, a pod must first have tried
//! the new revision, and voluntary steps never leave fewer than `desired − maxUnavailable` ready groups. Groups that are not ready go first
//! and never block. With `partition` the oldest groups stay: a canary. With the strategy `Recreate` all older groups go at once, and the
//! first new one is made when the last of them is gone. While a rollout is paused, or the new revision refused, missing groups are made from what the
//! others are made from.

use std::collections::{BTreeMap, BTreeSet};

use llamero_api::{
    deployment::RolloutStrategy,
    group::{GroupTemplate, Intent, LlamaGroupSpec, Member},
    labels,
};

use crate::{
    groups::{GroupView, MemberView, admitted, drain},
    observed::{Deployment, Node},
    plan::{Action, EventKind, Key, Step},
    time::{self, Millis},
    trial::{self, Outcome, Trial},
};

/// How many groups there are to be, and what new ones are made from.
#[derive(Clone, Debug)]
pub struct Target {
    /// Groups.
    pub groups: i32,
    /// The number that is about to be written. While it is lower no group is made that would go at once.
    pub soon: i32,
    /// Digest of the template.
    pub revision: String,
    /// The template; absent while the checkpoint is not known or does not fit. Then none is replaced.
    pub template: Option<GroupTemplate>,
    /// Revision and template of groups that are missing: an older one than that while it is paused or refused.
    pub made_from: Option<(String, GroupTemplate)>,
}

/// What fleets are decided from.
#[derive(Clone, Copy, Debug)]
pub struct Fleet<'a> {
    /// The deployment.
    pub deployment: &'a Deployment,
    /// Its namespace and name.
    pub key: &'a Key,
    /// Its groups.
    pub views: &'a [GroupView<'a>],
    /// What there is to be.
    pub target: &'a Target,
    /// All nodes by name.
    pub nodes: &'a BTreeMap<&'a str, &'a Node>,
    /// No nodes may be read: the scheduler alone chooses.
    pub unpinned: bool,
    /// The present.
    pub now: Millis,
}

/// What was decided about a fleet, beside its steps.
#[derive(Debug, Default)]
pub struct Decided {
    /// Groups that a step was made for: nothing else is decided about them in this pass.
    pub going: BTreeSet<String>,
    /// Why no group goes although the new revision has no room beside the old one.
    pub trial: Option<String>,
    /// Groups that must leave their nodes and may not, as too few would serve.
    pub held: BTreeSet<String>,
    /// When to look again.
    pub next_at: Option<Millis>,
}

/// Names of the groups that keep their revision: the oldest, as many as `rollout.partition` says. None while the oldest is of the newest
/// revision: the canary has not begun, or was rolled back.
#[must_use]
pub fn kept<'a>(
    views: impl Iterator<Item = &'a GroupView<'a>>,
    partition: i32,
    revision: &str,
) -> BTreeSet<String> {
    let mut oldest: Vec<&GroupView<'_>> = views.filter(|view| view.wanted()).collect();
    oldest.sort_by_key(|view| age(view));
    if oldest
        .first()
        .is_some_and(|view| view.spec().revision == revision)
    {
        return BTreeSet::new();
    }
    let most = usize::try_from(partition).unwrap_or(0);
    let names = oldest.into_iter().take(most);
    names.map(|view| view.key.name.clone()).collect()
}

/// Revision and template of the oldest group that is to serve.
#[must_use]
pub fn present<'v>(views: &'v [GroupView<'_>]) -> Option<(&'v str, &'v GroupTemplate)> {
    let oldest = views
        .iter()
        .filter(|view| view.wanted())
        .min_by_key(|view| age(view))?;
    Some((&oldest.spec().revision, &oldest.spec().template))
}

/// Older groups first; of those made in one second the one with the lower number.
fn age(view: &GroupView<'_>) -> (Option<Millis>, usize, String) {
    let created = view.group.object.metadata.creation_timestamp.as_ref();
    (
        created.map(time::millis),
        view.key.name.len(),
        view.key.name.clone(),
    )
}

/// Creates and drains groups. `leaving`: groups that must go because a node is being taken away.
#[must_use]
pub fn decide(fleet: &Fleet<'_>, leaving: &BTreeSet<String>, steps: &mut Vec<Step>) -> Decided {
    let mut change = Change::of(fleet);
    change.shed_surplus(steps);
    change.let_leave(leaving, steps);
    let mut tried = None;
    if change.rolling {
        tried = change.replace_outdated(steps);
    }
    trial::clear(fleet.deployment, fleet.key, tried, steps);
    change.fill(steps);
    change.decided
}

/// How many groups may go: one budget for rollout and disruption.
struct Budget {
    ready: usize,
    floor: usize,
}

impl Budget {
    /// Whether the group could go.
    const fn allows(&self, view: &GroupView<'_>) -> bool {
        !view.may_serve() || self.ready > self.floor
    }

    /// Whether the group may go; a group that does not serve always may.
    const fn spend(&mut self, view: &GroupView<'_>) -> bool {
        let allowed = self.allows(view);
        if allowed && view.ready {
            self.ready -= 1;
        }
        allowed
    }
}

/// A fleet on its way to its target.
struct Change<'a> {
    fleet: Fleet<'a>,
    desired: usize,
    /// Groups that are to serve, those to lose first in front: not ready, then of an older revision, then less far, then the highest number.
    alive: Vec<&'a GroupView<'a>>,
    /// Groups of older revisions that a canary leaves alone.
    kept: BTreeSet<String>,
    rolling: bool,
    recreate: bool,
    surge: usize,
    budget: Budget,
    decided: Decided,
}

impl<'a> Change<'a> {
    fn of(fleet: &Fleet<'a>) -> Self {
        let (rollout, target) = (&fleet.deployment.object.spec.rollout, fleet.target);
        let desired = usize::try_from(target.groups).unwrap_or(0);
        let mut alive: Vec<&GroupView<'_>> = fleet.views.iter().filter(|view| view.wanted()).collect();
        alive.sort_by_key(|v| {
            (
                v.may_serve(),
                v.spec().revision == target.revision,
                v.last_phase(),
                std::cmp::Reverse((v.key.name.len(), v.key.name.clone())),
            )
        });
        let kept = kept(fleet.views.iter(), rollout.partition, &target.revision);
        let rolling = target.template.is_some() && !rollout.paused;
        let recreate = rollout.strategy == RolloutStrategy::Recreate;
        let outdated = alive
            .iter()
            .any(|v| v.spec().revision != target.revision && !kept.contains(&v.key.name));
        let surge = match rolling && outdated && !recreate {
            true => usize::try_from(rollout.max_surge).unwrap_or(0),
            false => 0,
        };
        let max_unavailable = usize::try_from(rollout.max_unavailable).unwrap_or(0);
        let budget = Budget {
            ready: 0,
            floor: desired.saturating_sub(max_unavailable),
        };
        Self {
            fleet: *fleet,
            desired,
            alive,
            kept,
            rolling,
            recreate,
            surge,
            budget,
            decided: Decided::default(),
        }
    }

    fn is_older(&self, view: &GroupView<'_>) -> bool {
        view.spec().revision != self.fleet.target.revision
    }

    fn drain(&mut self, view: &GroupView<'_>, why: &str, steps: &mut Vec<Step>) {
        steps.push(drain::begin(view, why, self.fleet.now));
        self.decided.going.insert(view.key.name.clone());
    }

    /// Groups beyond the wanted number go, whether they serve or not.
    fn shed_surplus(&mut self, steps: &mut Vec<Step>) {
        let surplus = self.alive.len().saturating_sub(self.desired + self.surge);
        let surplus: Vec<&GroupView<'_>> = self.alive.drain(..surplus).collect();
        let why = format!("{} groups are wanted", self.desired);
        for view in surplus {
            self.drain(view, &why, steps);
        }
        self.budget.ready = self.alive.iter().filter(|view| view.ready).count();
    }

    /// Who must leave goes before who may: a node that goes takes its group with it anyway.
    fn let_leave(&mut self, leaving: &BTreeSet<String>, steps: &mut Vec<Step>) {
        let must = self.alive.iter().copied();
        let must: Vec<&GroupView<'_>> = must.filter(|view| leaving.contains(&view.key.name)).collect();
        for view in must {
            if self.budget.spend(view) {
                let why =
                    "a node is being taken away, and there was no room to move within disruption.deadline";
                self.drain(view, why, steps);
            } else {
                self.decided.held.insert(view.key.name.clone());
            }
        }
    }

    /// Replaces groups of older revisions as far as the budget goes. The revision that is being tried for it, or was.
    fn replace_outdated(&mut self, steps: &mut Vec<Step>) -> Option<&'a str> {
        let going = &self.decided.going;
        self.alive.retain(|view| !going.contains(&view.key.name));
        let mut current = self.alive.iter().filter(|view| !self.is_older(view));
        let fits = self.surge > 0 && !current.any(|view| homeless(view));
        if self.recreate {
            self.budget.floor = 0;
        } else if fits {
            self.budget.floor = self.desired;
        }
        let outdated: Vec<&GroupView<'_>> = self
            .alive
            .iter()
            .copied()
            .filter(|view| self.is_older(view) && !self.kept.contains(&view.key.name))
            .collect();
        // Where nothing takes their place before they go, it must be sure that something can.
        let unsure = !fits && outdated.iter().any(|view| view.may_serve());
        let proved = !unsure || self.proved(&outdated, steps);
        for view in outdated {
            if (view.may_serve() && !proved) || !self.budget.spend(view) {
                continue;
            }
            let why = format!(
                "revision {} replaces {}",
                self.fleet.target.revision,
                view.spec().revision
            );
            self.drain(view, &why, steps);
        }
        unsure.then_some(self.fleet.target.revision.as_str())
    }

    /// Whether a pod has shown that the new revision starts, on a node of the groups that are to go if it may run there.
    fn proved(&mut self, outdated: &[&GroupView<'_>], steps: &mut Vec<Step>) -> bool {
        let fleet = self.fleet;
        let Some(template) = &fleet.target.template else {
            return false;
        };
        // Nothing may go now, so there is nothing to prove yet.
        if !outdated
            .iter()
            .any(|view| view.may_serve() && self.budget.allows(view))
        {
            return false;
        }
        let trial = Trial {
            deployment: fleet.deployment,
            key: fleet.key,
            revision: &fleet.target.revision,
            template,
            unpinned: fleet.unpinned,
        };
        let members = outdated.iter().flat_map(|view| &view.members);
        let of_groups = members.filter_map(|m| fleet.nodes.get(m.node()?));
        let nodes = of_groups.chain(fleet.nodes.values()).copied();
        match trial.advance(nodes, fleet.now, steps) {
            Outcome::Passed => true,
            Outcome::Pending(words, next_at) => {
                self.decided.trial = Some(words);
                self.decided.next_at = next_at;
                false
            }
        }
    }

    /// Makes the groups that are missing. Those on their way out hold their nodes until they are gone, so they count.
    fn fill(&self, steps: &mut Vec<Step>) {
        let Fleet { views, target, .. } = self.fleet;
        let older_left = views.iter().any(|view| self.is_older(view));
        let Some((revision, template)) = &target.made_from else {
            return;
        };
        if self.rolling && self.recreate && older_left {
            return;
        }
        let most = self.desired.min(usize::try_from(target.soon).unwrap_or(0));
        let room = (most + self.surge).saturating_sub(views.len());
        let older = self.alive.iter().filter(|view| self.is_older(view)).count();
        let lost = self.lost_of_canary(older).min(room);
        let current = self.alive.len() - older;
        let missing = if self.surge > 0 {
            let stay = self
                .alive
                .iter()
                .filter(|v| self.is_older(v) && self.kept.contains(&v.key.name));
            let wanted = self.desired.saturating_sub(stay.count() + lost);
            (room - lost).min(wanted.saturating_sub(current))
        } else {
            room - lost
        };
        let mut names = self.free_names();
        if let Some(oldest) = self.oldest().filter(|_| lost > 0) {
            let spec = oldest.spec();
            for name in names.by_ref().take(lost) {
                steps.push(self.create(name, &spec.revision, &spec.template));
            }
        }
        for name in names.take(missing) {
            steps.push(self.create(name, revision, template));
        }
    }

    fn oldest(&self) -> Option<&'a GroupView<'a>> {
        self.alive.iter().copied().min_by_key(|view| age(view))
    }

    /// Groups that a canary was to leave at the older revision and that are gone. While the oldest group is of the newest revision there is
    /// no canary: it was rolled back, or has not begun.
    fn lost_of_canary(&self, older: usize) -> usize {
        let partition = self.fleet.deployment.object.spec.rollout.partition;
        let keeps = usize::try_from(partition).unwrap_or(0).min(self.desired);
        match self.oldest() {
            Some(oldest) if self.is_older(oldest) => keeps.saturating_sub(older),
            _ => 0,
        }
    }

    fn free_names(&self) -> impl Iterator<Item = String> + use<'a> {
        let Fleet {
            deployment,
            key,
            views,
            ..
        } = self.fleet;
        let mut taken: BTreeSet<String> = views.iter().map(|view| view.key.name.clone()).collect();
        taken.extend(deployment.names_in_use.iter().cloned());
        (0u32..)
            .map(|ordinal| labels::group_name(&key.name, ordinal))
            .filter(move |name| !taken.contains(name))
    }

    fn create(&self, name: String, revision: &str, template: &GroupTemplate) -> Step {
        let Fleet { deployment, key, .. } = self.fleet;
        Step {
            message: format!("creating group {name}"),
            action: Action::CreateGroup {
                deployment: key.clone(),
                deployment_uid: deployment.object.metadata.uid.clone().unwrap_or_default(),
                name,
                spec: Box::new(LlamaGroupSpec {
                    admitted: admitted::known(self.fleet.views, template),
                    ..new_group(key, revision, template)
                }),
            },
            reason: "Created",
            event: EventKind::Normal,
        }
    }
}

/// No nodes have room for any of it, or a quota has none.
fn homeless(view: &GroupView<'_>) -> bool {
    let status = view.group.object.status.as_ref();
    let no_room = status.is_some_and(|status| status.unplaceable_since.is_some());
    let waits = |m: &MemberView<'_>| m.unplaced() || m.anywhere();
    view.members.iter().all(waits) && (no_room || view.spec().placement_failures > 0)
}

/// A group that has no nodes yet.
fn new_group(key: &Key, revision: &str, template: &GroupTemplate) -> LlamaGroupSpec {
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
    LlamaGroupSpec {
        deployment: key.name.clone(),
        revision: revision.to_owned(),
        template: template.clone(),
        generation: 0,
        without: Vec::new(),
        members,
        intent: Intent::Run,
        drain_since: None,
        placement_failures: 0,
        disrupted_since: None,
        place_after: None,
        provision: None,
        admitted: BTreeMap::new(),
        failures: Vec::new(),
    }
}
