//! A member that was lost while requests were computed, until it is known whether it is their fault.

use std::fmt;
use std::net::SocketAddr;

use crate::mesh::{Membership, MeshError};

/// The end of an era by a lost member.
pub(in crate::runtime) struct Loss {
    error: MeshError,
    rank: u32,
    generation: u64,
    address: Option<SocketAddr>,
}

impl Loss {
    /// What `error` says about the members of the era that it ended; none where it says nothing about them.
    pub(super) fn of(error: MeshError, membership: &Membership) -> Option<Self> {
        let rank = error.rank()?;
        Some(Self {
            rank,
            generation: membership.generation,
            address: address(membership, rank),
            error,
        })
    }

    /// Whether a request may have caused it, now that the group has formed again by `membership`. A member that hears of a
    /// later generation before this rank does leaves, which looks like a loss: it is the same member in that generation.
    pub(super) fn may_be_caused(&self, membership: &Membership) -> bool {
        membership.generation == self.generation || address(membership, self.rank) != self.address
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

fn address(membership: &Membership, rank: u32) -> Option<SocketAddr> {
    membership.addresses.get(&rank).copied()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::mesh::GroupKey;

    #[test]
    fn a_member_that_only_heard_of_the_next_generation_was_not_lost() {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let membership = |generation, ports: [u16; 2]| Membership {
            group_uid: "g".into(),
            generation,
            lost: Vec::new(),
            addresses: Membership::in_rank_order(ports.map(at)),
            key: GroupKey::from([1; 32]),
        };
        let first = membership(1, [10, 11]);
        let (rank, reason) = (1, String::new());
        let loss = Loss::of(MeshError::PeerLost { rank, reason }, &first).unwrap();
        assert!(loss.may_be_caused(&first), "it came back by itself");
        assert!(loss.may_be_caused(&membership(2, [10, 12])), "it was replaced");
        assert!(
            !loss.may_be_caused(&membership(2, [12, 11])),
            "another one was replaced"
        );
        assert!(Loss::of(MeshError::Aborted, &first).is_none());
    }
}
