//! The rows of sequences that decode, one token each, and who makes room for them.

use std::collections::BTreeMap;

use super::{Departure, Scheduler, held};
use crate::schedule::batch::Batch;

/// Which sequences get a row for their next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Those that are not in one of the batches that the stages compute while this one begins.
    Due,
    /// Those that had their last row before all others.
    LongestWaiting,
}

/// Whether a sequence has the blocks of its next row.
enum BlockGrant {
    Granted,
    /// Sequences that leave hold enough; there is no row in this batch.
    Deferred,
    /// Nobody leaves, so that somebody must be preempted.
    Exhausted,
}

/// Blocks that sequences will have left when their rows in flight are done.
#[derive(Default)]
struct Coming {
    /// Counted when it is asked for first, and anew after a preemption.
    all: Option<u32>,
    /// Those that older sequences wait for.
    promised: u32,
}

impl Scheduler {
    /// Give the sequences whose `turn` it is a row each, at most a stage's share of all that decode.
    pub(super) fn decode(&mut self, turn: Turn, batch: &mut Batch) {
        let mut index = 0;
        // Those that wait for their drafts have no turn, and are dealt out with the others all the same.
        let decoding = self.running.iter();
        let decoding = decoding.filter(|sequence| sequence.decodes() || sequence.drafts > 0);
        let last_due = match turn {
            Turn::Due => Some(self.batches.saturating_sub(u64::from(self.stages))),
            Turn::LongestWaiting => {
                let due = decoding.clone().filter(|sequence| sequence.has_turn());
                due.map(|sequence| sequence.last_batch).min()
            }
        };
        let share = u32::try_from(decoding.count())
            .unwrap_or(u32::MAX)
            .div_ceil(self.stages);
        let mut budget = self.limits.max_batched_tokens.min(share);
        let mut coming = Coming::default();
        while let Some(sequence) = self.running.get(index)
            && budget > 0
        {
            if sequence.has_turn() && Some(sequence.last_batch) <= last_due {
                match self.grow(index, &mut coming, batch) {
                    BlockGrant::Granted => {
                        if let Some(sequence) = self.running.get_mut(index) {
                            batch.push(sequence, 1, self.batches);
                        }
                        budget -= 1;
                    }
                    BlockGrant::Deferred => {}
                    // Sequences before `index` were looked at; the youngest stands at or behind it.
                    BlockGrant::Exhausted => {
                        self.preempt_youngest(batch);
                        coming.all = None;
                        continue;
                    }
                }
            }
            index += 1;
        }
    }

    /// Make sure the next position of a running sequence has a block.
    fn grow(&mut self, index: usize, coming: &mut Coming, batch: &mut Batch) -> BlockGrant {
        let Some(sequence) = self.running.get_mut(index) else {
            return BlockGrant::Deferred;
        };
        let missing = sequence
            .blocks_needed(self.limits.block_size)
            .saturating_sub(held(sequence));
        if missing == 0 {
            return BlockGrant::Granted;
        }
        if let Some(placed) = &mut sequence.placed
            && let Some(blocks) = self.pool.allocate(missing)
        {
            placed.blocks.extend_from_slice(&blocks);
            batch.blocks.appends.push((placed.slot, blocks));
            return BlockGrant::Granted;
        }
        let all = *coming.all.get_or_insert_with(|| self.leaving_blocks());
        if missing <= self.pool.available() + all.saturating_sub(coming.promised) {
            coming.promised += missing;
            return BlockGrant::Deferred;
        }
        BlockGrant::Exhausted
    }

    /// Blocks that nobody uses any more once all sequences that leave are gone.
    fn leaving_blocks(&self) -> u32 {
        let mut users = BTreeMap::new();
        let placed = self
            .leaving
            .iter()
            .filter_map(|(leaving, _)| leaving.placed.as_ref());
        for block in placed.flat_map(|placed| &placed.blocks) {
            *users.entry(*block).or_insert(0) += 1;
        }
        let alone = users
            .iter()
            .filter(|(block, users)| self.pool.users(**block) == **users);
        u32::try_from(alone.count()).unwrap_or(u32::MAX)
    }

    /// Send the youngest running sequence back to the queue.
    fn preempt_youngest(&mut self, batch: &mut Batch) {
        if let Some(sequence) = self.running.pop() {
            batch.preempted.push(sequence.id);
            self.leave(sequence, Departure::Preempted);
        }
    }
}
