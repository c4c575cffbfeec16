//! What a rank answers for a sampled position, in plain code. Backends may compute it in other ways; `top` and `gumbel`
//! are defined exactly, `tile_lse` up to the rounding of the backend's numerics class.

use std::cmp::Ordering;

use super::mass;
use super::noise::Noise;
use crate::step::{RowCandidates, SampleKey, TOP_CANDIDATES, VOCAB_TILE};

/// The order of candidates: higher logit first, ties by lower id. NaN comes first, so that it is noticed.
#[must_use]
pub fn by_logit(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    let values = match (a.1.is_nan(), b.1.is_nan()) {
        (false, false) => b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal),
        (a_nan, b_nan) => b_nan.cmp(&a_nan),
    };
    values.then(a.0.cmp(&b.0))
}

/// The answer of a rank whose vocabulary shard starts at `first_token` (a multiple of the tile width) and has the given
/// logits (biases and masks applied). `position` is that of the token to be sampled.
#[must_use]
pub fn candidates(
    row: u32,
    first_token: u32,
    logits: &[f32],
    key: &SampleKey,
    position: u32,
) -> RowCandidates {
    let mut order: Vec<(u32, f32)> = (first_token..).zip(logits.iter().copied()).collect();
    let gumbel = (key.temperature > 0.0)
        .then(|| {
            let noise = Noise::new(key.seed, position);
            order
                .iter()
                .map(|&(id, logit)| (id, noise.perturb(id, logit, key.temperature), logit))
                .min_by(|a, b| by_logit(&(a.0, a.1), &(b.0, b.1)))
        })
        .flatten();
    if order.len() > TOP_CANDIDATES {
        order.select_nth_unstable_by(TOP_CANDIDATES - 1, by_logit);
        order.truncate(TOP_CANDIDATES);
    }
    order.sort_unstable_by(by_logit);
    RowCandidates {
        row,
        top: order,
        first_tile: first_token / VOCAB_TILE as u32,
        tile_lse: mass::tiles(logits, key.temperature),
        tile_lse_raw: if key.logprobs {
            mass::tiles(logits, 0.0)
        } else {
            Vec::new()
        },
        gumbel,
    }
}
