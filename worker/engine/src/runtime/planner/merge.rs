//! Tokens from the answers of all ranks.

use std::collections::BTreeMap;

use super::choice::{Answered, Choice, Chosen};
use super::requests::Requests;
use super::row::PlannedRow;
use crate::mesh::MeshError;
use crate::sampling::{
    Noise, Outcome, RowAnswers, Sampled, SamplingError, SamplingParams, join_shards, likeliest, merge,
    sample_full_row, scored,
};
use crate::step::{LogitShard, StepOutput};

/// The answers to a step and what is known by them. They are put together as they come, so that little is left to be done
/// when the last one does.
pub(super) struct Merging {
    /// By answered position, in the order of the plan's rows.
    answers: Vec<RowAnswers>,
    /// Hidden states that have come, by row.
    hidden: BTreeMap<u32, Vec<f64>>,
    /// Once every rank has answered, by row; none for rows that answer nothing, that nobody wants, or that wait for their full
    /// row.
    pub(super) choices: Option<Vec<Option<Choice>>>,
    /// Rows whose candidates did not suffice, with the place of their answers.
    fetching: Vec<(usize, usize)>,
}

impl Merging {
    /// Nobody has answered yet; `ranks` will.
    pub(super) fn new(rows: &[PlannedRow], ranks: usize) -> Self {
        let answered: usize = rows.iter().map(|row| row.answered as usize).sum();
        Self {
            answers: (0..answered).map(|_| RowAnswers::of_ranks(ranks)).collect(),
            hidden: BTreeMap::new(),
            choices: None,
            fetching: Vec::new(),
        }
    }

    /// The answers of a rank of the last stage. It must have answered every position that was asked for, in order, and nothing
    /// else; cancelled rows may be left out.
    pub(super) fn add(
        &mut self,
        rank: u32,
        output: StepOutput,
        step: u64,
        rows: &[PlannedRow],
    ) -> Result<(), MeshError> {
        for (row, values) in output.hidden {
            let asked = rows.get(row as usize).is_some_and(|row| row.hidden.is_some());
            if !asked || self.hidden.insert(row, values).is_some() {
                let reason = format!("hidden states of row {row} of step {step} came twice, or unasked");
                return Err(MeshError::Protocol { rank, reason });
            }
        }
        let mut given = output.candidates.into_iter().peekable();
        let mut answers = self.answers.iter_mut();
        for (row, planned) in (0_u32..).zip(rows) {
            for (offset, answers) in (0..planned.answered).zip(&mut answers) {
                match given.next_if(|answer| answer.row == row && answer.offset == offset) {
                    Some(answer) => answers.add(answer),
                    None if planned.cancelled => {}
                    None => {
                        let reason = format!("row {row} of step {step} is not answered, or not in order");
                        return Err(MeshError::Protocol { rank, reason });
                    }
                }
            }
        }
        match given.next() {
            None => Ok(()),
            Some(more) => {
                let reason = format!("row {} of step {step} is answered unasked", more.row);
                Err(MeshError::Protocol { rank, reason })
            }
        }
    }

    /// Sample all rows by their candidates, as far as those suffice.
    pub(super) fn choose(&mut self, rows: &[PlannedRow], requests: &Requests) {
        let mut choices = Vec::with_capacity(rows.len());
        let mut nth = 0;
        for (index, row) in rows.iter().enumerate() {
            let at = nth;
            nth += row.answered as usize;
            if let Some(top) = row.scores.filter(|_| !row.cancelled) {
                let scores = self.answers[at..nth].iter().map(|answers| scored(top, answers));
                choices.push(Some(scores.collect::<Result<_, _>>().map(Answered::Scores)));
                continue;
            }
            if row.hidden.is_some() && !row.cancelled {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                let hidden = self.hidden.remove(&index).map(Answered::Hidden);
                choices.push(Some(
                    hidden.ok_or(SamplingError::Inconsistent("no rank has answered hidden states")),
                ));
                continue;
            }
            let params = requests.sampling(row.sequence);
            let params = params.filter(|_| row.samples && !row.cancelled);
            choices.push(params.and_then(|params| {
                let answers = &self.answers[at];
                match merge(params, noise(params, row), answers) {
                    Ok(Outcome::Token(sampled)) => Some(chosen(params, sampled, answers)),
                    Ok(Outcome::NeedFullRow) => {
                        self.fetching.push((index, at));
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            }));
        }
        self.choices = Some(choices);
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
        let (answers, Some(choices)) = (&self.answers, &mut self.choices) else {
            return;
        };
        self.fetching.retain(|(index, at)| {
            let Some(shards) = shards(u32::try_from(*index).unwrap_or(u32::MAX)) else {
                return true;
            };
            let row = &rows[*index];
            // Gone when it was cancelled meanwhile.
            if let Some(params) = requests.sampling(row.sequence) {
                choices[*index] = Some(by_row(params, row, &answers[*at], &shards));
            }
            false
        });
    }
}

fn by_row(params: &SamplingParams, row: &PlannedRow, answers: &RowAnswers, shards: &[LogitShard]) -> Choice {
    let logits = join_shards(shards)?;
    let mass = answers.mass(params.needs_mass(), params.logprobs.is_some())?;
    let sampled = sample_full_row(params, noise(params, row), &logits, &mass)?;
    chosen(params, sampled, answers)
}

fn chosen(params: &SamplingParams, sampled: Sampled, answers: &RowAnswers) -> Choice {
    let top = match params.logprobs {
        Some(count) if count > 0 => likeliest(count, answers.ranks(), &answers.mass(false, true)?),
        _ => Vec::new(),
    };
    Ok(Answered::Token(Chosen { sampled, top }))
}

fn noise(params: &SamplingParams, row: &PlannedRow) -> Noise {
    Noise::new(params.seed, row.position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SequenceId;
    use crate::step::RowCandidates;

    fn row(answered: u32, cancelled: bool) -> PlannedRow {
        PlannedRow {
            sequence: SequenceId(0),
            answered,
            position: 9,
            samples: true,
            scores: None,
            hidden: None,
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
        let mut merging = Merging::new(&rows, 2);
        let full = [(0, 0), (0, 1), (2, 0), (3, 0)];
        let without = [(0, 0), (0, 1), (3, 0)];
        merging.add(2, output(&full), 4, &rows).unwrap();
        merging.add(3, output(&without), 4, &rows).unwrap();
        let ranks: Vec<usize> = merging.answers.iter().map(|row| row.ranks().len()).collect();
        assert_eq!(ranks, [2, 2, 1, 2]);
        let wrong: [&[(u32, u32)]; 5] = [
            &[(0, 0), (3, 0)],
            &[(0, 1), (0, 0), (3, 0)],
            &[(0, 0), (0, 1), (0, 2), (3, 0)],
            &[(0, 0), (0, 1), (1, 0), (3, 0)],
            &[(0, 0), (0, 1), (3, 0), (3, 0)],
        ];
        for places in wrong {
            match merging.add(3, output(places), 4, &rows) {
                Err(MeshError::Protocol { rank: 3, .. }) => {}
                other => panic!("{places:?}: {}", other.is_ok()),
            }
        }
    }
}
