//! Drafts for the rows of a batch. They take what the rows leave: of the step's tokens, and of the KV blocks.

use super::{Scheduler, held};
use crate::schedule::batch::Batch;
use crate::schedule::drafts::{Drafting, Speculation};
use crate::schedule::sequence::{Sequence, SequenceId};
use crate::step::{PlanRow, RowOutput, TokenRef};

impl Scheduler {
    /// The same, and sequences are drafted.
    #[must_use]
    pub fn with_speculation(mut self, speculation: Option<Speculation>) -> Self {
        self.drafting = speculation.map(Drafting::new);
        self
    }

    /// A step of `rows` rows of one token and `drafts` drafts took so many seconds.
    pub fn measured(&mut self, rows: usize, drafts: usize, seconds: f32) {
        if let Some(drafting) = &mut self.drafting {
            drafting.measured(rows, drafts, seconds);
        }
    }

    /// Whether the next batch is better made when more tokens are known: those that come next are likely to be guessed, and only
    /// what is known can be guessed from. Whose guesses are worth it gets no row before its tokens are known, in whatever batch.
    #[must_use]
    pub fn awaits_tokens(&mut self) -> bool {
        let Some(drafting) = &mut self.drafting else {
            return false;
        };
        for sequence in &mut self.running {
            sequence.awaits_tokens = false;
        }
        // Their steps are long whatever is drafted.
        if self.running.iter().any(|sequence| sequence.remaining() > 1) {
            return false;
        }
        let mut guessed: Vec<&mut Sequence> = self.running.iter_mut().collect();
        guessed.retain(|sequence| sequence.may_draft());
        let chances = guessed.iter_mut().map(|sequence| {
            let most = sequence.longest.saturating_sub(sequence.expected() + 1);
            drafting.chances(&mut sequence.drafter, &sequence.tokens, most)
        });
        let chances: Vec<Vec<f32>> = chances.collect();
        let room = (self.limits.max_batched_tokens as usize).saturating_sub(chances.len());
        let rows = chances.len().div_ceil(self.stages as usize);
        let counts = drafting.share(rows, &chances, room);
        for (sequence, count) in guessed.into_iter().zip(&counts) {
            sequence.awaits_tokens = *count > 0;
        }
        counts.iter().any(|count| *count > 0)
    }

    /// Put drafts behind the rows of a batch in which everybody decodes, at most so many that it has `tokens` tokens.
    pub(super) fn draft(&mut self, batch: &mut Batch, tokens: u32) {
        let Some(drafting) = &mut self.drafting else {
            return;
        };
        if !batch.rows.iter().all(decodes) {
            return;
        }
        let most = self.limits.max_batched_tokens.min(tokens);
        let room = most.saturating_sub(batch.tokens()) as usize;
        let (mut drafted, mut chances) = (Vec::new(), Vec::new());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let Some(row) = row_of(batch, sequence.id).filter(|_| sequence.may_draft()) else {
                continue;
            };
            // Behind a token that is not known nothing can be guessed, nor is anything but this row to be in flight.
            let known = sequence.rows_in_flight.len() == 1 && sequence.pending == 1;
            if known && batch.late.iter().all(|late| late.sequence != sequence.id) {
                // The row samples one token more than it has drafts.
                let most = sequence.longest.saturating_sub(sequence.expected());
                chances.push(drafting.chances(&mut sequence.drafter, &sequence.tokens, most));
                drafted.push((index, row));
            }
        }
        let counts = drafting.share(batch.rows.len(), &chances, room);
        for ((index, row), count) in drafted.into_iter().zip(counts) {
            let count = self.room_for(index, count, batch);
            if count > 0
                && let (Some(sequence), Some(row)) = (self.running.get_mut(index), batch.rows.get_mut(row))
            {
                extend(sequence, row, count);
            }
        }
    }

    /// Get the blocks for so many drafts of a running sequence. Returns for how many it has them: drafts preempt nobody, and leave
    /// every other sequence the block that it may need next.
    fn room_for(&mut self, index: usize, count: usize, batch: &mut Batch) -> usize {
        let others = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let block_size = self.limits.block_size;
        let Some(sequence) = self.running.get_mut(index) else {
            return 0;
        };
        let end = sequence
            .planned
            .saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let missing = end.div_ceil(block_size).saturating_sub(held(sequence));
        if missing > 0
            && self.pool.available() >= missing.saturating_add(others)
            && let Some(placed) = &mut sequence.placed
            && let Some(blocks) = self.pool.allocate(missing)
        {
            placed.blocks.extend_from_slice(&blocks);
            batch.blocks.appends.push((placed.slot, blocks));
        }
        let holds = held(sequence).saturating_mul(block_size);
        count.min(holds.saturating_sub(sequence.planned) as usize)
    }
}

/// Put so many drafts behind the only token of a row.
fn extend(sequence: &mut Sequence, row: &mut PlanRow, count: usize) {
    let drafter = sequence.drafter.as_ref();
    let drafts = drafter.map_or_else(Vec::new, |drafter| drafter.drafts(&sequence.tokens, count));
    let count = u16::try_from(drafts.len()).unwrap_or(0);
    let (RowOutput::Sample { last, .. }, Some(end)) = (&mut row.output, sequence.rows_in_flight.back_mut())
    else {
        return;
    };
    *last += count;
    row.tokens.extend(drafts.into_iter().map(TokenRef::Known));
    sequence.drafts = u32::from(count);
    sequence.planned += sequence.drafts;
    *end = sequence.planned;
}

/// Whether a row is one token, behind which one is sampled.
fn decodes(row: &PlanRow) -> bool {
    row.tokens.len() == 1 && matches!(row.output, RowOutput::Sample { .. })
}

fn row_of(batch: &Batch, sequence: SequenceId) -> Option<usize> {
    batch.sequences.iter().position(|of| *of == sequence)
}
