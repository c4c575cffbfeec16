//! Admission, continuous batching with chunked prefill, preemption by requeue.
//!
//! Rules, in this order, for every step:
//! 1. Sequences that decode get one token each, oldest first. When one needs a block and none is free, the youngest
//!    running sequence goes back to the head of the queue and its KV is dropped. The oldest is never preempted for
//!    another and fits alone (longer ones are refused), so there is always progress.
//! 2. Sequences in prefill get chunks from what is left of the token budget, oldest first.
//! 3. Waiting sequences are admitted in order while there is a slot, budget, and room for their whole history; never
//!    while one that was preempted still holds blocks. Those of a lower [`Sequence::with_priority`] go first, in order of
//!    their arrival among equals; but one that ran before goes before all, and nobody is overtaken more than
//!    [`MOST_OVERTAKEN`] times. Whose turn it is, is never overtaken, with two exceptions: suspected sequences
//!    ([`Scheduler::suspect`]) run one at a time, and those behind do not wait for that; nor for who waits until the next batch
//!    because its beginning is in this one.
//!
//! A sequence that is admitted takes the full blocks that an earlier one computed for the same tokens, and is computed from
//! there on; while much of what it begins with is about to be computed for another, it waits for that ([`shared`]). A block that can
//! be found is never written again. Where all of a history is there, the last token is computed again, since its logits are needed,
//! on a copy of its block.
//!
//! Where sequences are drafted, a batch in which all decode has drafts behind the tokens of some rows. A sequence whose drafts are in
//! flight has no other row: what comes next depends on which of them are right. KV of wrong ones is written over by the next row,
//! which begins where it was wrong, and no block has a name before all in it is right.
//!
//! In a pipeline the sequences that decode are dealt out over the stages: a batch has at most its share of them, and first those
//! that none of the stages computes, so that no stage waits for tokens that a later one is about to sample.
//!
//! Batches are made ahead: a batch may be asked for while earlier ones are in flight, and then holds tokens that those
//! are to sample ([`TokenRef::Late`]). Slot and blocks of a sequence that ends or is preempted are kept until no row of
//! it is in flight, so that no change of the block tables reaches a step that was sent before.

mod decode;
mod drafts;
mod shared;

use std::collections::VecDeque;

use super::batch::{Admission, Batch};
use super::block_pool::BlockPool;
use super::budget::MIN_CHUNK;
use super::drafts::Drafting;
use super::sequence::{Placed, Sequence, SequenceId};
use crate::block_tables::BlockTables;
#[cfg(doc)]
use crate::step::TokenRef;
use decode::Turn;
use shared::WORTH_WAITING;

/// How many younger sequences may be admitted before one that waits: higher priorities must not starve it.
pub const MOST_OVERTAKEN: u32 = 64;

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

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Scheduler {
    limits: Limits,
    /// Of the pipeline.
    stages: u32,
    pool: BlockPool,
    tables: BlockTables,
    free_slots: Vec<u32>,
    waiting: VecDeque<Sequence>,
    /// Oldest first.
    running: Vec<Sequence>,
    /// Sequences that get no more rows and have some in flight.
    leaving: Vec<(Sequence, Departure)>,
    /// Slots to be freed by the next batch.
    frees: Vec<u32>,
    batches: u64,
    /// Set when sequences are drafted.
    drafting: Option<Drafting>,
    /// Tokens that a sequence waits for the next batch for.
    worth_waiting: u32,
}

/// Why a sequence leaves, which decides what happens when its last row is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Departure {
    /// It ended, and is dropped.
    Finished,
    /// It was preempted, and waits again.
    Preempted,
}

impl Scheduler {
    /// Nothing waits, nothing runs. One stage.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self::staged(limits, 1)
    }

    /// The same for a pipeline of `stages` stages.
    #[must_use]
    pub fn staged(limits: Limits, stages: u32) -> Self {
        // More sequences than tokens in a step could never all decode.
        let slots = limits.max_sequences.min(limits.max_batched_tokens);
        Self {
            limits,
            stages: stages.max(1),
            pool: BlockPool::new(limits.blocks),
            tables: BlockTables::new(limits.max_sequences, limits.blocks),
            free_slots: (0..slots).rev().collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            leaving: Vec::new(),
            frees: Vec::new(),
            batches: 0,
            drafting: None,
            worth_waiting: WORTH_WAITING,
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
        let (wanted, longest) = (sequence.longest_history(), limits.longest());
        if wanted > longest {
            return Err(Refusal::TooLong { wanted, longest });
        }
        Ok(())
    }

    /// Put a sequence at the end of the queue.
    ///
    /// # Errors
    /// [`Refusal`] when it could never be computed.
    pub fn add(&mut self, mut sequence: Sequence) -> Result<(), Refusal> {
        sequence.fit(self.limits.longest());
        Self::check(&self.limits, &sequence)?;
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// The next step's rows, about `tokens` tokens of them; none when there is nothing to compute now. Call
    /// [`Self::row_done`] for each row, in any order, when it is.
    pub fn batch(&mut self, tokens: u32) -> Option<Batch> {
        self.batches += 1;
        let mut batch = Batch::default();
        self.decode(Turn::Due, &mut batch);
        let decoding = batch.tokens();
        let room = self.limits.max_batched_tokens.saturating_sub(decoding);
        let mut budget = room.min(tokens.saturating_sub(decoding).max(MIN_CHUNK));
        self.prefill(&mut batch, &mut budget);
        if batch.preempted.is_empty()
            && !self
                .leaving
                .iter()
                .any(|(_, departure)| *departure == Departure::Preempted)
        {
            self.admit(&mut batch, &mut budget);
        }
        // Nobody is due: rather than nothing, those that have waited longest. They may have to make room for others first.
        let mut preempted = usize::MAX;
        while batch.rows.is_empty() && batch.preempted.len() != preempted {
            preempted = batch.preempted.len();
            self.decode(Turn::LongestWaiting, &mut batch);
        }
        if batch.rows.is_empty() {
            self.batches -= 1;
            return None;
        }
        self.draft(&mut batch, tokens.max(MIN_CHUNK));
        Some(self.close(batch))
    }

    /// A batch without rows, which tells the other ranks about freed slots.
    pub fn heartbeat(&mut self) -> Batch {
        self.close(Batch::default())
    }

    fn close(&mut self, mut batch: Batch) -> Batch {
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

    fn prefill(&mut self, batch: &mut Batch, budget: &mut u32) {
        for sequence in &mut self.running {
            // A row for one that decodes needs a block, and it was looked at above.
            let open = sequence.last_batch != self.batches && !sequence.decodes();
            let chunk = sequence.remaining().min(*budget);
            if open && chunk > 0 {
                *budget -= batch.push(sequence, chunk, self.batches);
            }
        }
    }

    fn admit(&mut self, batch: &mut Batch, budget: &mut u32) {
        while *budget > 0
            && let Some(slot) = self.free_slots.last().copied()
            && let Some(index) = self.next_waiting()
            && let Some(mut sequence) = self.waiting.remove(index)
        {
            let prefix = self.cached_prefix(&mut sequence);
            if prefix.coming >= self.worth_waiting.max(1) {
                self.waiting.insert(index, sequence);
                break;
            }
            let needed = sequence.blocks_needed(self.limits.block_size);
            let shared = u32::try_from(prefix.shared.len()).unwrap_or(u32::MAX);
            let fresh = self
                .pool
                .allocate_behind(&prefix.shared, needed.saturating_sub(shared));
            let Some(fresh) = fresh else {
                self.waiting.insert(index, sequence);
                break;
            };
            self.free_slots.pop();
            batch
                .blocks
                .copies
                .extend(prefix.copied.zip(fresh.first().copied()));
            let blocks = [prefix.shared, fresh].concat();
            batch.blocks.appends.push((slot, blocks.clone()));
            batch.admitted.push(Admission {
                sequence: sequence.id,
                looked_up: if sequence.shares() && sequence.unscored().is_none() {
                    sequence.len()
                } else {
                    0
                },
                cached: prefix.tokens,
            });
            sequence.planned = prefix.tokens;
            sequence.placed = Some(Placed {
                slot,
                blocks,
                named: prefix.named,
                known: sequence.len(),
            });
            let chunk = sequence.remaining().min(*budget);
            *budget -= batch.push(&mut sequence, chunk, self.batches);
            self.overtake(index);
            sequence.begun = true;
            self.running.push(sequence);
        }
    }

    /// Which waiting sequence is admitted next.
    fn next_waiting(&self) -> Option<usize> {
        let suspected = self.running.iter().any(|running| running.suspected);
        let may = |waiting: &Sequence| !(suspected && waiting.suspected);
        let first = |due: fn(&Sequence) -> bool| {
            self.waiting
                .iter()
                .position(|waiting| may(waiting) && due(waiting))
        };
        let by_priority = || {
            let waiting = self
                .waiting
                .iter()
                .enumerate()
                .filter(|(_, waiting)| may(waiting));
            let best = waiting.min_by_key(|(_, waiting)| waiting.priority);
            best.map(|(index, _)| index)
        };
        first(|waiting| waiting.begun)
            .or_else(|| first(|waiting| !waiting.may_be_overtaken()))
            .or_else(by_priority)
    }

    /// The sequence that waited at `index` has been admitted before those that came earlier.
    fn overtake(&mut self, index: usize) {
        for older in self.waiting.iter_mut().take(index) {
            older.overtaken = older.overtaken.saturating_add(1);
        }
    }

    /// A row of a batch is computed, or its answer is not wanted any more; `sampled` is what it sampled: one token, or more where
    /// its drafts are right. Returns the new length of the history, or none when the sequence is not here any more.
    ///
    /// All ranks have computed it then, so that the blocks that it filled have names from here on. Not those of a sequence that is
    /// not here any more: tokens that it did not come to sample may be wrong in them.
    pub fn row_done(&mut self, id: SequenceId, sampled: &[u32]) -> Option<u32> {
        let (pool, block_size) = (&mut self.pool, self.limits.block_size);
        let mut done = |sequence: &mut Sequence, is_wanted: bool| {
            let computed = sequence.row_computed(u32::try_from(sampled.len()).unwrap_or(u32::MAX));
            if !sampled.is_empty() {
                sequence.pending = sequence.pending.saturating_sub(1);
                sequence.tokens.extend_from_slice(sampled);
            }
            if let Some(computed) = computed
                && is_wanted
            {
                name_blocks(pool, sequence, computed / block_size, block_size);
                sequence.scored(computed);
            }
            sequence.len()
        };
        if let Some(sequence) = self.running.iter_mut().find(|sequence| sequence.id == id) {
            return Some(done(sequence, true));
        }
        let index = self.leaving.iter().position(|(sequence, _)| sequence.id == id)?;
        let (sequence, departure) = self.leaving.get_mut(index)?;
        let departure = *departure;
        let length = done(sequence, departure == Departure::Preempted);
        if sequence.rows_in_flight.is_empty() {
            let (sequence, departure) = self.leaving.swap_remove(index);
            self.leave(sequence, departure);
        }
        (departure == Departure::Preempted).then_some(length)
    }

    /// Whether a sequence has all the tokens it may come to hold.
    #[must_use]
    pub fn is_full(&self, id: SequenceId) -> bool {
        self.sequences()
            .any(|sequence| sequence.id == id && sequence.len() >= sequence.longest)
    }

    /// Suspect a sequence to be what brings members down, or do so no more.
    pub fn suspect(&mut self, id: SequenceId, suspected: bool) {
        let leaving = self.leaving.iter_mut().map(|(sequence, _)| sequence);
        let mut all = self.running.iter_mut().chain(leaving).chain(&mut self.waiting);
        if let Some(sequence) = all.find(|sequence| sequence.id == id) {
            sequence.suspected = suspected;
        }
    }

    /// Tokens in a sequence's history; none when it is not here.
    #[must_use]
    pub fn length(&self, id: SequenceId) -> Option<u32> {
        self.sequences()
            .find(|sequence| sequence.id == id)
            .map(Sequence::len)
    }

    /// Take a sequence out, finished or cancelled. What it holds is free when its rows in flight are done. Returns its
    /// history; none when it is not here.
    pub fn remove(&mut self, id: SequenceId) -> Option<Vec<u32>> {
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let mut sequence = self.running.remove(index);
            let history = std::mem::take(&mut sequence.tokens);
            self.leave(sequence, Departure::Finished);
            return Some(history);
        }
        let left = self
            .leaving
            .iter_mut()
            .find(|(sequence, departure)| sequence.id == id && *departure == Departure::Preempted);
        if let Some((sequence, departure)) = left {
            *departure = Departure::Finished;
            return Some(std::mem::take(&mut sequence.tokens));
        }
        let index = self.waiting.iter().position(|sequence| sequence.id == id)?;
        self.waiting.remove(index).map(|sequence| sequence.tokens)
    }

    /// Free what a sequence holds as soon as no row of it is in flight.
    fn leave(&mut self, mut sequence: Sequence, departure: Departure) {
        if !sequence.rows_in_flight.is_empty() {
            self.leaving.push((sequence, departure));
            return;
        }
        if let Some(placed) = sequence.placed.take() {
            give_back(&mut self.pool, &placed);
            self.free_slots.push(placed.slot);
            self.frees.push(placed.slot);
        }
        if departure == Departure::Preempted {
            sequence.reset();
            let younger = self.waiting.iter().position(|other| other.id > sequence.id);
            self.waiting
                .insert(younger.unwrap_or(self.waiting.len()), sequence);
        }
    }

    /// The era ended and all steps in flight with it: everything that runs goes back to the head of the queue with its
    /// history, in order, and the block tables start empty under `limits`. `kept` says that all ranks still have the KV
    /// blocks as they were; else nothing is found in them any more. Open ends move to what the new limits hold. Returns the sequences
    /// that they cannot hold.
    pub fn requeue_all(&mut self, limits: Limits, kept: bool) -> Vec<(Sequence, Refusal)> {
        let mut running = std::mem::take(&mut self.running);
        let mut pool = std::mem::replace(&mut self.pool, BlockPool::new(0));
        for (sequence, departure) in std::mem::take(&mut self.leaving) {
            match departure {
                Departure::Preempted => running.push(sequence),
                Departure::Finished => sequence
                    .placed
                    .iter()
                    .for_each(|placed| give_back(&mut pool, placed)),
            }
        }
        running.sort_by_key(|sequence| sequence.id);
        // The oldest are computed first again, so what they had goes last.
        for sequence in running.iter_mut().rev() {
            sequence
                .placed
                .iter()
                .for_each(|placed| give_back(&mut pool, placed));
            sequence.reset();
        }
        let waiting = std::mem::take(&mut self.waiting);
        let same = (limits.blocks, limits.block_size) == (self.limits.blocks, self.limits.block_size);
        let drafting = self.drafting.take();
        let worth_waiting = self.worth_waiting;
        *self = Self::staged(limits, self.stages);
        self.drafting = drafting;
        self.worth_waiting = worth_waiting;
        if kept && same {
            self.pool = pool;
        }
        let mut refused = Vec::new();
        running.extend(waiting);
        running.sort_by_key(|sequence| sequence.id);
        for mut sequence in running {
            sequence.fit(limits.longest());
            match Self::check(&limits, &sequence) {
                Ok(()) => self.waiting.push_back(sequence),
                Err(why) => refused.push((sequence, why)),
            }
        }
        refused
    }

    /// Whether other ranks are to be told of freed slots.
    #[must_use]
    pub fn has_frees(&self) -> bool {
        !self.frees.is_empty()
    }

    /// Whether no sequence is here.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.leaving.is_empty()
    }

    /// Number of sequences that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Number of sequences that wait, those included that were preempted and have rows in flight.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let preempted = self
            .leaving
            .iter()
            .filter(|(_, departure)| *departure == Departure::Preempted);
        self.waiting.len() + preempted.count()
    }

    /// KV blocks in use and in all.
    #[must_use]
    pub fn kv_blocks(&self) -> (u32, u32) {
        (self.pool.total() - self.pool.available(), self.pool.total())
    }

    /// Stages of the pipeline.
    #[must_use]
    pub fn stages(&self) -> usize {
        self.stages as usize
    }

    /// The present limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The KV blocks.
    #[cfg(test)]
    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The histories of all sequences, running first, then preempted and waiting ones.
    pub fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        let preempted = self
            .leaving
            .iter()
            .filter(|(_, departure)| *departure == Departure::Preempted);
        self.running
            .iter()
            .chain(preempted.map(|(sequence, _)| sequence))
            .chain(&self.waiting)
    }

    /// Whether a sequence is here whose token at a position is still to be sampled.
    #[must_use]
    pub fn awaits(&self, id: SequenceId, position: u32) -> bool {
        self.sequences()
            .any(|sequence| sequence.id == id && sequence.len() <= position)
    }

    /// A sequence's token at a position, when it is known.
    #[must_use]
    pub fn token(&self, id: SequenceId, position: u32) -> Option<u32> {
        let sequence = self.sequences().find(|sequence| sequence.id == id)?;
        sequence.tokens.get(position as usize).copied()
    }

    /// `count` of a sequence's tokens from a position on, when all of them are known.
    #[must_use]
    pub fn tokens(&self, id: SequenceId, position: u32, count: usize) -> Option<&[u32]> {
        let sequence = self.sequences().find(|sequence| sequence.id == id)?;
        sequence.tokens.get(position as usize..)?.get(..count)
    }
}

/// The first `full` blocks of a sequence are computed: they can be found from here on.
fn name_blocks(pool: &mut BlockPool, sequence: &mut Sequence, full: u32, block_size: u32) {
    let named = sequence.placed.as_ref().map_or(full, |placed| placed.named);
    if named >= full {
        return;
    }
    sequence.names(block_size);
    let Some((placed, names)) = sequence.placed_and_names() else {
        return;
    };
    let blocks = placed.blocks.iter().zip(names).take(full as usize);
    for (block, name) in blocks.skip(named as usize) {
        pool.name(*block, *name);
    }
    placed.named = full;
}

/// Whoever finds a block finds all before it, so the last ones are to go first.
fn give_back(pool: &mut BlockPool, placed: &Placed) {
    placed.blocks.iter().rev().for_each(|block| pool.release(*block));
}

/// Blocks that a sequence holds.
fn held(sequence: &Sequence) -> u32 {
    let blocks = sequence.placed.as_ref().map_or(0, |placed| placed.blocks.len());
    u32::try_from(blocks).unwrap_or(u32::MAX)
}
