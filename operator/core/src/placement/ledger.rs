//! What is free on every node.

use std::collections::BTreeMap;

use crate::{
    observed::{Node, Observed},
    plan::Key,
    resources::{self, Resources},
};

/// The cluster's room, with reservations of members whose pods are not bound yet.
#[derive(Clone, Debug)]
pub struct Ledger<'a> {
    nodes: BTreeMap<&'a str, Entry<'a>>,
}

#[derive(Clone, Debug)]
struct Entry<'a> {
    node: &'a Node,
    reserved: Resources,
}

impl<'a> Ledger<'a> {
    /// The ledger of what was observed. A group's member is reserved from the moment its node stands in the group's specification until its
    /// pod is bound, from when on the node's own count contains it.
    #[must_use]
    pub fn of(observed: &'a Observed) -> Self {
        let nodes = observed.nodes.iter().map(|node| {
            (
                node.name.as_str(),
                Entry {
                    node,
                    reserved: Resources::new(),
                },
            )
        });
        let mut ledger = Self {
            nodes: nodes.collect(),
        };
        for group in observed.deployments.iter().flat_map(|d| &d.groups) {
            let spec = &group.object.spec;
            let request = resources::of_template(&spec.template);
            for member in &spec.members {
                let pod = group
                    .pods
                    .iter()
                    .find(|p| p.index == member.index && p.attempt == member.attempt);
                let counted = pod.is_some_and(|pod| pod.node.is_some());
                if let (Some(node), false) = (&member.node, counted) {
                    ledger.reserve(node, &request);
                }
                if let Some(successor) = &member.successor {
                    let mut pods = group.pods.iter();
                    let pod = pods.find(|p| p.index == member.index && p.attempt == successor.attempt);
                    if pod.is_none_or(|pod| pod.node.is_none()) {
                        ledger.reserve(&successor.node, &request);
                    }
                }
            }
        }
        ledger
    }

    /// Sets room aside.
    pub fn reserve(&mut self, node: &str, request: &Resources) {
        if let Some(entry) = self.nodes.get_mut(node) {
            entry.reserved.add(request);
        }
    }

    /// All nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = &'a Node> + '_ {
        self.nodes.values().map(|entry| entry.node)
    }

    /// What a pod of this priority can take, when pods of lower priority give way.
    #[must_use]
    pub fn free(&self, node: &str, priority: i32) -> Resources {
        self.rest(node, priority)
    }

    /// What any pod can take without anyone giving way.
    #[must_use]
    pub fn free_now(&self, node: &str) -> Resources {
        self.rest(node, i32::MIN)
    }

    fn rest(&self, node: &str, priority: i32) -> Resources {
        let Some(entry) = self.nodes.get(node) else {
            return Resources::new();
        };
        let mut free = entry.node.allocatable.clone();
        for (_, used) in entry.node.used.range(priority..) {
            free.subtract(used);
        }
        free.subtract(&entry.reserved);
        free
    }
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
