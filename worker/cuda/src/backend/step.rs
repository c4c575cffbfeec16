//! One step on its way: submitted, its layers enqueued, its candidates enqueued, done.

use cudarc::driver::CudaEvent;
use llamero_engine::kv_state::{Answer, answers};
use llamero_engine::late_values::LateValues;
use llamero_engine::{Plan, PlanRow, RowOutput, StepOutput, Ticket};

use super::graphs::bucket;
use crate::ops::MAX_ROWS;
use crate::pinned::Lent;
use crate::sample::Group;

/// A row of the step: where its tokens are.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) slot: u32,
    pub(super) start: u32,
    pub(super) len: usize,
    /// Blocks that it reads and writes, as of this step.
    pub(super) table: std::sync::Arc<[u32]>,
}

/// A step that is submitted and not yet released.
pub(super) struct Step {
    pub(super) ticket: Ticket,
    pub(super) plan: Plan,
    pub(super) spans: Vec<Span>,
    /// Entries of the device's block tables that this step changes: (slot, index, block).
    pub(super) entries: Vec<[u32; 3]>,
    pub(super) answers: Vec<Answer>,
    /// Which of the buffers that a step keeps to itself it has.
    pub(super) lane: usize,
    /// Whether what the stage before gives for it is here.
    pub(super) is_here: bool,
    pub(super) late: LateValues,
    pub(super) phase: Phase,
    pub(super) groups: Vec<Group>,
    /// States of rows that answer hidden ones, as they come back: (row, state).
    pub(super) hidden: Vec<(u32, Lent<u16>)>,
}

/// How far a step is.
pub(super) enum Phase {
    /// Nothing is enqueued.
    Submitted,
    /// The layers are enqueued, and candidates of the last stage are to come.
    Forwarded,
    /// All is enqueued; computed at this event.
    Enqueued(CudaEvent),
    /// Done.
    Done(StepOutput),
}

impl Step {
    pub(super) fn new(
        ticket: Ticket,
        plan: &Plan,
        spans: Vec<Span>,
        entries: Vec<[u32; 3]>,
        (lane, is_first_stage): (usize, bool),
    ) -> Self {
        Self {
            ticket,
            answers: answers(plan),
            spans,
            entries,
            lane,
            is_here: is_first_stage,
            late: LateValues::of(plan),
            plan: plan.clone(),
            phase: Phase::Submitted,
            groups: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// Rows in which it is computed: graphs have some that only fill them up.
    pub(super) fn computed_rows(&self) -> usize {
        let rows = self.spans.iter().map(|span| span.len).sum();
        if self.is_decode() { bucket(rows) } else { rows }
    }

    /// Whether every row has one token, which is sampled.
    pub(super) fn is_decode(&self) -> bool {
        let rows = self.plan.rows.len();
        let is_sampled =
            |row: &PlanRow| row.tokens.len() == 1 && matches!(row.output, RowOutput::Sample { .. });
        (1..=MAX_ROWS).contains(&rows) && self.answers.len() == rows && self.plan.rows.iter().all(is_sampled)
    }

    /// What the row of an answer asks for.
    pub(super) fn output(&self, answer: &Answer) -> &RowOutput {
        &self.plan.rows[answer.row as usize].output
    }

    pub(super) fn is_wanted(&self, answer: &Answer) -> bool {
        !self.late.is_cancelled(answer.row)
    }

    /// Whether logits of the position are needed.
    pub(super) fn is_sampled(&self, answer: &Answer) -> bool {
        let of_logits = matches!(
            self.output(answer),
            RowOutput::Sample { .. } | RowOutput::Score { .. }
        );
        of_logits && self.is_wanted(answer)
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done(_))
    }

    /// Whether the step, not yet done, writes `block`.
    pub(super) fn writes(&self, block: u32, block_size: usize) -> bool {
        let written = |span: &Span| {
            let start = span.start as usize;
            let blocks = start / block_size..(start + span.len).div_ceil(block_size);
            span.table[blocks].contains(&block)
        };
        !self.is_done()
            && (self.spans.iter().any(written) || self.plan.blocks.copies.iter().any(|(_, to)| *to == block))
    }

    /// Whether the step, not yet done, reads or writes `block`.
    pub(super) fn uses(&self, block: u32) -> bool {
        let copies = &self.plan.blocks.copies;
        !self.is_done()
            && (self.spans.iter().any(|span| span.table.contains(&block))
                || copies.iter().any(|(from, to)| [from, to].contains(&&block)))
    }
}
