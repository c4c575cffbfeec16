//! Total probability mass of a row.

use super::SamplingError;
use super::noise::scale;
use crate::step::{RowCandidates, VOCAB_TILE};

/// Log-sum-exp over the whole vocabulary, in f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mass {
    /// Of `logit / temperature`.
    pub scaled: f64,
    /// Of the unscaled logits, when log-probabilities were asked for.
    pub raw: Option<f64>,
}

impl Mass {
    /// From the tiles of all ranks, which must be in rank order and cover the vocabulary from tile 0 without gaps. The sum is
    /// taken in tile order, so it does not depend on the sharding.
    ///
    /// # Errors
    /// [`SamplingError::Inconsistent`] when tiles are missing, [`SamplingError::NotFinite`] when the mass is.
    pub fn of_ranks(ranks: &[&RowCandidates], logprobs: bool) -> Result<Self, SamplingError> {
        let mut next = 0_usize;
        for rank in ranks {
            if rank.first_tile as usize != next {
                return Err(SamplingError::Inconsistent(
                    "the vocabulary tiles leave a gap or overlap",
                ));
            }
            if logprobs && rank.tile_lse_raw.len() != rank.tile_lse.len() {
                return Err(SamplingError::Inconsistent(
                    "log-probabilities were asked for, but tiles lack them",
                ));
            }
            next += rank.tile_lse.len();
        }
        let scaled = join(ranks.iter().flat_map(|rank| rank.tile_lse.iter().copied()))?;
        let raw = if logprobs {
            Some(join(
                ranks.iter().flat_map(|rank| rank.tile_lse_raw.iter().copied()),
            )?)
        } else {
            None
        };
        Ok(Self { scaled, raw })
    }
}

/// Log-sum-exp of one tile of logits, each divided by `temperature` first (0: as they are).
#[must_use]
pub fn tile_lse(logits: &[f32], temperature: f32) -> f32 {
    let best = logits.iter().fold(f32::NEG_INFINITY, |best, &x| best.max(x));
    if best == f32::NEG_INFINITY {
        // All masked, or all NaN, which must not pass for masked.
        return if logits.iter().any(|x| x.is_nan()) {
            f32::NAN
        } else {
            best
        };
    }
    let best = f64::from(scale(best, temperature));
    let sum: f64 = logits
        .iter()
        .map(|&x| (f64::from(scale(x, temperature)) - best).exp())
        .sum();
    (best + sum.ln()) as f32
}

/// [`tile_lse`] of every tile of a shard.
#[must_use]
pub fn tiles(logits: &[f32], temperature: f32) -> Vec<f32> {
    logits
        .chunks(VOCAB_TILE)
        .map(|tile| tile_lse(tile, temperature))
        .collect()
}

fn join(tiles: impl Iterator<Item = f32> + Clone) -> Result<f64, SamplingError> {
    let best = tiles.clone().fold(f32::NEG_INFINITY, f32::max);
    let best = f64::from(best);
    let sum: f64 = tiles.map(|tile| (f64::from(tile) - best).exp()).sum();
    let total = best + sum.ln();
    if total.is_finite() {
        Ok(total)
    } else {
        Err(SamplingError::NotFinite)
    }
}
