//! One step on its way through a rank: submitted, run through the layers, sampled.

use llamero_engine::kv_state::{Answer, answers};
use llamero_engine::late_values::LateValues;
use llamero_engine::pooling;
use llamero_engine::{LogitShard, Plan, RowOutput, StepOutput, Ticket};

use crate::attention::Span;
use crate::forward::Model;
use crate::kernel::math::from_bf16;
use crate::lora::Segment;
use crate::pool::Pool;
use crate::sample::{ShardRow, adjust};
use crate::workspace::LOGIT_ROWS;

/// A step that is submitted and not yet released.
pub(super) struct Step {
    pub(super) ticket: Ticket,
    pub(super) plan: Plan,
    /// The tables as of this step: later plans may change them before it is computed.
    pub(super) spans: Vec<Span>,
    /// The adapters of its rows, which others may forget before it is computed.
    pub(super) segments: Vec<Segment>,
    pub(super) late: LateValues,
    pub(super) phase: Phase,
}

/// How far a step is.
pub(super) enum Phase {
    /// Nothing is computed.
    Submitted,
    /// The layers are computed: final norms of the answered positions, as pairs, in order of [`Step::answers`];
    /// none before the last stage of a pipeline.
    Forwarded(Vec<u32>),
    /// Sampled.
    Done(Vec<u32>, StepOutput),
}

impl Step {
    pub(super) fn new(ticket: Ticket, plan: &Plan, spans: Vec<Span>, segments: Vec<Segment>) -> Self {
        Self {
            ticket,
            plan: plan.clone(),
            spans,
            segments,
            late: LateValues::of(plan),
            phase: Phase::Submitted,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done(..))
    }

    /// Indices in the batch of the answered positions.
    pub(super) fn answered_tokens(&self) -> Vec<usize> {
        self.answers().iter().map(|answer| answer.token).collect()
    }

    /// In order of (row, offset).
    fn answers(&self) -> Vec<Answer> {
        answers(&self.plan)
    }

    /// What is asked of an answered position's row.
    fn output(&self, answer: Answer) -> &RowOutput {
        let row = self.plan.rows.get(answer.row as usize);
        row.map_or(&RowOutput::None, |row| &row.output)
    }

    /// Whether the step, not yet computed, writes `block`, as far as is known: blocks behind the end of a table may be any.
    pub(super) fn writes(&self, block: u32, block_size: usize) -> bool {
        let written = |span: &Span| {
            let blocks = span.start / block_size..(span.start + span.len).div_ceil(block_size);
            let table = span.table.get(blocks);
            table.is_none_or(|table| table.contains(&block))
        };
        matches!(self.phase, Phase::Submitted)
            && (self.spans.iter().any(written) || self.plan.blocks.copies.iter().any(|(_, to)| *to == block))
    }

    /// Whether the step, not yet computed, reads or writes `block`.
    pub(super) fn uses(&self, block: u32) -> bool {
        let copies = &self.plan.blocks.copies;
        matches!(self.phase, Phase::Submitted)
            && (self.spans.iter().any(|span| span.table.contains(&block))
                || copies.iter().any(|(from, to)| [from, to].contains(&&block)))
    }

    /// Answer all wanted positions, when their final norms and everything they wait for are there. False when biases
    /// and masks are missing.
    pub(super) fn sample(&mut self, model: &Model<'_>, pool: &mut Pool, logits: &mut [f32]) -> bool {
        if !model.shape.has_head && matches!(self.phase, Phase::Forwarded(_)) {
            // The last stage answers for all.
            self.phase = Phase::Done(Vec::new(), StepOutput::default());
            return true;
        }
        let (Phase::Forwarded(_), Some(adjustments)) = (&self.phase, self.late.adjustments()) else {
            return false;
        };
        let Phase::Forwarded(normed) = std::mem::replace(&mut self.phase, Phase::Submitted) else {
            return false;
        };
        let stride = model.shape.hidden / 2;
        let mut output = StepOutput::default();
        let mut wanted = Vec::new();
        let floats = |state: &[u32]| -> Vec<f32> {
            let pairs = state.iter();
            pairs
                .flat_map(|pair| {
                    [
                        from_bf16((*pair & 0xffff) as u16),
                        from_bf16((*pair >> 16) as u16),
                    ]
                })
                .collect()
        };
        for (answer, state) in self.answers().into_iter().zip(normed.chunks_exact(stride)) {
            if self.late.is_cancelled(answer.row) {
                continue;
            }
            match self.output(answer) {
                RowOutput::Hidden if model.shape.index == 0 => {
                    let values = floats(state).into_iter().map(f64::from);
                    output.hidden.push((answer.row, values.collect()));
                }
                RowOutput::HiddenSum if model.shape.index == 0 => {
                    if answer.offset == 0 {
                        output.hidden.push((answer.row, vec![0.0; model.shape.hidden]));
                    }
                    if let Some((_, sum)) = output.hidden.last_mut() {
                        pooling::add(sum, floats(state));
                    }
                }
                RowOutput::Hidden | RowOutput::HiddenSum | RowOutput::None => {}
                RowOutput::Sample { .. } | RowOutput::Score { .. } => wanted.push((answer, state)),
            }
        }
        let width = model.shape.vocab_width();
        for wanted in wanted.chunks(LOGIT_ROWS) {
            let states: Vec<u32> = wanted.iter().flat_map(|(_, state)| *state).copied().collect();
            #[expect(
                clippy::indexing_slicing,
                reason = "forming makes room for so many rows of logits"
            )]
            let logits = &mut logits[..wanted.len() * width];
            model.logits(pool, &states, logits);
            for ((answer, _), logits) in wanted.iter().zip(logits.chunks_exact_mut(width)) {
                adjust(
                    logits,
                    &model.shape.vocab,
                    adjustments,
                    (answer.row, answer.offset),
                );
                output.candidates.extend(self.answer(model, *answer, logits));
            }
        }
        self.phase = Phase::Done(normed, output);
        true
    }

    fn answer(
        &self,
        model: &Model<'_>,
        answer: Answer,
        logits: &[f32],
    ) -> Option<llamero_engine::RowCandidates> {
        let shard = ShardRow {
            kernel: model.kernel,
            tiles: &model.shape.vocab_tiles,
            vocab: &model.shape.vocab,
            logits,
        };
        let place = (answer.row, answer.offset);
        match self.output(answer) {
            RowOutput::Sample { key, .. } => Some(shard.candidates(place, key, answer.next)),
            RowOutput::Score { ids, top } => {
                let id = ids.get(answer.offset as usize)?;
                Some(shard.scored(place, *id, *top))
            }
            RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => None,
        }
    }

    /// The logits of a sampled position, computed once more: they are needed too rarely to be kept.
    pub(super) fn fetch(
        &self,
        model: &Model<'_>,
        pool: &mut Pool,
        (row, offset): (u32, u32),
        logits: &mut [f32],
    ) -> Result<LogitShard, String> {
        let Phase::Done(normed, _) = &self.phase else {
            return Err("it is not computed".into());
        };
        if !model.shape.has_head {
            return Err("the last stage has the head, and this rank is of an earlier one".into());
        }
        let index = self
            .answers()
            .iter()
            .position(|answer| (answer.row, answer.offset) == (row, offset));
        let sampled = self
            .plan
            .rows
            .get(row as usize)
            .is_some_and(|row| matches!(row.output, RowOutput::Sample { .. }));
        let Some(index) = index.filter(|_| sampled) else {
            return Err(format!("position {offset} of row {row} was not sampled"));
        };
        let stride = model.shape.hidden / 2;
        let (Some(normed), Some(logits)) = (
            normed.chunks_exact(stride).nth(index),
            logits.get_mut(..model.shape.vocab_width()),
        ) else {
            return Err(format!("position {offset} of row {row} was not computed"));
        };
        model.logits(pool, normed, logits);
        if let Some(adjustments) = self.late.adjustments() {
            adjust(logits, &model.shape.vocab, adjustments, (row, offset));
        }
        Ok(LogitShard {
            tokens: model.shape.vocab.clone(),
            logits: logits.to_vec(),
        })
    }
}
