//! Tokens from the answers of all ranks.

use crate::collective::CollectiveError;
use crate::sampling::{Mass, Noise, Outcome, Sampled, SamplingError, SamplingParams, merge, sample_full_row};
use crate::step::{LogitShard, Plan, RowCandidates, StepOutput};

/// A sampled row of a plan, as its index, and what is known about it.
pub(super) struct Sampling<'a> {
    pub(super) row: u32,
    params: &'a SamplingParams,
    noise: Noise,
    candidates: Vec<&'a RowCandidates>,
}

/// What comes of one row.
pub(super) enum Choice {
    Token(Sampled),
    /// The model's output is unusable for this request.
    Unusable(SamplingError),
}

/// Check that every rank answered every sampled row, in plan order.
pub(super) fn check(plan: &Plan, outputs: &[StepOutput]) -> Result<(), CollectiveError> {
    let sampled = || {
        (0..)
            .zip(&plan.rows)
            .filter(|(_, row)| row.sample.is_some())
            .map(|(index, _): (u32, _)| index)
    };
    for (rank, output) in (0..).zip(outputs) {
        if !output
            .candidates
            .iter()
            .map(|candidates| candidates.row)
            .eq(sampled())
        {
            let reason = format!(
                "the answer to step {} has other rows than were sampled",
                plan.step
            );
            return Err(CollectiveError::Protocol { rank, reason });
        }
    }
    Ok(())
}

impl<'a> Sampling<'a> {
    /// The `nth` sampled row of a plan, row `row` of all. `outputs` are in rank order and checked.
    pub(super) fn new(
        plan: &Plan,
        (nth, row): (usize, u32),
        params: &'a SamplingParams,
        outputs: &'a [StepOutput],
    ) -> Self {
        let planned = &plan.rows[row as usize];
        // The new token's own position.
        let position = planned
            .start
            .saturating_add(u32::try_from(planned.tokens.len()).unwrap_or(u32::MAX));
        Self {
            row,
            params,
            noise: Noise::new(params.seed, position),
            candidates: outputs.iter().map(|output| &output.candidates[nth]).collect(),
        }
    }

    /// The token, or `None` when the full row is needed.
    pub(super) fn by_candidates(&self) -> Option<Choice> {
        match merge(self.params, self.noise, &self.candidates) {
            Ok(Outcome::Token(sampled)) => Some(Choice::Token(sampled)),
            Ok(Outcome::NeedFullRow) => None,
            Err(error) => Some(Choice::Unusable(error)),
        }
    }

    /// The token from everybody's part of the row.
    pub(super) fn by_row(&self, mut shards: Vec<LogitShard>) -> Choice {
        shards.sort_by_key(|shard| shard.first_token);
        let mut logits = Vec::new();
        for shard in shards {
            if shard.first_token as usize != logits.len() && !shard.logits.is_empty() {
                return Choice::Unusable(SamplingError::Inconsistent(
                    "the parts of the row leave a gap or overlap",
                ));
            }
            logits.extend(shard.logits);
        }
        let sampled = Mass::of_ranks(&self.candidates, self.params.logprobs)
            .and_then(|mass| sample_full_row(self.params, self.noise, &logits, &mass));
        match sampled {
            Ok(sampled) => Choice::Token(sampled),
            Err(error) => Choice::Unusable(error),
        }
    }
}
