//! Admission, continuous batching with chunked prefill, preemption by requeue.
//!
//! Rules, in this order, for every step:
//! 1. Sequences that decode get one token each, oldest first. When one needs a block and none is free, the youngest
//!    running sequence goes back to the head of the queue and its KV is dropped. The oldest is never preempted for
//!    another and fits alone (longer ones are refused), so there is always progress.
//! 2. Sequences in prefill get chunks from what is left of the token budget, oldest first.
//! 3. Waiting sequences are admitted in order while there is a slot, budget, and room for their whole history; never
//!    in a step that preempted. The head of the queue is never overtaken.

use std::collections::VecDeque;

use super::allocator::BlockAllocator;
use super::sequence::{Placed, Sequence, SequenceId};
use crate::block_tables::BlockTables;
use crate::step::{BlockDeltas, PlanRow, TokenRef};

/// What a group can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences at once (slots).
    pub max_sequences: u32,
    /// Tokens in one step.
    pub max_batched_tokens: u32,
    /// Tokens of one sequence, prompt and output together.
    pub max_context: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks.
    pub blocks: u32,
}

impl Limits {
    /// Longest sequence in tokens that these limits can ever compute. The last sampled token needs no KV.
    #[must_use]
    pub fn longest(&self) -> u32 {
        let kv = u64::from(self.blocks) * u64::from(self.block_size) + 1;
        u32::try_from(kv.min(u64::from(self.max_context))).unwrap_or(self.max_context)
    }
}

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It could never fit.
    #[error(
        "the request needs up to {wanted} tokens, prompt and output together, and this group holds {longest}: shorten the prompt or lower max_tokens"
    )]
    TooLong {
        /// Tokens it may grow to.
        wanted: u32,
        /// Longest possible sequence.
        longest: u32,
    },
    /// Nothing to compute.
    #[error("the prompt is empty: give at least one token")]
    Empty,
    /// No room for even one new token was asked for.
    #[error(
        "no token is left to generate: max_tokens must be larger than the number of tokens to resume behind"
    )]
    NothingToGenerate,
}

/// The rows of one step and what they belong to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Rows for [`crate::step::Plan::rows`].
    pub rows: Vec<PlanRow>,
    /// The sequence of each row.
    pub sequences: Vec<SequenceId>,
    /// Block table changes since the last batch.
    pub blocks: BlockDeltas,
    /// Hash of the block tables after `blocks`.
    pub state_hash: u64,
    /// Sequences that were preempted to make this batch, youngest first.
    pub preempted: Vec<SequenceId>,
}

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Scheduler {
    limits: Limits,
    allocator: BlockAllocator,
    tables: BlockTables,
    free_slots: Vec<u32>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    frees: Vec<u32>,
}

impl Scheduler {
    /// Nothing waits, nothing runs.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        // More sequences than tokens in a step could never all decode.
        let slots = limits.max_sequences.min(limits.max_batched_tokens);
        Self {
            limits,
            allocator: BlockAllocator::new(limits.blocks),
            tables: BlockTables::new(limits.max_sequences, limits.blocks),
            free_slots: (0..slots).rev().collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            frees: Vec::new(),
        }
    }

    /// Whether `sequence` could ever be computed under `limits`.
    ///
    /// # Errors
    /// [`Refusal`], as a sentence for the client.
    pub fn check(limits: &Limits, sequence: &Sequence) -> Result<(), Refusal> {
        if sequence.is_empty() {
            return Err(Refusal::Empty);
        }
        if sequence.longest <= sequence.len() {
            return Err(Refusal::NothingToGenerate);
        }
        if sequence.longest > limits.longest() {
            return Err(Refusal::TooLong {
                wanted: sequence.longest,
                longest: limits.longest(),
            });
        }
        Ok(())
    }

    /// Put a sequence at the end of the queue.
    ///
    /// # Errors
    /// [`Refusal`] when it could never be computed.
    pub fn add(&mut self, sequence: Sequence) -> Result<(), Refusal> {
        Self::check(&self.limits, &sequence)?;
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// The next step's rows. Their positions count as computed from here on; call [`Self::push`] for each sampled row
    /// before the next batch.
    pub fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut budget = self.limits.max_batched_tokens;
        self.decode(&mut batch, &mut budget);
        self.prefill(&mut batch, &mut budget);
        if batch.preempted.is_empty() {
            self.admit(&mut batch, &mut budget);
        }
        batch.blocks.frees = std::mem::take(&mut self.frees);
        let applied = self.tables.apply(&batch.blocks);
        debug_assert_eq!(
            applied,
            Ok(()),
            "slots and blocks come from this scheduler's own lists"
        );
        batch.state_hash = self.tables.hash();
        batch
    }

    fn decode(&mut self, batch: &mut Batch, budget: &mut u32) {
        let mut index = 0;
        while index < self.running.len() && *budget > 0 {
            if self.running[index].remaining() == 1 && self.running[index].computed > 0 {
                if !self.grow(index, batch) {
                    // Sequences before `index` have their rows already; the youngest stands at or behind it.
                    self.preempt_youngest(batch);
                    continue;
                }
                push_row(&mut self.running[index], 1, batch);
                *budget -= 1;
            }
            index += 1;
        }
    }

    /// Make sure the next position of a running sequence has a block. False when there is none.
    fn grow(&mut self, index: usize, batch: &mut Batch) -> bool {
        let sequence = &mut self.running[index];
        let needed = sequence.len().div_ceil(self.limits.block_size);
        let Some(placed) = &mut sequence.placed else {
            return false;
        };
        let missing = needed.saturating_sub(u32::try_from(placed.blocks.len()).unwrap_or(u32::MAX));
        if missing == 0 {
            return true;
        }
        let Some(blocks) = self.allocator.allocate(missing) else {
            return false;
        };
        placed.blocks.extend_from_slice(&blocks);
        batch.blocks.appends.push((placed.slot, blocks));
        true
    }

    fn preempt_youngest(&mut self, batch: &mut Batch) {
        if let Some(mut sequence) = self.running.pop() {
            self.unplace(&mut sequence);
            batch.preempted.push(sequence.id);
            self.waiting.push_front(sequence);
        }
    }

    fn prefill(&mut self, batch: &mut Batch, budget: &mut u32) {
        for sequence in &mut self.running {
            let chunk = sequence.remaining().min(*budget);
            if chunk > 0 {
                push_row(sequence, chunk, batch);
                *budget -= chunk;
            }
        }
    }

    fn admit(&mut self, batch: &mut Batch, budget: &mut u32) {
        while *budget > 0 {
            let Some(head) = self.waiting.front() else { break };
            let needed = head.len().div_ceil(self.limits.block_size);
            if self.free_slots.is_empty() || self.allocator.free() < needed {
                break;
            }
            let (Some(mut sequence), Some(slot), Some(blocks)) = (
                self.waiting.pop_front(),
                self.free_slots.pop(),
                self.allocator.allocate(needed),
            ) else {
                break;
            };
            batch.blocks.appends.push((slot, blocks.clone()));
            sequence.placed = Some(Placed { slot, blocks });
            let chunk = sequence.remaining().min(*budget);
            push_row(&mut sequence, chunk, batch);
            *budget -= chunk;
            self.running.push(sequence);
        }
    }

    /// Append a sampled token to a running sequence. Returns its new length, or `None` when it does not run.
    pub fn push(&mut self, id: SequenceId, token: u32) -> Option<u32> {
        let sequence = self.running.iter_mut().find(|sequence| sequence.id == id)?;
        sequence.tokens.push(token);
        Some(sequence.len())
    }

    /// Whether a running sequence has all the tokens it may come to hold.
    #[must_use]
    pub fn is_full(&self, id: SequenceId) -> bool {
        self.running
            .iter()
            .any(|sequence| sequence.id == id && sequence.len() >= sequence.longest)
    }

    /// Take a sequence out, finished or cancelled, and free what it holds. `None` when it is not here.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            self.unplace(&mut sequence);
            return Some(sequence);
        }
        let index = self.waiting.iter().position(|sequence| sequence.id == id)?;
        self.waiting.remove(index)
    }

    fn unplace(&mut self, sequence: &mut Sequence) {
        sequence.computed = 0;
        if let Some(placed) = sequence.placed.take() {
            for block in placed.blocks {
                self.allocator.release(block);
            }
            self.free_slots.push(placed.slot);
            self.frees.push(placed.slot);
        }
    }

    /// The era ended and all KV with it: everything that runs goes back to the head of the queue with its history, in
    /// order, and the block tables start empty under `limits`. Returns those that the new limits cannot hold.
    pub fn requeue_all(&mut self, limits: Limits) -> Vec<(Sequence, Refusal)> {
        let mut running = std::mem::take(&mut self.running);
        for sequence in &mut running {
            sequence.computed = 0;
            sequence.placed = None;
        }
        let waiting = std::mem::take(&mut self.waiting);
        *self = Self::new(limits);
        let mut refused = Vec::new();
        for sequence in running.into_iter().chain(waiting) {
            match Self::check(&limits, &sequence) {
                Ok(()) => self.waiting.push_back(sequence),
                Err(why) => refused.push((sequence, why)),
            }
        }
        refused
    }

    /// Whether a batch would hold rows, or block changes that other ranks do not know yet.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.running.is_empty() || !self.waiting.is_empty() || !self.frees.is_empty()
    }

    /// Number of sequences that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Number of sequences that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// KV blocks in use and in all.
    #[must_use]
    pub fn kv_blocks(&self) -> (u32, u32) {
        (
            self.allocator.total() - self.allocator.free(),
            self.allocator.total(),
        )
    }

    /// The present limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The histories of all sequences, running first, then waiting, each in order.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(&self.waiting)
    }
}

fn push_row(sequence: &mut Sequence, count: u32, batch: &mut Batch) {
    let Some(placed) = &sequence.placed else { return };
    let (from, to) = (sequence.computed as usize, (sequence.computed + count) as usize);
    batch.rows.push(PlanRow {
        slot: placed.slot,
        start: sequence.computed,
        tokens: sequence.tokens[from..to]
            .iter()
            .map(|token| TokenRef::Known(*token))
            .collect(),
        drafts: 0,
        sample: (to == sequence.tokens.len()).then_some(sequence.sample),
    });
    batch.sequences.push(sequence.id);
    sequence.computed += count;
}
