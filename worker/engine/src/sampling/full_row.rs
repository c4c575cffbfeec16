//! One token from a full row of logits, with the meaning of [`super::merge()`].

use super::candidates::by_logit;
use super::kept::{kept, winner};
use super::mass::Mass;
use super::merge::sampled;
use super::{Noise, Sampled, SamplingError, SamplingParams};
use crate::step::LogitShard;

/// The row of logits from the parts of all ranks, in any order.
///
/// # Errors
/// [`SamplingError::Inconsistent`] when the parts do not make up one row.
pub fn join_shards(shards: &[LogitShard]) -> Result<Vec<f32>, SamplingError> {
    let wrong = SamplingError::Inconsistent("the parts of the row leave a gap or overlap");
    let mut row: Vec<Option<f32>> = vec![None; shards.iter().map(|shard| shard.logits.len()).sum()];
    for shard in shards {
        if shard.tokens.len() as usize != shard.logits.len() {
            return Err(wrong);
        }
        for (token, logit) in shard.tokens.iter().zip(&shard.logits) {
            match row.get_mut(token as usize) {
                Some(place @ None) => *place = Some(*logit),
                _ => return Err(wrong),
            }
        }
    }
    Ok(row.into_iter().flatten().collect())
}

/// Sample from a whole row: `logits[i]` is the unscaled logit of token `i`, biases and masks applied. `mass` is that of
/// the candidates of the same row, so that both ways agree to the last bit.
///
/// # Errors
/// [`SamplingError::NotFinite`] when a logit is NaN or +∞ or all are −∞.
pub fn sample_full_row(
    params: &SamplingParams,
    noise: Noise,
    logits: &[f32],
    mass: &Mass,
) -> Result<Sampled, SamplingError> {
    if logits.iter().any(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(SamplingError::NotFinite);
    }
    let mut order: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let (token, logit) = if params.temperature == 0.0 {
        order.iter().copied().min_by(by_logit)
    } else if params.restricts() {
        order.sort_unstable_by(by_logit);
        winner(
            &kept(order.into_iter(), params, mass.scaled).tokens,
            noise,
            params.temperature,
        )
    } else {
        winner(&order, noise, params.temperature)
    }
    .ok_or(SamplingError::NotFinite)?;
    sampled(token, logit, mass)
}
