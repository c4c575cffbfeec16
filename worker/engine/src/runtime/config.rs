//! What a rank is told at its start.

use std::path::PathBuf;
use std::time::Duration;

use llamero_settings::memory;

use super::executor::Patience;
use crate::backend::{BackendError, MemoryPlan};
use crate::form::{FormLimits, FormSpec, KvDtype};
use crate::mesh::{Members, Membership};
use crate::schedule::{Limits, PrefixHash, Speculation};
use crate::step::Era;

/// Tokens that may wait before the group has formed, and at most.
const MAX_QUEUED_TOKENS: u64 = 4 << 20;

/// Settings of one rank. All ranks of a group are given the same limits; the leader's count.
#[derive(Debug, Clone)]
pub struct RankConfig {
    /// This rank.
    pub rank: u32,
    /// Who belongs to the group as the rank starts, and how they share the model.
    pub members: Members,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens in one step.
    pub max_batched_tokens: u32,
    /// Longest sequence in tokens, prompt and output together.
    pub max_context: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Bytes for KV blocks; must hold one sequence of full length.
    pub kv_bytes: u64,
    /// Bytes that this rank may use in all; none: no limit is known.
    pub memory_limit: Option<u64>,
    /// Bytes that this rank's process takes beside weights, KV blocks and workspace.
    pub process_bytes: u64,
    /// Type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Adapters that may be loaded at once.
    pub max_adapters: u32,
    /// The largest rank of an adapter.
    pub max_adapter_rank: u32,
    /// The folder below which adapters lie, on every rank.
    pub adapter_folder: PathBuf,
    /// Adapters that the leader has from its start, by name and by path below the folder.
    pub adapters: Vec<(String, String)>,
    /// Steps that are submitted and not released; see [`Topology::steps_in_flight`].
    ///
    /// [`Topology::steps_in_flight`]: crate::mesh::Topology::steps_in_flight
    pub steps_in_flight: u32,
    /// Whether requests share the KV blocks of a common beginning.
    pub prefix_cache: bool,
    /// How sequences are drafted; none: they are not.
    pub speculation: Option<Speculation>,
    /// A step should take at most this long; prompts are cut accordingly.
    pub step_target: Duration,
    /// Requests that may wait to be computed.
    pub max_queued_requests: u32,
    /// Tokens of requests that may wait; none: eight times what the KV cache holds, at most 4 Mi.
    pub max_queued_tokens: Option<u64>,
    /// A peer of which nothing moves for this long has stalled.
    pub stall_timeout: Duration,
    /// Forming (KV allocation, warm-up) may stand still for this long.
    pub form_timeout: Duration,
    /// An idle group steps this often.
    pub heartbeat: Duration,
    /// One attempt to connect may take this long.
    pub dial_timeout: Duration,
    /// Shortest and longest pause between attempts to connect.
    pub backoff: (Duration, Duration),
    /// Numerics class; ranks of one class compute the same bits.
    pub numerics: String,
    /// Content identity of the checkpoint.
    pub content: String,
}

impl RankConfig {
    /// Usual time-outs and limits for a model.
    #[must_use]
    pub fn new(
        rank: u32,
        members: Members,
        max_context: u32,
        numerics: impl Into<String>,
        content: impl Into<String>,
    ) -> Self {
        Self {
            rank,
            steps_in_flight: members.topology().steps_in_flight(),
            members,
            max_sequences: 64,
            max_batched_tokens: 512,
            max_context,
            block_size: 16,
            kv_bytes: 1 << 30,
            memory_limit: None,
            process_bytes: memory::PROCESS,
            kv_dtype: KvDtype::default(),
            max_adapters: 0,
            max_adapter_rank: 0,
            adapter_folder: PathBuf::new(),
            adapters: Vec::new(),
            prefix_cache: true,
            speculation: None,
            step_target: Duration::from_secs(1),
            max_queued_requests: 1024,
            max_queued_tokens: None,
            stall_timeout: Duration::from_secs(30),
            form_timeout: Duration::from_secs(120),
            heartbeat: Duration::from_millis(500),
            dial_timeout: Duration::from_secs(1),
            backoff: (Duration::from_millis(20), Duration::from_secs(1)),
            numerics: numerics.into(),
            content: content.into(),
        }
    }

    /// The limits that its group forms with when it leads.
    #[must_use]
    pub fn form_limits(&self) -> FormLimits {
        FormLimits {
            max_sequences: self.max_sequences,
            max_batched_tokens: self.max_batched_tokens,
            max_context: self.max_context,
            block_size: self.block_size,
            steps_in_flight: self.steps_in_flight,
            kv_dtype: self.kv_dtype,
            max_adapters: self.max_adapters,
            max_adapter_rank: self.max_adapter_rank,
        }
    }

    /// Who belongs to the group by a membership that was taken.
    pub(super) fn members_of(&self, membership: &Membership) -> Result<Members, BackendError> {
        Members::new(self.members.topology(), &membership.lost)
            .map_err(|error| BackendError::Bug(format!("members were taken that cannot be: {error}")))
    }

    pub(super) fn form_spec(&self, era: Era, limits: FormLimits) -> FormSpec {
        FormSpec {
            era,
            limits,
            kv_bytes: self.kv_bytes,
        }
    }

    /// Limits with `blocks` KV blocks.
    pub(super) fn limits(&self, blocks: u32) -> Limits {
        Limits {
            max_sequences: self.max_sequences,
            max_batched_tokens: self.max_batched_tokens,
            max_context: self.max_context,
            block_size: self.block_size,
            blocks,
        }
    }

    /// What stands before the names of all KV blocks; none when they have no names.
    pub(super) fn prefix(&self) -> Option<PrefixHash> {
        self.prefix_cache
            .then(|| PrefixHash::of_group(&self.content, &self.numerics, self.block_size))
    }

    /// KV blocks of this rank, which the group has at most.
    pub(super) fn expected_blocks(&self, memory: &MemoryPlan) -> u32 {
        memory.blocks(self.kv_bytes)
    }

    /// Tokens that may wait when the group has so many KV blocks.
    pub(super) fn queued_tokens(&self, blocks: u32) -> u64 {
        let held = u64::from(blocks) * u64::from(self.block_size);
        self.max_queued_tokens
            .unwrap_or_else(|| held.saturating_mul(8).min(MAX_QUEUED_TOKENS))
    }

    /// A member that computes says at least this often that it moves.
    pub(super) fn progress_pause(&self) -> Duration {
        self.stall_timeout / 4
    }

    pub(super) fn patience(&self) -> Patience {
        Patience {
            stall: self.stall_timeout,
            form: self.form_timeout,
            progress: self.progress_pause(),
        }
    }
}
