//! Total probability mass of a row.

use super::SamplingError;
use super::noise::scale;
use crate::step::{RowCandidates, VOCAB_TILE};

/// Log-sum-exp over the whole vocabulary, in f64; none where the ranks were not asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mass {
    /// Of `logit / temperature`.
    pub scaled: Option<f64>,
    /// Of the unscaled logits.
    pub raw: Option<f64>,
}

/// Which of a rank's values per tile.
type Values = fn(&RowCandidates) -> &[f32];

impl Mass {
    /// From the tiles of all ranks, in any order. The sums are taken in tile order, so they do not depend on the
    /// sharding.
    ///
    /// # Errors
    /// [`SamplingError::Inconsistent`] when tiles are missing or given twice, [`SamplingError::NotFinite`] when a mass
    /// is not finite.
    pub fn of_ranks(ranks: &[&RowCandidates], scaled: bool, raw: bool) -> Result<Self, SamplingError> {
        let total = |values: Values| join(&in_tile_order(ranks, values)?).map(Some);
        Ok(Self {
            scaled: if scaled {
                total(|rank| &rank.tile_lse)?
            } else {
                None
            },
            raw: if raw {
                total(|rank| &rank.tile_lse_raw)?
            } else {
                None
            },
        })
    }
}

/// One value for each tile of the vocabulary.
fn in_tile_order(ranks: &[&RowCandidates], values: Values) -> Result<Vec<f32>, SamplingError> {
    let tiles: usize = ranks.iter().map(|rank| values(rank).len()).sum();
    let mut all: Vec<Option<f32>> = vec![None; tiles];
    for rank in ranks {
        if rank.tiles.len() as usize != values(rank).len() {
            return Err(SamplingError::Inconsistent(
                "a rank gave another number of masses than it has tiles",
            ));
        }
        for (tile, value) in rank.tiles.iter().zip(values(rank)) {
            match all.get_mut(tile as usize) {
                Some(place @ None) => *place = Some(*value),
                _ => {
                    return Err(SamplingError::Inconsistent(
                        "the vocabulary tiles leave a gap or overlap",
                    ));
                }
            }
        }
    }
    // As many values as places and none twice: every place is filled.
    Ok(all.into_iter().flatten().collect())
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

fn join(tiles: &[f32]) -> Result<f64, SamplingError> {
    let best = f64::from(tiles.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = tiles.iter().map(|tile| (f64::from(*tile) - best).exp()).sum();
    let total = best + sum.ln();
    if total.is_finite() {
        Ok(total)
    } else {
        Err(SamplingError::NotFinite)
    }
}
