//! One request as the scheduler sees it.

use std::collections::VecDeque;

use super::drafts::Drafter;
use super::prefix::PrefixHash;
use super::scheduler::MOST_OVERTAKEN;
use crate::pooling::Pooling;
use crate::step::{RowOutput, SampleKey};

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
    /// What `longest` would be if the group held any number; none where it is what the client asked for.
    open_end: Option<u32>,
    /// Whether it may be what brings members down: no two such sequences run at once, so that it is clear which one does.
    pub(super) suspected: bool,
    /// Lower ones are admitted first.
    pub(super) priority: i32,
    /// How many younger sequences were admitted before it.
    pub(super) overtaken: u32,
    /// Whether it was admitted before.
    pub(super) begun: bool,
    /// Which of its first positions are to be scored.
    pub(super) scores: Option<PromptScores>,
    /// The number of its adapter.
    pub(super) adapter: Option<u32>,
    /// Set when its hidden states are wanted, and no token.
    pub(super) pooling: Option<Pooling>,
    /// Tokens behind `tokens` that steps in flight are to sample.
    pub(super) pending: u32,
    /// Positions that are planned in some step, computed or not.
    pub(super) planned: u32,
    /// Drafts among its planned positions: the end of its only row in flight.
    pub(super) drafts: u32,
    /// Whether it gets no row before all its tokens are known.
    pub(super) awaits_tokens: bool,
    /// Its guesses, once one was asked for.
    pub(super) drafter: Option<Box<Drafter>>,
    /// Where the rows of it that are in flight end, in order of their steps.
    pub(super) rows_in_flight: VecDeque<u32>,
    /// What stands before its first block; none when it shares blocks with nobody.
    root: Option<PrefixHash>,
    /// Names of its full blocks, as far as they were needed.
    names: Vec<PrefixHash>,
    /// The batch that planned it last.
    pub(super) last_batch: u64,
    /// Where its row of that batch begins.
    pub(super) last_start: u32,
    /// Its slot and KV blocks while it has them.
    pub(super) placed: Option<Placed>,
}

/// The positions of a prompt that are scored by the token behind each.
#[derive(Debug, Clone, Copy)]
pub(super) struct PromptScores {
    /// How many of the likeliest tokens are wanted beside each.
    top: u16,
    /// Positions before this one are scored; behind it nothing is.
    until: u32,
    /// Positions before this one have been.
    done: u32,
}

/// What a running sequence holds.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) slot: u32,
    pub(super) blocks: Vec<u32>,
    /// How many of the blocks, from the first on, can be found by their names as far as they can at all.
    pub(super) named: u32,
    /// How many of its tokens were known when it was admitted.
    pub(super) known: u32,
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
            open_end: None,
            suspected: false,
            priority: 0,
            overtaken: 0,
            begun: false,
            scores: None,
            adapter: None,
            pooling: None,
            pending: 0,
            planned: 0,
            drafts: 0,
            awaits_tokens: false,
            drafter: None,
            rows_in_flight: VecDeque::new(),
            root: None,
            names: Vec::new(),
            last_batch: 0,
            last_start: 0,
            placed: None,
        }
    }

    /// The same, and it shares blocks with all sequences of the same root.
    #[must_use]
    pub fn with_root(mut self, root: Option<PrefixHash>) -> Self {
        self.root = root;
        self
    }

    /// The same, and where the group holds less than `longest`, that is its end.
    #[must_use]
    pub fn with_open_end(mut self, is_open: bool) -> Self {
        self.open_end = is_open.then_some(self.longest);
        self
    }

    /// The group holds sequences of so many tokens: an open end is there, but behind what it has.
    pub(super) fn fit(&mut self, longest: u32) {
        if let Some(wanted) = self.open_end {
            self.longest = wanted.min(longest.max(self.len().saturating_add(1)));
        }
    }

    /// The same, computed with an adapter.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Option<u32>) -> Self {
        self.adapter = adapter;
        self
    }

    /// The same, admitted before those of higher numbers.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// The same, and tokens of the prompt from the second on are scored, with so many of the likeliest tokens beside each.
    #[must_use]
    pub fn with_scores(mut self, top: Option<u16>, prompt_tokens: u32) -> Self {
        let until = prompt_tokens.saturating_sub(1);
        self.scores = top.map(|top| PromptScores { top, until, done: 0 });
        self
    }

    /// The same, and its hidden states are wanted instead of a token. For the mean all of them are, so that none may be found
    /// in the KV cache.
    #[must_use]
    pub fn with_pooling(mut self, pooling: Option<Pooling>) -> Self {
        self.pooling = pooling;
        if pooling == Some(Pooling::Mean) {
            self.root = None;
        }
        self
    }

    /// Most tokens that it may come to hold KV of, and one more.
    pub(super) fn longest_history(&self) -> u32 {
        match self.pooling {
            Some(_) => self.len(),
            None => self.longest,
        }
    }

    /// The first position that is still to be scored, if there is one: it and those behind must be computed.
    pub(super) fn unscored(&self) -> Option<u32> {
        self.scores
            .filter(|scores| scores.done < scores.until)
            .map(|scores| scores.done)
    }

    /// Where a row that begins at `start` and might go to `end` must end: a row scores or samples, not both.
    pub(super) fn row_end(&self, start: u32, end: u32) -> u32 {
        match self.scores {
            Some(scores) if start < scores.until => end.min(scores.until),
            _ => end,
        }
    }

    /// What the row of the positions from `start` to `end` answers.
    pub(super) fn output(&self, start: u32, end: u32) -> RowOutput {
        let last = end == self.expected();
        match self.pooling {
            Some(Pooling::Mean) => RowOutput::HiddenSum,
            Some(Pooling::Last) if last => RowOutput::Hidden,
            Some(Pooling::Last) => RowOutput::None,
            None if last => RowOutput::Sample {
                last: 1,
                key: self.sample,
            },
            None => self.score(start, end),
        }
    }

    /// What the row of the positions from `start` to `end` scores.
    fn score(&self, start: u32, end: u32) -> RowOutput {
        match self.scores {
            Some(PromptScores { top, until, done }) if end <= until && done < end => {
                let scored = start.max(done) as usize + 1..=end as usize;
                let ids = self.tokens.get(scored).unwrap_or_default().to_vec();
                RowOutput::Score { ids, top }
            }
            _ => RowOutput::None,
        }
    }

    /// Rows up to this position are computed.
    pub(super) fn scored(&mut self, computed: u32) {
        if let Some(scores) = &mut self.scores {
            scores.done = scores.done.max(computed.min(scores.until));
        }
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

    /// The names of its full blocks as far as they were needed: at least of the tokens that were known when it was admitted, if it
    /// shares blocks at all.
    pub(super) fn known_names(&self) -> &[PrefixHash] {
        &self.names
    }

    /// Up to which position its tokens of when it was admitted are computed in batches before number `batch`, and in that one too.
    pub(super) fn computes_known(&self, batch: u64) -> (u32, u32) {
        let known = self.placed.as_ref().map_or(0, |placed| placed.known);
        let before = if self.last_batch == batch {
            self.last_start
        } else {
            self.planned
        };
        (before.min(known), self.planned.min(known))
    }

    /// Whether others may still be admitted before it: not when it ran before, nor when it has waited for too many.
    pub(super) fn may_be_overtaken(&self) -> bool {
        !self.begun && self.overtaken < MOST_OVERTAKEN
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

    /// Whether it has a turn when those that decode have one: not while what comes next depends on drafts.
    pub(super) fn has_turn(&self) -> bool {
        self.decodes() && !(self.awaits_tokens && self.pending > 0)
    }

    /// Whether its tokens may be guessed: it is behind its prompt, and samples.
    pub(super) fn may_draft(&self) -> bool {
        self.pooling.is_none() && self.pending > 0 && self.remaining() <= 1
    }

    /// Its oldest row in flight is computed, and sampled so many tokens: of its drafts those are right that are among them, and the
    /// others' positions are to be computed again. Returns the position up to which it is computed; none when no row is in flight.
    pub(super) fn row_computed(&mut self, sampled: u32) -> Option<u32> {
        let end = self.rows_in_flight.pop_front()?;
        let drafts = std::mem::take(&mut self.drafts);
        let wrong = drafts.saturating_sub(sampled.saturating_sub(1));
        self.planned = self.planned.saturating_sub(wrong);
        Some(end.saturating_sub(wrong))
    }

    /// Blocks for all tokens, those included that steps in flight are to sample.
    pub(super) fn blocks_needed(&self, block_size: u32) -> u32 {
        self.expected().div_ceil(block_size)
    }

    /// Forget everything but the history.
    pub(super) fn reset(&mut self) {
        self.pending = 0;
        self.planned = 0;
        self.drafts = 0;
        self.awaits_tokens = false;
        self.rows_in_flight.clear();
        self.placed = None;
    }
}
