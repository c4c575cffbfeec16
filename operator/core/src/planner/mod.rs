//! Keeps what was observed, and decides about those deployments for which something changed that means something.
//!
//! ```text
//! changes --> Planner: nodes, deployments, groups, reservations --> pass(now) --> Plan of the dirty ones
//!                       |                                             |
//!                       +-- dirty: changed, due, or not done yet <----+
//! ```
//! A pass decides about dirty deployments what [`decide`](crate::decide) would decide about all, and that one would find nothing to do about
//! the others. One that is not at rest is looked at again every second, one at rest every minute or so: nothing may depend on a
//! change being noticed.
//!
//! | module | what |
//! |---|---|
//! | `same` | which changes mean something |
//! | `rest` | whether a deployment can be left alone |
//! | `nodes` | nodes and what is used on them |
#![expect(
    clippy::indexing_slicing,
    reason = "places come from a search of the same list"
)]

mod nodes;
mod rest;
mod same;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use llamero_api::LlamaDeployment;

use crate::{
    decide::{self, Decided},
    observed::{Demand, Deployment, Group, Observed, Priority, Settings},
    placement::{Ledger, Reservations},
    plan::{Key, Plan},
    status::{self, Reports},
    time::{self, Millis},
    volumes::Claims,
};

/// What is known, and what of it is still to be decided.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    /// Nodes by name, deployments by key, groups of each by name.
    observed: Observed,
    reservations: Reservations,
    entries: BTreeMap<Key, Entry>,
    /// Nodes whose condition changed: who has a member there is to be looked at.
    nodes_changed: BTreeSet<String>,
    /// Room came or went: who waits for some is to be looked at.
    room_changed: bool,
    /// Something changed that may concern everybody.
    all: bool,
    /// The time of the last pass.
    last: Millis,
}

/// What the planner knows about a deployment beside what was observed.
#[derive(Clone, Copy, Debug)]
struct Entry {
    dirty: bool,
    /// What was decided is under way, so nothing else is decided.
    held: bool,
    /// It has groups without room.
    waits: bool,
    /// When to look again.
    due: Option<Millis>,
}

impl Planner {
    /// Everything that is known.
    #[must_use]
    pub const fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What is set aside for members that are not bound yet.
    #[must_use]
    pub const fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// How the operator was installed, and the cluster's priority classes.
    pub fn set_cluster(
        &mut self,
        settings: &Settings,
        priority_classes: &BTreeMap<String, Priority>,
        default_priority: Priority,
    ) {
        let known = &mut self.observed;
        if known.settings == *settings
            && known.priority_classes == *priority_classes
            && known.default_priority == default_priority
        {
            return;
        }
        known.settings.clone_from(settings);
        known.priority_classes.clone_from(priority_classes);
        known.default_priority = default_priority;
        self.all = true;
    }

    /// Takes in a deployment without its groups: those that are known stay.
    pub fn set_deployment(&mut self, mut frame: Deployment) {
        let key = Key::of(&frame.object.metadata);
        match self.find(&key) {
            Ok(at) => {
                let known = &mut self.observed.deployments[at];
                let differs = !same::frame(known, &frame);
                frame.groups = std::mem::take(&mut known.groups);
                let before = std::mem::replace(known, frame);
                if differs {
                    let after = self.observed.deployments[at].object.clone();
                    self.touch_namesakes(&[before.object.as_ref(), after.as_ref()]);
                    self.touch(&key);
                }
            }
            Err(at) => {
                for group in &frame.groups {
                    self.reservations.add(group);
                }
                self.touch_namesakes(&[frame.object.as_ref()]);
                self.observed.deployments.insert(at, frame);
                let entry = Entry {
                    dirty: true,
                    held: false,
                    waits: false,
                    due: None,
                };
                self.entries.insert(key, entry);
            }
        }
    }

    /// What the gateways hold for a deployment.
    pub fn set_demand(&mut self, key: &Key, demand: Option<Demand>) {
        let Ok(at) = self.find(key) else { return };
        let known = &mut self.observed.deployments[at];
        let same = same::demanded(&known.object, known.demand.as_ref(), demand.as_ref());
        known.demand = demand;
        if !same {
            self.touch(key);
        }
    }

    /// Names of a namespace that new groups must not take. Nobody waits for one, so nobody is looked at again.
    pub fn set_names_in_use(&mut self, namespace: &str, names: &Arc<BTreeSet<String>>) {
        for deployment in &mut self.observed.deployments {
            if deployment
                .object
                .metadata
                .namespace
                .as_deref()
                .unwrap_or_default()
                == namespace
            {
                deployment.names_in_use = Arc::clone(names);
            }
        }
    }

    /// Claims of a namespace, for which its groups may have waited.
    pub fn set_claims(&mut self, namespace: &str, claims: &Arc<Claims>) {
        let mut touched = Vec::new();
        for deployment in &mut self.observed.deployments {
            let key = Key::of(&deployment.object.metadata);
            if key.namespace == namespace && deployment.claims != *claims {
                deployment.claims = Arc::clone(claims);
                touched.push(key);
            }
        }
        for key in &touched {
            self.touch(key);
        }
    }

    /// Forgets a deployment that is gone, and its groups.
    pub fn remove_deployment(&mut self, key: &Key) {
        let Ok(at) = self.find(key) else { return };
        let gone = self.observed.deployments.remove(at);
        for group in &gone.groups {
            self.reservations.remove(group);
            self.room_changed = true;
        }
        self.entries.remove(key);
        self.touch_namesakes(&[gone.object.as_ref()]);
    }

    /// Takes in a group of a deployment that is known. Whether it is.
    pub fn set_group(&mut self, of: &Key, group: Group) -> bool {
        let Ok(at) = self.find(of) else { return false };
        let groups = &mut self.observed.deployments[at].groups;
        let name = group.object.metadata.name.clone();
        match groups.binary_search_by(|known| known.object.metadata.name.cmp(&name)) {
            Ok(at) => {
                let known = &mut groups[at];
                let differs = !same::group(known, &group);
                self.room_changed |= differs && self.reservations.replace(known, &group);
                *known = group;
                if !differs {
                    return true;
                }
            }
            Err(at) => {
                self.reservations.add(&group);
                self.room_changed = true;
                groups.insert(at, group);
            }
        }
        self.touch(of);
        true
    }

    /// Forgets a group that is gone.
    pub fn remove_group(&mut self, of: &Key, name: &str) {
        let Ok(at) = self.find(of) else { return };
        let groups = &mut self.observed.deployments[at].groups;
        if let Ok(at) =
            groups.binary_search_by(|known| known.object.metadata.name.as_deref().cmp(&Some(name)))
        {
            let gone = groups.remove(at);
            self.reservations.remove(&gone);
            self.room_changed = true;
            self.touch(of);
        }
    }

    /// What was decided about a deployment is under way: nothing is decided about it until [`Self::release`].
    pub fn hold(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            (entry.held, entry.dirty) = (true, false);
        }
    }

    /// What was decided about a deployment has happened, or has not. It is decided about again: at once, or at `due` unless something changed
    /// meanwhile.
    pub fn release(&mut self, key: &Key, due: Option<Millis>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.held = false;
            entry.dirty |= due.is_none();
            entry.due = time::earlier(entry.due, due);
        }
    }

    /// Looks at a deployment again at this time at the latest.
    pub fn look_at(&mut self, key: &Key, at: Millis) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.due = time::earlier(entry.due, Some(at));
        }
    }

    /// Decides about every deployment that is dirty or due and not held. [`Plan::next_at`] says when the next one is due.
    ///
    /// A clock that went back has put off when everybody is due: then all are looked at.
    pub fn pass(&mut self, now: Millis) -> Plan {
        self.all |= now < self.last;
        self.last = now;
        self.spread();
        let chosen: BTreeSet<Key> = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.held && (entry.dirty || entry.due.is_some_and(|due| due <= now)))
            .map(|(key, _)| key.clone())
            .collect();
        if chosen.is_empty() {
            return Plan {
                next_at: self.next_due(),
                ..Plan::default()
            };
        }
        let observed = &self.observed;
        let some: Vec<&Deployment> = chosen.iter().filter_map(|key| self.get(key)).collect();
        let ledger = || Ledger::over(&observed.nodes, &self.reservations);
        let decided = decide::decide_some(observed, &some, ledger, now);
        self.settle(&chosen, &decided, now);
        let mut plan = decided.plan;
        plan.next_at = self.next_due();
        plan
    }

    /// Reports on everything a plan has a verdict about.
    #[must_use]
    pub fn report(&self, plan: &Plan, now: Millis) -> Reports {
        let mut reports = Reports::default();
        for (key, verdict) in &plan.verdicts {
            if let Some(deployment) = self.get(key) {
                status::report_one(deployment, verdict, now, &mut reports);
            }
        }
        reports
    }

    /// Notes what became of those that were decided about.
    fn settle(&mut self, chosen: &BTreeSet<Key>, decided: &Decided, now: Millis) {
        for key in chosen {
            let verdict = decided.plan.verdicts.get(key);
            let waits = verdict.is_some_and(|v| !v.no_room.is_empty() || !v.no_room_to_move.is_empty());
            let (acts, own) = decided.each.get(key).copied().unwrap_or_default();
            let deployment = self.get(key);
            let rests = !acts
                && match (deployment, verdict) {
                    (Some(deployment), Some(verdict)) => rest::rests(deployment, verdict, now),
                    // It is being deleted: nothing is decided about it.
                    _ => true,
                };
            let again = now.saturating_add(if rests {
                rest::pause(key, deployment)
            } else {
                rest::UNSETTLED
            });
            if let Some(entry) = self.entries.get_mut(key) {
                (entry.dirty, entry.waits) = (acts, waits);
                entry.due = time::earlier(own, Some(again));
            }
        }
    }

    /// Marks whom the changes since the last pass concern.
    fn spread(&mut self) {
        let (all, room) = (
            std::mem::take(&mut self.all),
            std::mem::take(&mut self.room_changed),
        );
        let changed = std::mem::take(&mut self.nodes_changed);
        if !(all || room) && changed.is_empty() {
            return;
        }
        let there = |deployment: &Deployment| {
            let mut groups = deployment.groups.iter();
            groups.any(|group| nodes::has_member_on(group, &changed))
        };
        for deployment in &self.observed.deployments {
            let key = Key::of(&deployment.object.metadata);
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.dirty |= all || (room && entry.waits) || (!changed.is_empty() && there(deployment));
            }
        }
    }

    /// When to look at the first deployment that is not held, if nothing changes before.
    #[must_use]
    pub fn next_due(&self) -> Option<Millis> {
        let waiting = self.entries.values().filter(|entry| !entry.held);
        waiting.filter_map(|entry| entry.due).min()
    }

    /// A deployment's model name, creation or deletion can change whose name it is.
    fn touch_namesakes(&mut self, objects: &[&LlamaDeployment]) {
        let claim = |object: &LlamaDeployment| {
            let metadata = &object.metadata;
            (
                object.model_name().to_owned(),
                metadata.creation_timestamp.clone(),
                metadata.deletion_timestamp.is_some(),
            )
        };
        if let [before, after] = objects
            && claim(before) == claim(after)
        {
            return;
        }
        let qualified = |object: &LlamaDeployment| {
            let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
            format!("{namespace}/{}", object.model_name())
        };
        let names: BTreeSet<String> = objects
            .iter()
            .flat_map(|object| [object.model_name().to_owned(), qualified(object)])
            .collect();
        for deployment in &self.observed.deployments {
            let object = deployment.object.as_ref();
            if (names.contains(object.model_name()) || names.contains(&qualified(object)))
                && let Some(entry) = self.entries.get_mut(&Key::of(&object.metadata))
            {
                entry.dirty = true;
            }
        }
    }

    fn touch(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.dirty = true;
        }
    }

    fn get(&self, key: &Key) -> Option<&Deployment> {
        self.observed.deployments.get(self.find(key).ok()?)
    }

    fn find(&self, key: &Key) -> Result<usize, usize> {
        self.observed.deployments.binary_search_by(|known| {
            let metadata = &known.object.metadata;
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            let name = metadata.name.as_deref().unwrap_or_default();
            (namespace, name).cmp(&(key.namespace.as_str(), key.name.as_str()))
        })
    }
}
