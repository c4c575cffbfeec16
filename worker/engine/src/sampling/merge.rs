//! One token from the candidates of all ranks.

use super::candidates::by_logit;
use super::kept::{kept, winner};
use super::mass::Mass;
use super::{Noise, Sampled, SamplingError, SamplingParams};
use crate::step::{RowCandidates, TOP_CANDIDATES};

/// What the candidates tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The token, exactly the one that the full row would give.
    Token(Sampled),
    /// The candidates do not suffice: fetch the row from all ranks and call [`super::sample_full_row`].
    NeedFullRow,
}

/// Sample from the answers of all ranks to one row, in rank order. `noise` is that of the token's position.
///
/// # Errors
/// [`SamplingError`] when the logits are not finite or the answers do not fit together.
pub fn merge(
    params: &SamplingParams,
    noise: Noise,
    ranks: &[&RowCandidates],
) -> Result<Outcome, SamplingError> {
    let mass = Mass::of_ranks(ranks, params.logprobs)?;
    let Known { order, complete } = known_order(ranks)?;
    let &(best, best_logit) = order
        .first()
        .ok_or(SamplingError::Inconsistent("no candidates"))?;
    if !best_logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    if params.temperature == 0.0 {
        return Ok(Outcome::Token(sampled(best, best_logit, &mass)));
    }

    let (free, free_logit) = best_of_all(ranks)?;
    if !params.restricts() {
        return Ok(Outcome::Token(sampled(free, free_logit, &mass)));
    }
    let kept = kept(order.into_iter(), params, mass.scaled);
    // The winner over everything also wins over any set that contains it.
    if kept.tokens.iter().any(|&(id, _)| id == free) {
        return Ok(Outcome::Token(sampled(free, free_logit, &mass)));
    }
    if !kept.closed && !complete {
        return Ok(Outcome::NeedFullRow);
    }
    let (token, logit) = winner(&kept.tokens, noise, params.temperature)
        .ok_or(SamplingError::Inconsistent("no candidates"))?;
    Ok(Outcome::Token(sampled(token, logit, &mass)))
}

/// The tokens whose place in the order of the whole vocabulary is certain.
struct Known {
    order: Vec<(u32, f32)>,
    /// Whether that is every token with any probability.
    complete: bool,
}

/// Join the ranks' lists. A list that was cut at [`TOP_CANDIDATES`] says nothing about what follows its last entry, so
/// the order is certain up to the best of those last entries.
fn known_order(ranks: &[&RowCandidates]) -> Result<Known, SamplingError> {
    let mut order: Vec<(u32, f32)> = ranks.iter().flat_map(|rank| rank.top.iter().copied()).collect();
    if order
        .iter()
        .any(|&(_, logit)| logit.is_nan() || logit == f32::INFINITY)
    {
        return Err(SamplingError::NotFinite);
    }
    order.sort_unstable_by(by_logit);
    let last_certain = ranks
        .iter()
        .filter(|rank| rank.top.len() >= TOP_CANDIDATES)
        .filter_map(|rank| rank.top.last())
        // Behind a masked token there are only masked ones.
        .filter(|(_, logit)| *logit != f32::NEG_INFINITY)
        .min_by(|a, b| by_logit(a, b));
    if let Some(last) = last_certain {
        let certain = order.partition_point(|entry| by_logit(entry, last).is_le());
        order.truncate(certain);
    }
    Ok(Known {
        complete: last_certain.is_none(),
        order,
    })
}

/// The best perturbed token of all ranks, ties by lower id.
fn best_of_all(ranks: &[&RowCandidates]) -> Result<(u32, f32), SamplingError> {
    let mut best: Option<(u32, f32, f32)> = None;
    for rank in ranks {
        let Some((id, value, logit)) = rank.gumbel else {
            return Err(SamplingError::Inconsistent("a rank sampled greedily"));
        };
        if best.is_none_or(|(best_id, best_value, _)| {
            value > best_value || (value == best_value && id < best_id)
        }) {
            best = Some((id, value, logit));
        }
    }
    best.map(|(id, _, logit)| (id, logit))
        .ok_or(SamplingError::Inconsistent("no candidates"))
}

pub(super) fn sampled(token: u32, logit: f32, mass: &Mass) -> Sampled {
    Sampled {
        token,
        logprob: mass.raw.map(|total| (f64::from(logit) - total) as f32),
    }
}
