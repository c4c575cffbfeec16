//! The contract between the engine and one rank's compute.

use crate::collective::{Collective, CollectiveError};
use crate::step::{Era, Late, LogitShard, Plan, StepOutput};

/// Number of a step that was submitted and not yet released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a group agrees on when it forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormSpec {
    /// Membership and connection.
    pub era: Era,
    /// Largest number of sequences at once (slots).
    pub max_sequences: u32,
    /// Largest number of tokens in one step.
    pub max_batched_tokens: u32,
    /// Longest sequence in tokens, prompt and output together.
    pub max_context: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Bytes this rank may use for KV blocks.
    pub kv_bytes: u64,
}

/// What the rank can hold after forming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCapacity {
    /// KV blocks of `FormSpec::block_size` tokens. The leader uses the smallest number of any rank.
    pub blocks: u32,
}

/// Bytes read so far while loading, of this rank's shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes done.
    pub loaded: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Why a rank could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The checkpoint cannot be used; the message says what to do.
    #[error(transparent)]
    Checkpoint(#[from] llamero_checkpoint::Error),
    /// A peer was lost, stalled or spoke garbage: the group must form again.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The plan breaks the contract (unknown slot, position past the context, state hash differs).
    #[error("the plan of step {step} cannot be executed: {reason}")]
    Plan {
        /// Step of the plan.
        step: u64,
        /// What is wrong.
        reason: String,
    },
    /// Not enough memory for what `FormSpec` asks.
    #[error("{0}")]
    Memory(String),
    /// `load` or `form` has not been called.
    #[error("the backend is not ready: {0}")]
    NotReady(&'static str),
}

/// One rank on one thread. Weights outlive epochs: `load` once, then `form` … `dissolve` as often as peers come and go.
///
/// Calls per step: `submit`, `bind`, `poll` until it gives the output, optionally `logits`, `release`.
pub trait Backend: Send {
    /// The collective this backend computes with; it works on the backend's own buffers.
    type Collective: Collective + ?Sized;

    /// Read this rank's shard. Returns at once when the weights are there already.
    ///
    /// # Errors
    /// [`BackendError::Checkpoint`] or [`BackendError::Memory`].
    fn load(&mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), BackendError>;

    /// Allocate KV blocks and workspace for one era, take the collective and warm up (no communication).
    ///
    /// # Errors
    /// [`BackendError::Memory`] when not even one full-length sequence fits; [`BackendError::NotReady`] before `load`.
    fn form(
        &mut self,
        spec: &FormSpec,
        collective: Box<Self::Collective>,
    ) -> Result<KvCapacity, BackendError>;

    /// Enqueue a step. Applies block deltas; does not wait.
    ///
    /// # Errors
    /// [`BackendError::Plan`] when the plan is not executable, with nothing changed.
    fn submit(&mut self, plan: &Plan) -> Result<Ticket, BackendError>;

    /// Give a submitted step its late values; must precede the first `poll` of that step.
    ///
    /// # Errors
    /// [`BackendError::Plan`] when an index is out of range.
    fn bind(&mut self, ticket: Ticket, late: &Late) -> Result<(), BackendError>;

    /// The step's output, or `None` while an accelerator is still at it. The CPU backend computes inside this call.
    ///
    /// # Errors
    /// [`BackendError::Collective`] when a peer is lost; the era is over then.
    fn poll(&mut self, ticket: Ticket) -> Result<Option<StepOutput>, BackendError>;

    /// This rank's slice of the logits of a sampled row, for the rare case where candidates do not suffice.
    ///
    /// # Errors
    /// [`BackendError::Plan`] when the row was not sampled or the ticket is released.
    fn logits(&mut self, ticket: Ticket, row: u32) -> Result<LogitShard, BackendError>;

    /// Drop what is kept for a step.
    fn release(&mut self, ticket: Ticket);

    /// Leave the era: drop KV, workspace and collective, keep the weights.
    fn dissolve(&mut self);
}
