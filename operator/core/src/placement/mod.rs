//! Which nodes have room for a whole group.
//!
//! One serial placer keeps a ledger of the cluster: free = allocatable − bound (terminating ones too) − nominated − own reservations. The
//! scheduler stays kube-scheduler; a chosen node is reserved in `LlamaGroup.spec` before any pod exists, and pods are pinned to it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`ledger`] | what is free on every node |
//! | [`eligible`] | taints, selectors and affinity |
//! | [`native`] | whole groups on the stock scheduler |
//! | [`unpinned`] | no nodes are known: the scheduler alone chooses |

pub mod eligible;
pub mod ledger;
pub mod native;
pub mod unpinned;

use std::collections::BTreeSet;

use llamero_api::{deployment::OnePodPerNode, group::GroupTemplate};

use crate::{observed::Priority, resources::Resources, volumes::VolumeNeeds};

pub use ledger::{Ledger, Reservations};
pub use native::Native;
pub use unpinned::{ANY_NODE, Unpinned};

/// Members of one group that need nodes.
#[derive(Clone, Debug)]
pub struct PlacementRequest<'a> {
    /// What their pods are made from.
    pub template: &'a GroupTemplate,
    /// What each asks of its node.
    pub amounts: Resources,
    /// Priority of the pods: lower ones count as room, if these may take their place.
    pub priority: Priority,
    /// The members.
    pub indices: Vec<i32>,
    /// Nodes of the group's other members, each as often as it has one.
    pub occupied: Vec<String>,
    /// Nodes where members of the group failed lately: taken only when nothing else fits.
    pub avoid: BTreeSet<String>,
    /// The nodes are for successors of these members, which still serve.
    pub successors: bool,
    /// What their volumes ask of nodes.
    pub volumes: VolumeNeeds,
}

impl PlacementRequest<'_> {
    /// Whether pods of the group may be on one node.
    #[must_use]
    pub fn may_share(&self) -> bool {
        self.template.one_pod_per_node == Some(OnePodPerNode::Preferred)
    }

    /// Why no nodes, however many, are any help.
    #[must_use]
    pub fn is_hopeless(&self) -> Option<String> {
        let pods = self.indices.len().saturating_add(self.occupied.len());
        self.volumes.forbid_spreading(pods).filter(|_| !self.may_share())
    }

    /// Whether the other one finds room exactly where this one does.
    #[must_use]
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.indices.len() == other.indices.len()
            && self.priority == other.priority
            && self.amounts == other.amounts
            && self.occupied == other.occupied
            && self.avoid == other.avoid
            && self.volumes == other.volumes
            && self.template == other.template
    }
}

/// A member and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The member.
    pub index: i32,
    /// Name of its node.
    pub node: String,
}

/// Why an [`PlacementRequest`] cannot be met, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoRoom(pub String);

/// Something that chooses nodes for whole groups.
pub trait Placer {
    /// Nodes for all members of the request, or none at all. Does not reserve them.
    ///
    /// # Errors
    /// When not all members fit, with what is missing.
    fn place(&self, ledger: &Ledger<'_>, request: &PlacementRequest<'_>) -> Result<Vec<Assignment>, NoRoom>;
}
