//! A row of a step in flight.

use crate::schedule::SequenceId;
use crate::step::{PlanRow, RowOutput, TokenRef};

/// A row of a step.
#[derive(Debug, Clone)]
pub(super) struct PlannedRow {
    pub(super) sequence: SequenceId,
    /// How many of the last positions are answered.
    pub(super) answered: u32,
    /// Absolute position of the first token that is sampled, which is one past the first answered position.
    pub(super) position: u32,
    /// Whether its last position is sampled.
    pub(super) samples: bool,
    /// Guessed tokens behind its first one, whose positions are sampled too.
    pub(super) drafts: Vec<u32>,
    /// How many of the answered positions have the biases and masks that belong to them.
    pub(super) adjusted: u32,
    /// How many of the likeliest tokens are wanted beside each scored one; none where none is scored.
    pub(super) scores: Option<u16>,
    /// Where the row begins and ends, when it answers hidden states.
    pub(super) hidden: Option<(u32, u32)>,
    /// Nobody wants its answer.
    pub(super) cancelled: bool,
}

impl PlannedRow {
    pub(super) fn new(row: &PlanRow, sequence: SequenceId) -> Self {
        // Hidden states are answered apart.
        let answered = match &row.output {
            RowOutput::Sample { .. } | RowOutput::Score { .. } => count(row.answered()),
            RowOutput::None | RowOutput::Hidden | RowOutput::HiddenSum => 0,
        };
        let end = row.start + count(row.tokens.len());
        Self {
            sequence,
            answered,
            position: end + 1 - answered.max(1),
            samples: matches!(row.output, RowOutput::Sample { .. }),
            drafts: drafts(row),
            adjusted: answered,
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

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

/// The tokens behind the first of those positions that are sampled.
fn drafts(row: &PlanRow) -> Vec<u32> {
    let RowOutput::Sample { last, .. } = row.output else {
        return Vec::new();
    };
    let from = (row.tokens.len() + 1).saturating_sub(usize::from(last));
    let drafts = row.tokens.iter().skip(from);
    drafts
        .filter_map(|token| match token {
            TokenRef::Known(token) => Some(*token),
            TokenRef::Late(_) => None,
        })
        .collect()
}
