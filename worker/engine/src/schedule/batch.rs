//! The rows of one step and what they belong to.

use super::sequence::{Sequence, SequenceId};
use crate::step::{BlockDeltas, PlanRow, TokenRef};

/// Which token a [`TokenRef::Late`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateToken {
    /// Whose.
    pub sequence: SequenceId,
    /// Its absolute position; the row of an earlier step samples it.
    pub position: u32,
}

/// A sequence that begins to be computed, or begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Whose.
    pub sequence: SequenceId,
    /// Tokens of its history that may be found in the KV cache: all, or none when it shares nothing.
    pub looked_up: u32,
    /// Tokens of its history, from the first on, that are there and are not computed again.
    pub cached: u32,
}

/// The rows of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Rows for [`crate::step::Plan::rows`].
    pub rows: Vec<PlanRow>,
    /// The sequence of each row.
    pub sequences: Vec<SequenceId>,
    /// What the late tokens are, by their index.
    pub late: Vec<LateToken>,
    /// Block table changes since the last batch.
    pub blocks: BlockDeltas,
    /// Hash of the block tables after `blocks`.
    pub state_hash: u64,
    /// Sequences that were preempted to make this batch, youngest first.
    pub preempted: Vec<SequenceId>,
    /// Sequences that have their first row, or their first after a preemption, in this batch.
    pub admitted: Vec<Admission>,
}

impl Batch {
    /// Tokens of all rows.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        let tokens = self.rows.iter().map(|row| row.tokens.len()).sum::<usize>();
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// Add the next `count` tokens of a sequence as a row, or fewer of them, and tell how many. The last of all its tokens is
    /// sampled, or ends an embedding.
    pub(super) fn push(&mut self, sequence: &mut Sequence, count: u32, batch: u64) -> u32 {
        let Some(placed) = &sequence.placed else { return 0 };
        let start = sequence.planned;
        let end = sequence.row_end(start, start + count);
        let tokens = (start..end)
            .map(|position| match sequence.tokens.get(position as usize) {
                Some(token) => TokenRef::Known(*token),
                None => {
                    let index = u32::try_from(self.late.len()).unwrap_or(u32::MAX);
                    self.late.push(LateToken {
                        sequence: sequence.id,
                        position,
                    });
                    TokenRef::Late(index)
                }
            })
            .collect();
        let sampled = end == sequence.expected();
        let output = sequence.output(start, end);
        self.rows.push(PlanRow {
            slot: placed.slot,
            start,
            tokens,
            adapter: sequence.adapter,
            output,
        });
        self.sequences.push(sequence.id);
        sequence.planned = end;
        sequence.pending += u32::from(sampled);
        sequence.rows_in_flight.push_back(end);
        sequence.last_batch = batch;
        sequence.last_start = start;
        end - start
    }
}
