//! One request as the scheduler sees it.

use std::collections::VecDeque;

use super::prefix::PrefixHash;
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
    /// Tokens behind `tokens` that steps in flight are to sample.
    pub(super) pending: u32,
    /// Positions that are planned in some step, computed or not.
    pub(super) planned: u32,
    /// Where the rows of it that are in flight end, in order of their steps.
    pub(super) rows_in_flight: VecDeque<u32>,
    /// What stands before its first block; none when it shares blocks with nobody.
    root: Option<PrefixHash>,
    /// Names of its full blocks, as far as they were needed.
    names: Vec<PrefixHash>,
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
    /// How many of the blocks, from the first on, can be found by their names as far as they can at all.
    pub(super) named: u32,
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
            pending: 0,
            planned: 0,
            rows_in_flight: VecDeque::new(),
            root: None,
            names: Vec::new(),
            last_batch: 0,
            placed: None,
        }
    }

    /// The same, and it shares blocks with all sequences of the same root.
    #[must_use]
    pub fn with_root(mut self, root: Option<PrefixHash>) -> Self {
        self.root = root;
        self
    }

    /// Whether it shares blocks with others.
    #[must_use]
    pub fn shares(&self) -> bool {
        self.root.is_some()
    }

    /// The names of the full blocks of all known tokens; none when it shares nothing. The size of a block does not change
    /// while a sequence lives.
    pub(super) fn names(&mut self, block_size: u32) -> &[PrefixHash] {
        if let Some(root) = self.root {
            let blocks = self.tokens.chunks_exact(block_size.max(1) as usize);
            for tokens in blocks.skip(self.names.len()) {
                let before = self.names.last().unwrap_or(&root);
                self.names.push(before.followed_by(tokens));
            }
        }
        &self.names
    }

    /// What it holds and the names that are known, while it holds something.
    pub(super) fn placed_and_names(&mut self) -> Option<(&mut Placed, &[PrefixHash])> {
        Some((self.placed.as_mut()?, &self.names))
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
        self.rows_in_flight.clear();
        self.placed = None;
    }
}
