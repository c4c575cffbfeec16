//! Who belongs to a group.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::GroupKey;

/// One membership of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// metadata.uid of the group.
    pub group_uid: String,
    /// Only grows.
    pub generation: u64,
    /// Ranks that the group does without, in the order in which it lost them.
    pub lost: Vec<u32>,
    /// Where each of the others listens, by rank.
    pub addresses: BTreeMap<u32, SocketAddr>,
    /// What the ranks of this generation know and nobody else does.
    pub key: GroupKey,
}

impl Membership {
    /// The addresses of a group that has lost nobody, in rank order.
    #[must_use]
    pub fn in_rank_order(addresses: impl IntoIterator<Item = SocketAddr>) -> BTreeMap<u32, SocketAddr> {
        (0..).zip(addresses).collect()
    }
}
