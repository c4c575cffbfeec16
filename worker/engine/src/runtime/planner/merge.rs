//! Tokens from the answers of all ranks.

use std::collections::BTreeMap;

use super::choice::{Answered, Choice, Chosen};
use super::requests::Requests;
use super::row::PlannedRow;
use crate::mesh::MeshError;
use crate::sampling::{
    Noise, Outcome, RowAnswers, Sampled, SamplingError, SamplingParams, join_shards, likeliest, listed,
    merge, sample_full_row, scored,
};
use crate::step::{LogitShard, Place, StepOutput};

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
    /// Rows whose candidates did not suffice.
    fetching: Vec<Fetching>,
}

/// A row that waits for the full logits of one of its positions: of the one behind those that are chosen.
struct Fetching {
    /// Index of the row.
    row: usize,
    /// Where its answers begin.
    at: usize,
    chosen: Vec<Chosen>,
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
            let Some(answers) = self.answers.get(at..nth) else {
                choices.push((!row.cancelled).then_some(Err(NOT_ANSWERED)));
                continue;
            };
            if let Some(top) = row.scores.filter(|_| !row.cancelled) {
                let scores = answers.iter().map(|answers| scored(top, answers));
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
                // Without a token it would look like a piece of a prompt, and stand still.
                if answers.is_empty() {
                    return Some(Err(NOT_ANSWERED));
                }
                let mut chosen = Vec::new();
                match follow(params, row, answers, &mut chosen) {
                    Ok(Followed::ToItsEnd) => Some(Ok(Answered::Tokens(chosen))),
                    Ok(Followed::NeedsFullRow) => {
                        self.fetching.push(Fetching {
                            row: index,
                            at,
                            chosen,
                        });
                        None
                    }
                    Err(error) => Some(Err(error)),
                }
            }));
        }
        self.choices = Some(choices);
    }

    /// Positions whose logits are wanted of everybody.
    pub(super) fn wanted(&self) -> impl Iterator<Item = Place> {
        self.fetching.iter().map(Fetching::place)
    }

    /// Sample the positions whose logits have come from everybody. Returns those whose logits are wanted next.
    pub(super) fn take_rows(
        &mut self,
        mut shards: impl FnMut(Place) -> Option<Vec<LogitShard>>,
        rows: &[PlannedRow],
        requests: &Requests,
    ) -> Vec<Place> {
        let (answers, Some(choices)) = (&self.answers, &mut self.choices) else {
            return Vec::new();
        };
        let mut more = Vec::new();
        self.fetching.retain_mut(|fetching| {
            let Some(shards) = shards(fetching.place()) else {
                return true;
            };
            let (Some(row), Some(choice)) = (rows.get(fetching.row), choices.get_mut(fetching.row)) else {
                return false;
            };
            // Gone when it was cancelled meanwhile.
            let Some(params) = requests.sampling(row.sequence) else {
                return false;
            };
            let answers = answers.get(fetching.at..).unwrap_or_default();
            let Some(answers) = answers.get(..row.answered as usize) else {
                *choice = Some(Err(NOT_ANSWERED));
                return false;
            };
            let chosen = &mut fetching.chosen;
            let next = answers.get(chosen.len()).ok_or(NOT_ASKED_FOR);
            let followed = match next.and_then(|next| by_row(params, row, next, chosen.len(), &shards)) {
                Ok(token) => {
                    chosen.push(token);
                    follow(params, row, answers, chosen)
                }
                Err(error) => fail(error, chosen),
            };
            *choice = Some(match followed {
                Ok(Followed::NeedsFullRow) => {
                    more.push(fetching.place());
                    return true;
                }
                Ok(Followed::ToItsEnd) => Ok(Answered::Tokens(std::mem::take(chosen))),
                Err(error) => Err(error),
            });
            false
        });
        more
    }
}

impl Fetching {
    fn place(&self) -> Place {
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        (number(self.row), number(self.chosen.len()))
    }
}

/// Fewer positions are answered than the row asks for.
const NOT_ANSWERED: SamplingError = SamplingError::Inconsistent("a position is not answered");
/// A full row has come for a position behind those that the row answers.
const NOT_ASKED_FOR: SamplingError = SamplingError::Inconsistent("nobody asked for this position's logits");

/// How far a row was sampled.
enum Followed {
    ToItsEnd,
    /// The candidates of the next position do not suffice.
    NeedsFullRow,
}

/// Sample a row's positions behind those that are chosen, as long as each draft is the token that was chosen for its place. What is known
/// of a position behind a wrong draft is of no use.
fn follow(
    params: &SamplingParams,
    row: &PlannedRow,
    answers: &[RowAnswers],
    chosen: &mut Vec<Chosen>,
) -> Result<Followed, SamplingError> {
    loop {
        let offset = chosen.len();
        let last = chosen.last().map(|chosen| chosen.sampled.token);
        let goes_on = match offset.checked_sub(1) {
            None => true,
            Some(draft) => row.drafts.get(draft).copied() == last && offset < row.adjusted as usize,
        };
        let Some(answers) = answers.get(offset).filter(|_| goes_on) else {
            return Ok(Followed::ToItsEnd);
        };
        let merged = match params.listed.is_empty() {
            true => merge(params, noise(params, row, offset), answers),
            false => Ok(Outcome::NeedFullRow),
        };
        match merged.and_then(|outcome| match outcome {
            Outcome::Token(sampled) => with_likeliest(params, sampled, answers).map(Some),
            Outcome::NeedFullRow => Ok(None),
        }) {
            Ok(Some(token)) => chosen.push(token),
            Ok(None) => return Ok(Followed::NeedsFullRow),
            Err(error) => return fail(error, chosen),
        }
    }
}

/// A position cannot be sampled. Tokens before it come first; then it is tried again, and ends its answer.
fn fail(error: SamplingError, chosen: &[Chosen]) -> Result<Followed, SamplingError> {
    if chosen.is_empty() {
        return Err(error);
    }
    Ok(Followed::ToItsEnd)
}

fn by_row(
    params: &SamplingParams,
    row: &PlannedRow,
    answers: &RowAnswers,
    offset: usize,
    shards: &[LogitShard],
) -> Result<Chosen, SamplingError> {
    let logits = join_shards(shards)?;
    let mass = answers.mass(params.needs_mass(), params.logprobs.is_some())?;
    let sampled = sample_full_row(params, noise(params, row, offset), &logits, &mass)?;
    if params.listed.is_empty() {
        return with_likeliest(params, sampled, answers);
    }
    let top = listed(&params.listed, &logits, &mass);
    Ok(Chosen { sampled, top })
}

fn with_likeliest(
    params: &SamplingParams,
    sampled: Sampled,
    answers: &RowAnswers,
) -> Result<Chosen, SamplingError> {
    let top = match params.logprobs {
        Some(count) if count > 0 => likeliest(count, answers.ranks(), &answers.mass(false, true)?),
        _ => Vec::new(),
    };
    Ok(Chosen { sampled, top })
}

fn noise(params: &SamplingParams, row: &PlannedRow, offset: usize) -> Noise {
    let offset = u32::try_from(offset).unwrap_or(u32::MAX);
    Noise::new(params.seed, row.position.saturating_add(offset))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runtime::queue::QueueGauge;
    use crate::schedule::SequenceId;
    use crate::step::RowCandidates;

    fn row(answered: u32, cancelled: bool) -> PlannedRow {
        PlannedRow {
            sequence: SequenceId(0),
            answered,
            position: 9,
            samples: true,
            drafts: Vec::new(),
            adjusted: answered,
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

    #[test]
    fn a_row_whose_answers_are_missing_is_told_so() {
        let scored = PlannedRow {
            scores: Some(0),
            ..row(1, false)
        };
        let mut merging = Merging::new(&[], 1);
        let requests = Requests::new(Arc::default(), Arc::new(QueueGauge::new(1, 1)), None);
        merging.choose(&[row(1, false), row(1, true), scored], &requests);
        let choices = merging.choices.unwrap();
        assert!(matches!(
            choices.as_slice(),
            [
                Some(Err(SamplingError::Inconsistent(_))),
                None,
                Some(Err(SamplingError::Inconsistent(_)))
            ]
        ));
    }
}
