//! A row of a step in flight.

use crate::schedule::SequenceId;
use crate::step::{PlanRow, RowOutput};

/// A row of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlannedRow {
    pub(super) sequence: SequenceId,
    /// How many of the last positions are answered.
    pub(super) answered: u32,
    /// Absolute position of the first token that is sampled, which is one past the first answered position.
    pub(super) position: u32,
    /// Whether its last position is sampled.
    pub(super) samples: bool,
    /// How many of the likeliest tokens are wanted beside each scored one; none where none is scored.
    pub(super) scores: Option<u16>,
    /// Where the row begins and ends, when it answers hidden states.
    pub(super) hidden: Option<(u32, u32)>,
    /// Nobody wants its answer.
    pub(super) cancelled: bool,
}

impl PlannedRow {
    pub(super) fn new(row: &PlanRow, sequence: SequenceId) -> Self {
        let answered = match &row.output {
            RowOutput::Sample { last, .. } => u32::from(*last),
            RowOutput::Score { ids, .. } => u32::try_from(ids.len()).unwrap_or(u32::MAX),
            RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => 0,
        };
        let end = row.start + u32::try_from(row.tokens.len()).unwrap_or(u32::MAX);
        Self {
            sequence,
            answered,
            position: end + 1 - answered.max(1),
            samples: matches!(row.output, RowOutput::Sample { .. }),
            scores: match &row.output {
                RowOutput::Score { top, .. } => Some(*top),
                _ => None,
            },
            hidden: matches!(row.output, RowOutput::Hidden | RowOutput::HiddenSum)
                .then_some((row.start, end)),
            cancelled: false,
        }
    }
}
