//! Nodes and what is used on them.
#![expect(
    clippy::indexing_slicing,
    reason = "places come from a search of the same list"
)]

use std::collections::{BTreeMap, BTreeSet};

use super::Planner;
use crate::{
    observed::{Group, Node},
    resources::Resources,
};

impl Planner {
    /// Takes in nodes that changed, by name; absent ones are gone.
    pub fn set_nodes(&mut self, changes: impl IntoIterator<Item = (String, Option<Node>)>) {
        let mut new: Vec<Node> = Vec::new();
        let mut gone: BTreeSet<String> = BTreeSet::new();
        for (name, node) in changes {
            match (self.find_node(&name), node) {
                (Ok(at), Some(node)) => self.replace_node(at, node),
                (Ok(_), None) => drop(gone.insert(name)),
                (Err(_), Some(node)) => new.push(node),
                (Err(_), None) => {}
            }
        }
        if new.is_empty() && gone.is_empty() {
            return;
        }
        let nodes = &mut self.observed.nodes;
        nodes.retain(|node| !gone.contains(&node.name));
        nodes.extend(new);
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        nodes.dedup_by(|later, earlier| later.name == earlier.name);
        self.all = true;
        self.room_changed = true;
    }

    /// What is used on a node now. A node that is not known brings its own when it comes.
    pub fn set_used(&mut self, name: &str, used: BTreeMap<i32, Resources>) {
        if let Ok(at) = self.find_node(name) {
            let node = &mut self.observed.nodes[at];
            if node.used != used {
                node.used = used;
                self.room_changed = true;
            }
        }
    }

    fn replace_node(&mut self, at: usize, node: Node) {
        let known = &mut self.observed.nodes[at];
        // How large devices are is known from labels.
        self.all |= known.labels != node.labels || known.allocatable != node.allocatable;
        if (known.ready, known.unschedulable, &known.taints) != (node.ready, node.unschedulable, &node.taints)
        {
            self.nodes_changed.insert(node.name.clone());
            self.room_changed = true;
        }
        self.room_changed |= known.used != node.used;
        *known = node;
    }

    fn find_node(&self, name: &str) -> Result<usize, usize> {
        let nodes = &self.observed.nodes;
        nodes.binary_search_by(|node| node.name.as_str().cmp(name))
    }
}

/// Whether a member of the group, or a successor, is on one of these nodes.
pub(super) fn has_member_on(group: &Group, nodes: &BTreeSet<String>) -> bool {
    // The scheduler may have chosen where a pod is.
    let mut bound = group.pods.iter().filter_map(|pod| pod.node.as_ref());
    if bound.any(|node| nodes.contains(node)) {
        return true;
    }
    let mut members = group.object.spec.members.iter();
    members.any(|member| {
        let successor = member.successor.as_ref().map(|s| &s.node);
        let mut both = member.node.iter().chain(successor);
        both.any(|node| nodes.contains(node))
    })
}
