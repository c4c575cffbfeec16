//! One request as the scheduler sees it.

use crate::step::SampleKey;

/// Number of a sequence; later requests have higher numbers, which is what "first come" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A token history and how far it is planned. The history outlives its KV: after a preemption or the loss of a rank the
/// whole of it is computed again.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Who it is.
    pub id: SequenceId,
    /// Prompt and everything generated so far.
    pub tokens: Vec<u32>,
    /// Most tokens it may come to hold.
    pub longest: u32,
    /// How its last position is sampled.
    pub sample: SampleKey,
    /// Whether it may be what brings members down: no two such sequences run at once, so that it is clear which one does.
    pub(super) suspected: bool,
    /// Tokens behind `tokens` that steps in flight are to sample.
    pub(super) pending: u32,
    /// Positions that are planned in some step, computed or not.
    pub(super) planned: u32,
    /// Rows of it that are in flight.
    pub(super) rows_in_flight: u32,
    /// The batch that planned it last.
    pub(super) last_batch: u64,
    /// Its slot and KV blocks while it has them.
    pub(super) placed: Option<Placed>,
}

/// What a running sequence holds.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) slot: u32,
    pub(super) blocks: Vec<u32>,
}

impl Sequence {
    /// A sequence that waits with `tokens` as its history.
    #[must_use]
    pub fn new(id: SequenceId, tokens: Vec<u32>, longest: u32, sample: SampleKey) -> Self {
        Self {
            id,
            tokens,
            longest,
            sample,
            suspected: false,
            pending: 0,
            planned: 0,
            rows_in_flight: 0,
            last_batch: 0,
            placed: None,
        }
    }

    /// Number of known tokens.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is no token at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of tokens, those included that steps in flight are to sample.
    #[must_use]
    pub fn expected(&self) -> u32 {
        self.len().saturating_add(self.pending)
    }

    /// Tokens that no step has yet; 1 for a sequence that decodes, 0 for one that ends by its length.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        if self.expected() >= self.longest {
            return 0;
        }
        self.expected().saturating_sub(self.planned)
    }

    pub(super) fn decodes(&self) -> bool {
        self.remaining() == 1 && self.planned > 0
    }

    /// Blocks for all tokens, those included that steps in flight are to sample.
    pub(super) fn blocks_needed(&self, block_size: u32) -> u32 {
        self.expected().div_ceil(block_size)
    }

    /// Forget everything but the history.
    pub(super) fn reset(&mut self) {
        self.pending = 0;
        self.planned = 0;
        self.rows_in_flight = 0;
        self.placed = None;
    }
}
