//! One token from a full row of logits, with the meaning of [`super::merge()`].

use super::candidates::by_logit;
use super::kept::{kept, winner};
use super::mass::Mass;
use super::merge::sampled;
use super::{Noise, Sampled, SamplingError, SamplingParams};

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
    .filter(|(_, logit)| logit.is_finite())
    .ok_or(SamplingError::NotFinite)?;
    Ok(sampled(token, logit, mass))
}
