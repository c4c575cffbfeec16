//! Placement by an operator that may read no nodes: members go wherever the scheduler puts them, by the rules that their pods carry. What stays is that
//! all of them must be scheduled by the deadline, or none holds anything.

use super::{Assignment, Ledger, NoRoom, PlacementRequest, Placer};

/// Stands in a specification where a node's name would: any node. No node can have this name.
pub const ANY_NODE: &str = "*";

/// Gives every member [`ANY_NODE`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Unpinned;

impl Placer for Unpinned {
    fn place(&self, _: &Ledger<'_>, request: &PlacementRequest<'_>) -> Result<Vec<Assignment>, NoRoom> {
        let any = |index: &i32| Assignment {
            index: *index,
            node: ANY_NODE.to_owned(),
        };
        Ok(request.indices.iter().map(any).collect())
    }
}

/// A node for people.
#[must_use]
pub fn shown(node: &str) -> &str {
    if node == ANY_NODE { "any node" } else { node }
}
