//! Which tokens top-k, top-p and min-p keep.

use super::noise::{Noise, scale};
use super::params::SamplingParams;

/// A prefix of the tokens in order.
pub(super) struct Kept {
    /// (token id, unscaled logit), best first.
    pub(super) tokens: Vec<(u32, f32)>,
    /// Whether a rule ended the prefix; if not, the tokens given ran out first.
    pub(super) closed: bool,
}

/// Take tokens in order until a rule excludes one. Both ways of sampling use this one walk, so they sum the same
/// probabilities in the same order and agree on the last bit. `total` is the scaled mass of the row, which top-p needs.
pub(super) fn kept(
    order: impl Iterator<Item = (u32, f32)>,
    params: &SamplingParams,
    total: Option<f64>,
) -> Kept {
    let limit = if params.top_k == 0 {
        usize::MAX
    } else {
        params.top_k as usize
    };
    let mut tokens = Vec::new();
    let mut mass = 0.0_f64;
    let mut floor = f64::NEG_INFINITY;
    for (id, logit) in order {
        let scaled = f64::from(scale(logit, params.temperature));
        if tokens.is_empty() && params.min_p > 0.0 {
            floor = scaled + f64::from(params.min_p).ln();
        }
        let spent = params.top_p < 1.0 && mass >= f64::from(params.top_p);
        if tokens.len() == limit || spent || scaled < floor {
            return Kept { tokens, closed: true };
        }
        mass += total.map_or(0.0, |total| (scaled - total).exp());
        tokens.push((id, logit));
    }
    // The next token, whatever it is, would be excluded.
    let closed = tokens.len() == limit || (params.top_p < 1.0 && mass >= f64::from(params.top_p));
    Kept { tokens, closed }
}

/// The token with the best perturbed logit, ties by lower id.
pub(super) fn winner(tokens: &[(u32, f32)], noise: Noise, temperature: f32) -> Option<(u32, f32)> {
    let mut best: Option<(u32, f32, f32)> = None;
    for &(id, logit) in tokens {
        let value = noise.perturb(id, logit, temperature);
        if best.is_none_or(|(best_id, best_value, _)| {
            value > best_value || (value == best_value && id < best_id)
        }) {
            best = Some((id, value, logit));
        }
    }
    best.map(|(id, _, logit)| (id, logit))
}
