//! What is free on every node.

use std::{borrow::Cow, collections::BTreeMap};

use llamero_api::group::LlamaGroupSpec;

use crate::{
    observed::{Group, Node, Observed},
    plan::Key,
    resources::{self, Resources},
};

/// What is set aside on each node for members whose pods are not bound yet, by the node's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reservations(BTreeMap<String, Resources>);

impl Reservations {
    /// Of everything that was observed.
    #[must_use]
    pub fn of(observed: &Observed) -> Self {
        let mut all = Self::default();
        for group in observed.deployments.iter().flat_map(|d| &d.groups) {
            all.add(group);
        }
        all
    }

    /// Sets aside what a group needs.
    pub fn add(&mut self, group: &Group) {
        each(group, |node, request| self.reserve(node, request));
    }

    /// Sets aside what a group needs now instead of what it needed. Whether that differs.
    pub fn replace(&mut self, before: &Group, after: &Group) -> bool {
        let (held, holds) = (list(before), list(after));
        if held == holds {
            return false;
        }
        self.remove(before);
        self.add(after);
        true
    }

    /// Takes back exactly what [`Self::add`] set aside for this group.
    pub fn remove(&mut self, group: &Group) {
        each(group, |node, request| {
            if let Some(reserved) = self.0.get_mut(node) {
                reserved.subtract(request);
                if reserved.iter().all(|(_, amount)| amount == 0) {
                    self.0.remove(node);
                }
            }
        });
    }

    fn reserve(&mut self, node: &str, request: &Resources) {
        match self.0.get_mut(node) {
            Some(reserved) => reserved.add(request),
            None => {
                self.0.insert(node.to_owned(), request.clone());
            }
        }
    }

    fn get(&self, node: &str) -> Option<&Resources> {
        self.0.get(node)
    }
}

/// Calls `then` for each reservation of a group: a member is reserved from the moment its node stands in the group's specification, or in
/// one that is being written, until its pod is bound, from when on the node's own count contains it.
fn each(group: &Group, mut then: impl FnMut(&str, &Resources)) {
    let spec = &group.object.spec;
    if spec.members.iter().all(|m| m.node.is_none()) && group.writing.is_none() {
        return;
    }
    let request = resources::of_group(spec);
    let held = held(group, spec);
    for (node, ..) in &held {
        then(node, &request);
    }
    let Some(writing) = &group.writing else { return };
    let request = resources::of_group(writing);
    for place in self::held(group, writing) {
        if !held.contains(&place) {
            then(place.0, &request);
        }
    }
}

fn list(group: &Group) -> Vec<(String, Resources)> {
    let mut list = Vec::new();
    each(group, |node, request| {
        list.push((node.to_owned(), request.clone()))
    });
    list
}

/// Node, member and attempt of each pod that a specification promises and that is not bound.
fn held<'a>(group: &Group, spec: &'a LlamaGroupSpec) -> Vec<(&'a str, i32, i32)> {
    let bound = |index: i32, attempt: i32| {
        let mut pods = group.pods.iter();
        pods.any(|pod| pod.index == index && pod.attempt == attempt && pod.node.is_some())
    };
    let mut held = Vec::new();
    for member in &spec.members {
        if let Some(node) = member
            .node
            .as_deref()
            .filter(|_| !bound(member.index, member.attempt))
        {
            held.push((node, member.index, member.attempt));
        }
        if let Some(successor) = member
            .successor
            .as_ref()
            .filter(|s| !bound(member.index, s.attempt))
        {
            held.push((successor.node.as_str(), member.index, successor.attempt));
        }
    }
    held
}

/// The cluster's room, and what was promised of it since it was observed.
#[derive(Clone, Debug)]
pub struct Ledger<'a> {
    /// By name.
    nodes: Vec<&'a Node>,
    observed: Cow<'a, Reservations>,
    promised: Reservations,
}

impl<'a> Ledger<'a> {
    /// The ledger of what was observed.
    #[must_use]
    pub fn of(observed: &'a Observed) -> Self {
        Self::new(&observed.nodes, Cow::Owned(Reservations::of(observed)))
    }

    /// The same from reservations that are kept.
    #[must_use]
    pub fn over(nodes: &'a [Node], reservations: &'a Reservations) -> Self {
        Self::new(nodes, Cow::Borrowed(reservations))
    }

    fn new(nodes: &'a [Node], observed: Cow<'a, Reservations>) -> Self {
        let mut nodes: Vec<&Node> = nodes.iter().collect();
        // Sorted already, as a rule.
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Self {
            nodes,
            observed,
            promised: Reservations::default(),
        }
    }

    /// Sets room aside.
    pub fn reserve(&mut self, node: &str, request: &Resources) {
        self.promised.reserve(node, request);
    }

    /// All nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = &'a Node> + '_ {
        self.nodes.iter().copied()
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&'a Node> {
        let at = self.nodes.binary_search_by(|node| node.name.as_str().cmp(name));
        self.nodes.get(at.ok()?).copied()
    }

    /// What is left on a node for pods that ask for this much.
    #[must_use]
    pub fn room<'n>(&'n self, node: &'n Node, priority: i32) -> Room<'n> {
        Room {
            node,
            priority,
            reserved: [self.observed.get(&node.name), self.promised.get(&node.name)],
        }
    }
}

/// What is left on a node.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    node: &'a Node,
    priority: i32,
    reserved: [Option<&'a Resources>; 2],
}

impl Room<'_> {
    /// What a pod of the priority can take of a resource, when pods of lower priority give way.
    #[must_use]
    pub fn free(&self, name: &str) -> i64 {
        self.rest(name, self.priority)
    }

    /// What any pod can take without anyone giving way.
    #[must_use]
    pub fn free_now(&self, name: &str) -> i64 {
        self.rest(name, i32::MIN)
    }

    fn rest(&self, name: &str, priority: i32) -> i64 {
        let used = self.node.used.range(priority..).map(|(_, used)| used);
        used.chain(self.reserved.into_iter().flatten())
            .map(|taken| taken.get(name))
            .fold(self.node.allocatable.get(name), i64::saturating_sub)
    }

    /// How many pods that ask for this much fit, when pods of lower priority give way.
    #[must_use]
    pub fn pods(&self, request: &Resources) -> i64 {
        times(request, |name| self.free(name))
    }

    /// How many fit without anyone giving way.
    #[must_use]
    pub fn pods_now(&self, request: &Resources) -> i64 {
        times(request, |name| self.free_now(name))
    }
}

fn times(request: &Resources, free: impl Fn(&str) -> i64) -> i64 {
    let asked = request.iter().filter(|(_, amount)| *amount > 0);
    asked
        .map(|(name, amount)| free(name).max(0) / amount)
        .min()
        .unwrap_or(i64::MAX)
}

/// Reserved members by node: used by tests of the invariant that nothing is promised twice.
#[must_use]
pub fn reservations(observed: &Observed) -> BTreeMap<String, Vec<Key>> {
    let mut map: BTreeMap<String, Vec<Key>> = BTreeMap::new();
    for group in observed.deployments.iter().flat_map(|d| &d.groups) {
        for member in &group.object.spec.members {
            let bound = group
                .pods
                .iter()
                .any(|p| p.index == member.index && p.attempt == member.attempt && p.node.is_some());
            if let (Some(node), false) = (&member.node, bound) {
                map.entry(node.clone())
                    .or_default()
                    .push(Key::of(&group.object.metadata));
            }
        }
    }
    map
}
