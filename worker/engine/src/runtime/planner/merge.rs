//! Tokens from the answers of all ranks.

use super::choice::{Choice, Chosen};
use super::requests::Requests;
use super::row::PlannedRow;
use crate::mesh::MeshError;
use crate::sampling::{
    Mass, Noise, Outcome, Sampled, SamplingParams, join_shards, likeliest, merge, sample_full_row,
};
use crate::step::{LogitShard, RowCandidates, StepOutput};

/// One rank's answered positions in the order of the plan's rows; none where a cancelled row was left out.
pub(super) type Answers = Vec<Option<RowCandidates>>;

/// The answers to a step and what is known by them.
pub(super) struct Merging {
    answers: Vec<Answers>,
    /// By row; none for rows that sample nothing, that nobody wants, or that wait for their full row.
    pub(super) choices: Vec<Option<Choice>>,
    /// Rows whose candidates did not suffice, with the place of their candidates in [`Answers`].
    fetching: Vec<(usize, usize)>,
}

impl Merging {
    pub(super) fn by_candidates(rows: &[PlannedRow], answers: Vec<Answers>, requests: &Requests) -> Self {
        let mut fetching = Vec::new();
        let mut choices = Vec::with_capacity(rows.len());
        let mut nth = 0;
        for (index, row) in rows.iter().enumerate() {
            let at = nth;
            nth += row.answered as usize;
            let params = requests.sampling(row.sequence);
            let choice = match params.filter(|_| row.samples && !row.cancelled) {
                None => None,
                Some(params) => {
                    let candidates = candidates(&answers, at);
                    match merge(params, noise(params, row), &candidates) {
                        Ok(Outcome::Token(sampled)) => Some(chosen(params, sampled, &candidates)),
                        Ok(Outcome::NeedFullRow) => {
                            fetching.push((index, at));
                            None
                        }
                        Err(error) => Some(Err(error)),
                    }
                }
            };
            choices.push(choice);
        }
        Self {
            answers,
            choices,
            fetching,
        }
    }

    /// Rows whose logits are wanted of everybody.
    pub(super) fn wanted(&self) -> impl Iterator<Item = u32> {
        let rows = self.fetching.iter();
        rows.map(|(row, _)| u32::try_from(*row).unwrap_or(u32::MAX))
    }

    /// Sample the rows whose logits have come from everybody.
    pub(super) fn take_rows(
        &mut self,
        mut shards: impl FnMut(u32) -> Option<Vec<LogitShard>>,
        rows: &[PlannedRow],
        requests: &Requests,
    ) {
        let (answers, choices) = (&self.answers, &mut self.choices);
        self.fetching.retain(|(index, at)| {
            let Some(shards) = shards(u32::try_from(*index).unwrap_or(u32::MAX)) else {
                return true;
            };
            let row = &rows[*index];
            // Gone when it was cancelled meanwhile.
            if let Some(params) = requests.sampling(row.sequence) {
                choices[*index] = Some(by_row(params, row, &candidates(answers, *at), &shards));
            }
            false
        });
    }
}

fn by_row(
    params: &SamplingParams,
    row: &PlannedRow,
    candidates: &[&RowCandidates],
    shards: &[LogitShard],
) -> Choice {
    let logits = join_shards(shards)?;
    let mass = Mass::of_ranks(candidates, params.needs_mass(), params.logprobs.is_some())?;
    let sampled = sample_full_row(params, noise(params, row), &logits, &mass)?;
    chosen(params, sampled, candidates)
}

fn chosen(params: &SamplingParams, sampled: Sampled, candidates: &[&RowCandidates]) -> Choice {
    let top = match params.logprobs {
        Some(count) if count > 0 => likeliest(count, candidates, &Mass::of_ranks(candidates, false, true)?),
        _ => Vec::new(),
    };
    Ok(Chosen { sampled, top })
}

fn noise(params: &SamplingParams, row: &PlannedRow) -> Noise {
    Noise::new(params.seed, row.position)
}

/// What each rank says about an answered position.
fn candidates(answers: &[Answers], at: usize) -> Vec<&RowCandidates> {
    answers.iter().filter_map(|rank| rank[at].as_ref()).collect()
}

/// Check that every rank of the last stage answered every position that was asked for, in order, and nothing else.
pub(super) fn align(
    number: u64,
    rows: &[PlannedRow],
    outputs: Vec<(u32, StepOutput)>,
) -> Result<Vec<Answers>, MeshError> {
    let asked = || {
        let rows = (0_u32..).zip(rows);
        rows.flat_map(|(index, row)| (0..row.answered).map(move |offset| (index, offset, row.cancelled)))
    };
    let mut answers = Vec::with_capacity(outputs.len());
    for (rank, output) in outputs {
        let mut given = output.candidates.into_iter().peekable();
        let mut aligned: Answers = Vec::with_capacity(given.len());
        for (row, offset, cancelled) in asked() {
            let answer = given.next_if(|answer| answer.row == row && answer.offset == offset);
            if answer.is_none() && !cancelled {
                let reason = format!("row {row} of step {number} is not answered, or not in order");
                return Err(MeshError::Protocol { rank, reason });
            }
            aligned.push(answer);
        }
        if let Some(more) = given.next() {
            let reason = format!("row {} of step {number} is answered unasked", more.row);
            return Err(MeshError::Protocol { rank, reason });
        }
        answers.push(aligned);
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SequenceId;

    fn row(answered: u32, cancelled: bool) -> PlannedRow {
        PlannedRow {
            sequence: SequenceId(0),
            answered,
            position: 9,
            samples: true,
            cancelled,
        }
    }

    fn output(places: &[(u32, u32)]) -> StepOutput {
        let candidates = places.iter().map(|(row, offset)| RowCandidates {
            row: *row,
            offset: *offset,
            ..RowCandidates::default()
        });
        StepOutput {
            candidates: candidates.collect(),
            hidden: Vec::new(),
        }
    }

    #[test]
    fn every_asked_position_is_answered_once_and_in_order() {
        // Drafts or scores, a chunk of prefill, a row that nobody wants any more, and one token.
        let rows = [row(2, false), row(0, false), row(1, true), row(1, false)];
        let full = [(0, 0), (0, 1), (2, 0), (3, 0)];
        let without = [(0, 0), (0, 1), (3, 0)];
        let answers = align(4, &rows, vec![(2, output(&full)), (3, output(&without))]).unwrap();
        let at = |at| candidates(&answers, at).len();
        assert_eq!([at(0), at(1), at(2), at(3)], [2, 2, 1, 2]);
        let wrong: [&[(u32, u32)]; 5] = [
            &[(0, 0), (3, 0)],
            &[(0, 1), (0, 0), (3, 0)],
            &[(0, 0), (0, 1), (0, 2), (3, 0)],
            &[(0, 0), (0, 1), (1, 0), (3, 0)],
            &[(0, 0), (0, 1), (3, 0), (3, 0)],
        ];
        for places in wrong {
            match align(4, &rows, vec![(2, output(&full)), (3, output(places))]) {
                Err(MeshError::Protocol { rank: 3, .. }) => {}
                other => panic!("{places:?}: {}", other.is_ok()),
            }
        }
    }
}
