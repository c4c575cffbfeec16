//! Who belongs to a group.

use std::net::SocketAddr;

use super::GroupKey;

/// One membership of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// metadata.uid of the group.
    pub group_uid: String,
    /// Only grows.
    pub generation: u64,
    /// Where each rank listens, in rank order.
    pub members: Vec<SocketAddr>,
    /// What the ranks of this generation know and nobody else does.
    pub key: GroupKey,
}
