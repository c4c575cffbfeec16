//! What the engine hands a backend to build its communicators on.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Members;
use crate::step::Era;

/// Why peers could not be talked to. Every error ends the era on every rank.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum MeshError {
    /// The connection to a peer broke.
    #[error("lost rank {rank}: {reason}")]
    PeerLost {
        /// The peer.
        rank: u32,
        /// What the transport said.
        reason: String,
    },
    /// A peer did not answer within the deadline.
    #[error("rank {rank} did not answer within {millis} ms")]
    Deadline {
        /// The peer.
        rank: u32,
        /// The deadline in milliseconds.
        millis: u64,
    },
    /// A peer sent something that does not belong here: another era, step, size or plain garbage.
    #[error("rank {rank} sent an invalid frame: {reason}")]
    Protocol {
        /// The peer.
        rank: u32,
        /// What is wrong with it.
        reason: String,
    },
    /// A frame came on the link to a peer that the peer did not send next.
    #[error(
        "a frame on the link to rank {rank} is not what that rank sent: something between the two changed, repeated or \
         forged it"
    )]
    Forged {
        /// The peer at the other end of the link.
        rank: u32,
    },
    /// A file descriptor can only be passed inside a pod, and that peer lives in another one.
    #[error("rank {rank} is in another pod: no file can be passed there")]
    NotLocal {
        /// The peer.
        rank: u32,
    },
    /// The watchdog or a shutdown ended the wait.
    #[error("aborted")]
    Aborted,
}

impl MeshError {
    /// The rank that it is about; none for an end from outside, which says nothing about anybody.
    #[must_use]
    pub fn rank(&self) -> Option<u32> {
        match self {
            Self::PeerLost { rank, .. }
            | Self::Deadline { rank, .. }
            | Self::Protocol { rank, .. }
            | Self::Forged { rank }
            | Self::NotLocal { rank } => Some(*rank),
            Self::Aborted => None,
        }
    }
}

/// Ends every wait of an era from another thread.
pub trait Abort: Send + Sync {
    /// Make the present and every later wait return [`MeshError::Aborted`].
    fn abort(&self);
}

/// What a frame belongs to. Both ends must say the same, so that a rank that diverged is found instead of believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Label {
    /// The step; 0 while forming.
    pub step: u64,
    /// The backend's own number for the kind of call.
    pub tag: u16,
}

/// One peer's part of an exchange: what goes there and what is to come from there.
#[derive(Debug)]
pub struct Transfer<'a> {
    /// The peer's rank.
    pub peer: u32,
    /// What to send; none: no frame.
    pub out: Option<&'a [u8]>,
    /// Where the peer's frame goes, which must have this length; none: no frame is expected.
    pub into: Option<&'a mut [u8]>,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Until when.
    pub until: Instant,
    /// Busy waiting before sleeping; zero where there are fewer cores than threads that wait.
    pub spin: Duration,
}

/// The links between this rank and its peers in one era. Calls are made in the same order on all ranks.
pub trait Mesh: Send {
    /// Who belongs to the group, and how they share the model.
    fn members(&self) -> &Members;

    /// This rank.
    fn rank(&self) -> u32;

    /// The era of all frames.
    fn era(&self) -> Era;

    /// Whether the peer runs in this pod, so that files can be passed.
    fn is_local(&self, peer: u32) -> bool;

    /// Carry out all transfers at once; `frames` in ascending order of peers, at most one for each.
    ///
    /// # Errors
    /// [`MeshError`]. The buffers are undefined then, and every later call fails in the same way.
    fn exchange(&mut self, label: Label, frames: &mut [Transfer<'_>], wait: Wait) -> Result<(), MeshError>;

    /// Hear, without waiting, what peers say outside exchanges: that they have left the era, and whom they blame. For who
    /// waits for peers in another way than by an exchange.
    ///
    /// # Errors
    /// [`MeshError`], also when a peer of `owed` is gone, from which something is to come. The mesh can be used afterwards.
    fn listen(&mut self, owed: &[u32]) -> Result<(), MeshError>;

    /// Whether the peer's next frame has begun to come, without waiting: an exchange that takes it will not wait for long. True
    /// where a mesh cannot tell.
    ///
    /// # Errors
    /// [`MeshError`], when no frame will come from there.
    fn has_begun(&mut self, _peer: u32) -> Result<bool, MeshError> {
        Ok(true)
    }

    /// Leave the era for `error`, which came about outside an exchange, and tell the peers.
    fn fail(&mut self, step: u64, error: &MeshError);

    /// Pass file descriptors to a rank of this pod, which calls [`Self::receive_files`] for as many.
    ///
    /// # Errors
    /// [`MeshError::NotLocal`], and the others.
    fn send_files(&mut self, peer: u32, files: &[BorrowedFd<'_>], until: Instant) -> Result<(), MeshError>;

    /// Receive `count` file descriptors that a rank of this pod passes.
    ///
    /// # Errors
    /// [`MeshError::NotLocal`], and the others.
    fn receive_files(&mut self, peer: u32, count: usize, until: Instant) -> Result<Vec<OwnedFd>, MeshError>;

    /// A handle for the watchdog.
    fn abort_handle(&self) -> Arc<dyn Abort>;
}
