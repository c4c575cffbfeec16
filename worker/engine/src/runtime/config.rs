//! What a rank is told at its start.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::backend::Backend;
use crate::mesh::TcpCollective;
use crate::mesh::control_link::Setup;
use crate::mesh::tcp_collective::Waits;
use crate::schedule::Limits;
use crate::step::Era;
use crate::{FormSpec, backend};

/// Settings of one rank. All ranks of a group are given the same limits; the leader's count.
#[derive(Debug, Clone)]
pub struct RankConfig {
    /// This rank.
    pub rank: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens in one step.
    pub max_batched_tokens: u32,
    /// Longest sequence in tokens, prompt and output together.
    pub max_context: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Bytes for KV blocks.
    pub kv_bytes: u64,
    /// A peer that does not answer for this long has stalled.
    pub stall_timeout: Duration,
    /// Forming (KV allocation, warm-up) may take a rank this long.
    pub form_timeout: Duration,
    /// An idle group steps this often.
    pub heartbeat: Duration,
    /// One attempt to connect may take this long.
    pub dial_timeout: Duration,
    /// Shortest and longest pause between attempts to connect.
    pub backoff: (Duration, Duration),
    /// Busy waiting in collectives before sleeping; zero when cores are oversubscribed.
    pub spin: Duration,
    /// Kernel family; ranks of one class compute the same bits.
    pub numerics: String,
    /// Fingerprint of the model.
    pub model: String,
    /// Bytes that this process has read from the checkpoint; whoever reads adds to it.
    pub read_bytes: Arc<AtomicU64>,
}

impl RankConfig {
    /// Usual time-outs and limits for a model.
    #[must_use]
    pub fn new(rank: u32, max_context: u32, numerics: impl Into<String>, model: impl Into<String>) -> Self {
        let stall_timeout = Duration::from_secs(30);
        Self {
            rank,
            max_sequences: 64,
            max_batched_tokens: 512,
            max_context,
            block_size: 16,
            kv_bytes: 1 << 30,
            stall_timeout,
            form_timeout: Duration::from_secs(120),
            heartbeat: Duration::from_millis(500),
            dial_timeout: Duration::from_secs(1),
            backoff: (Duration::from_millis(20), Duration::from_secs(1)),
            spin: Waits::new(stall_timeout).spin,
            numerics: numerics.into(),
            model: model.into(),
            read_bytes: Arc::default(),
        }
    }

    pub(super) fn setup(&self) -> Setup {
        Setup {
            max_sequences: self.max_sequences,
            max_batched_tokens: self.max_batched_tokens,
            max_context: self.max_context,
            block_size: self.block_size,
        }
    }

    pub(super) fn form_spec(&self, era: Era, setup: Setup) -> FormSpec {
        backend::FormSpec {
            era,
            max_sequences: setup.max_sequences,
            max_batched_tokens: setup.max_batched_tokens,
            max_context: setup.max_context,
            block_size: setup.block_size,
            kv_bytes: self.kv_bytes,
        }
    }

    pub(super) fn waits(&self) -> Waits {
        Waits {
            deadline: self.stall_timeout,
            spin: self.spin,
        }
    }

    /// Limits with `blocks` KV blocks; before these are known, as many as the longest sequence needs.
    pub(super) fn limits(&self, blocks: Option<u32>) -> Limits {
        Limits {
            max_sequences: self.max_sequences,
            max_batched_tokens: self.max_batched_tokens,
            max_context: self.max_context,
            block_size: self.block_size,
            blocks: blocks.unwrap_or_else(|| self.max_context.div_ceil(self.block_size)),
        }
    }
}

/// Makes the backend's kind of collective from links over TCP.
pub type Wrap<B> = Box<dyn Fn(TcpCollective) -> Box<<B as Backend>::Collective> + Send>;
