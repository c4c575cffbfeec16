//! One step in flight and what its rows belong to.

use std::time::Instant;

use super::merge::Merging;
use super::requests::Requests;
use super::row::PlannedRow;
use crate::schedule::{Batch, LateToken, Scheduler, SequenceId};
use crate::step::Late;

pub(super) struct PlannedStep {
    pub(super) number: u64,
    pub(super) rows: Vec<PlannedRow>,
    /// What the late tokens are, by their index; empty once they are sent.
    pub(super) late: Vec<LateToken>,
    /// Whether sampling values are still to be sent.
    pub(super) sampling_due: bool,
    /// Tokens of all rows.
    pub(super) tokens: u32,
    /// Rows and drafts of a step in which everybody decodes.
    pub(super) decoding: Option<(usize, usize)>,
    /// When the members had all they needed to begin.
    pub(super) began: Instant,
    /// Once the answers are there.
    pub(super) merging: Option<Merging>,
}

impl PlannedStep {
    pub(super) fn new(number: u64, batch: &Batch, requests: &Requests, now: Instant) -> Self {
        let rows: Vec<PlannedRow> = batch
            .rows
            .iter()
            .zip(&batch.sequences)
            .map(|(row, sequence)| PlannedRow::new(row, *sequence))
            .collect();
        let drafts: usize = rows.iter().map(|row| row.drafts.len()).sum();
        let decodes = batch.tokens() as usize == rows.len() + drafts;
        Self {
            number,
            decoding: (decodes && rows.iter().all(|row| row.samples)).then_some((rows.len(), drafts)),
            sampling_due: rows
                .iter()
                .any(|row| row.samples && requests.adjusts(row.sequence)),
            rows,
            late: batch.late.clone(),
            tokens: batch.tokens(),
            began: now,
            merging: None,
        }
    }

    pub(super) fn late_tokens(&self) -> u32 {
        u32::try_from(self.late.len()).unwrap_or(u32::MAX)
    }

    /// Whether its late tokens are all sampled, and not sent yet. A sequence that ended needs none any more.
    pub(super) fn is_due(&self, scheduler: &Scheduler) -> bool {
        let awaited = |late: &LateToken| scheduler.awaits(late.sequence, late.position);
        !self.late.is_empty() && !self.late.iter().any(awaited)
    }

    /// The values of the late tokens, which earlier steps have sampled.
    pub(super) fn late_values(&mut self, scheduler: &Scheduler) -> Option<Late> {
        if self.late.is_empty() {
            return None;
        }
        let late = std::mem::take(&mut self.late);
        let value = |late: LateToken| scheduler.token(late.sequence, late.position).unwrap_or(0);
        Some(Late::Tokens(late.into_iter().map(value).collect()))
    }

    /// Sampling values by the present histories, when they are due.
    pub(super) fn sampling(&mut self, requests: &mut Requests) -> Option<Late> {
        if !std::mem::take(&mut self.sampling_due) {
            return None;
        }
        let (mut biases, mut masks, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row) in (0..).zip(&mut self.rows) {
            if !row.samples || row.cancelled {
                continue;
            }
            let all = requests.adjustments(row.sequence, &row.drafts);
            row.adjusted = row.adjusted.min(u32::try_from(all.len()).unwrap_or(u32::MAX));
            for (offset, adjustment) in (0..).zip(all) {
                let place = (index, offset);
                if !adjustment.biases.is_empty() {
                    biases.push((place, adjustment.biases));
                }
                let repeated = adjustment.repeated;
                repetitions.extend(repeated.map(|(penalty, tokens)| (place, penalty, tokens)));
                masks.extend(adjustment.mask.map(|mask| (place, mask)));
            }
        }
        Some(Late::Sampling {
            biases,
            masks,
            repetitions,
        })
    }

    /// Cancel the rows of these sequences; returns their indices.
    pub(super) fn cancel(&mut self, sequences: &[SequenceId]) -> Vec<u32> {
        let mut cancelled = Vec::new();
        for (index, row) in (0..).zip(&mut self.rows) {
            if !row.cancelled && sequences.contains(&row.sequence) {
                row.cancelled = true;
                cancelled.push(index);
            }
        }
        cancelled
    }
}
