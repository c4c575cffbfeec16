//! The contract of communication inside a step.

use std::ops::Range;
use std::sync::Arc;

use crate::step::Era;

/// Where the leaves of a reduction live: `owners[r]` are the leaves of rank `r`; together they cover `0 .. leaves`
/// in rank order without gaps. Leaves belong to the model, so the sum does not depend on who owns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafLayout {
    /// Leaves of each rank.
    pub owners: Vec<Range<u32>>,
}

/// Why a collective failed. Every error ends the era on every rank.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
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
    /// The watchdog or a shutdown ended the wait.
    #[error("aborted")]
    Aborted,
}

/// Ends every wait of a collective from another thread.
pub trait Abort: Send + Sync {
    /// Make the present and every later wait return [`CollectiveError::Aborted`].
    fn abort(&self);
}

/// Communication among the ranks of one era. Calls are made in the same order on all ranks; each carries an
/// implicit sequence number, so that a rank that diverges is detected instead of being summed.
pub trait Collective: Send {
    /// A buffer of the backend: `[f32]` on the host, device memory on an accelerator.
    type Buffer: ?Sized;

    /// Number of ranks.
    fn world(&self) -> u32;

    /// This rank.
    fn rank(&self) -> u32;

    /// The era all calls belong to.
    fn era(&self) -> Era;

    /// Start of step `step`; frames of other steps are refused from here on.
    fn begin_step(&mut self, step: u64);

    /// Sum over leaves in the model's fixed tree (see [`crate::leaf_tree`]).
    ///
    /// `roots` holds, for each maximal complete subtree this rank owns and in ascending order, a `[rows, width]` f32
    /// matrix; `out` `[rows, width]` receives the root of the whole tree, the same bits on every rank.
    ///
    /// # Errors
    /// [`CollectiveError`]; `out` is then undefined.
    fn reduce_tree(
        &mut self,
        layout: &LeafLayout,
        rows: usize,
        width: usize,
        roots: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), CollectiveError>;

    /// Concatenate the ranks' buffers in rank order; `counts[r]` is the number of f32 of rank `r`.
    ///
    /// # Errors
    /// [`CollectiveError`]; `out` is then undefined.
    fn all_gather(
        &mut self,
        counts: &[usize],
        mine: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), CollectiveError>;

    /// Send to one rank (pipeline stages).
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn send(&mut self, to: u32, data: &Self::Buffer) -> Result<(), CollectiveError>;

    /// Receive from one rank (pipeline stages).
    ///
    /// # Errors
    /// [`CollectiveError`].
    fn recv(&mut self, from: u32, data: &mut Self::Buffer) -> Result<(), CollectiveError>;

    /// A handle for the watchdog.
    fn abort_handle(&self) -> Arc<dyn Abort>;
}
