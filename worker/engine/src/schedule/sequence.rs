//! One request as the scheduler sees it.

use crate::step::SampleKey;

/// Number of a sequence; later requests have higher numbers, which is what "first come" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A token history and how far its KV is computed. The history outlives its KV: after a preemption or the loss of a
/// rank the whole of it is computed again.
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
    /// Positions whose KV is computed.
    pub(super) computed: u32,
    /// Its slot and KV blocks while it runs.
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
            computed: 0,
            placed: None,
        }
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is no token at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens whose KV is not computed yet; 1 for a sequence that decodes.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.len() - self.computed.min(self.len())
    }
}
