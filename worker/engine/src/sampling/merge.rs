//! One token from the candidates of all ranks.

use super::candidates::by_logit;
use super::kept::{kept, winner};
use super::mass::Mass;
use super::{Noise, Sampled, SamplingError, SamplingParams};
use crate::step::RowCandidates;

/// What the candidates tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The token, exactly the one that the full row would give.
    Token(Sampled),
    /// The candidates do not suffice: fetch the row from all ranks and call [`super::sample_full_row`].
    NeedFullRow,
}

/// Sample from the answers of all ranks to one position. `noise` is that of the new token's position.
///
/// # Errors
/// [`SamplingError`] when the logits are not finite or the answers do not fit together.
pub fn merge(
    params: &SamplingParams,
    noise: Noise,
    ranks: &[&RowCandidates],
) -> Result<Outcome, SamplingError> {
    let mass = Mass::of_ranks(ranks, params.needs_mass(), params.logprobs)?;
    if params.temperature == 0.0 {
        let best = ranks.iter().filter_map(|rank| rank.top.first());
        let (token, logit) = best
            .min_by(|a, b| by_logit(a, b))
            .ok_or(SamplingError::Inconsistent("no candidates"))?;
        return sampled(*token, *logit, &mass).map(Outcome::Token);
    }
    let (free, free_logit) = best_of_all(ranks)?;
    let free_token = sampled(free, free_logit, &mass)?;
    if !params.restricts() {
        return Ok(Outcome::Token(free_token));
    }
    let Known { order, complete } = known_order(ranks, params.key().top.into())?;
    if order.first().is_none_or(|(_, logit)| !logit.is_finite()) {
        return Err(SamplingError::NotFinite);
    }
    let kept = kept(order.into_iter(), params, mass.scaled);
    // The winner over everything also wins over any set that contains it.
    if kept.tokens.iter().any(|&(id, _)| id == free) {
        return Ok(Outcome::Token(free_token));
    }
    if !kept.closed && !complete {
        return Ok(Outcome::NeedFullRow);
    }
    let (token, logit) = winner(&kept.tokens, noise, params.temperature)
        .ok_or(SamplingError::Inconsistent("no candidates"))?;
    sampled(token, logit, &mass).map(Outcome::Token)
}

/// The tokens whose place in the order of the whole vocabulary is certain.
struct Known {
    order: Vec<(u32, f32)>,
    /// Whether that is every token with any probability.
    complete: bool,
}

/// Join the ranks' lists of up to `longest` entries. A list that was cut says nothing about what follows its last entry,
/// so the order is certain up to the best of those last entries.
fn known_order(ranks: &[&RowCandidates], longest: usize) -> Result<Known, SamplingError> {
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
        .filter(|rank| rank.top.len() >= longest)
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

/// The best perturbed token of all ranks, ties by lower id; NaN comes first.
fn best_of_all(ranks: &[&RowCandidates]) -> Result<(u32, f32), SamplingError> {
    // A rank whose share is empty has none.
    let best = ranks.iter().filter_map(|rank| rank.gumbel);
    best.min_by(|a, b| by_logit(&(a.0, a.1), &(b.0, b.1)))
        .map(|(id, _, logit)| (id, logit))
        .ok_or(SamplingError::Inconsistent("no rank sampled with noise"))
}

pub(super) fn sampled(token: u32, logit: f32, mass: &Mass) -> Result<Sampled, SamplingError> {
    if !logit.is_finite() {
        return Err(SamplingError::NotFinite);
    }
    Ok(Sampled {
        token,
        logprob: mass.raw.map(|total| (f64::from(logit) - total) as f32),
    })
}
