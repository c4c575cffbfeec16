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

/// The values of all tiles of the vocabulary, as runs of consecutive tiles in order.
fn in_tile_order<'a>(ranks: &[&'a RowCandidates], values: Values) -> Result<Vec<&'a [f32]>, SamplingError> {
    let mut runs: Vec<(u32, &[f32])> = Vec::with_capacity(ranks.len());
    for rank in ranks {
        let mut rest = values(rank);
        for run in rank.tiles.as_slice() {
            let Some((these, others)) = rest.split_at_checked((run.end - run.start) as usize) else {
                return Err(SamplingError::Inconsistent(
                    "a rank gave fewer masses than it has tiles",
                ));
            };
            runs.push((run.start, these));
            rest = others;
        }
        if !rest.is_empty() {
            return Err(SamplingError::Inconsistent(
                "a rank gave more masses than it has tiles",
            ));
        }
    }
    runs.sort_unstable_by_key(|(start, _)| *start);
    let mut next = 0;
    for (start, values) in &runs {
        if *start as usize != next {
            return Err(SamplingError::Inconsistent(
                "the vocabulary tiles leave a gap or overlap",
            ));
        }
        next += values.len();
    }
    Ok(runs.into_iter().map(|(_, values)| values).collect())
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

fn join(runs: &[&[f32]]) -> Result<f64, SamplingError> {
    let tiles = || runs.iter().copied().flatten().copied();
    let best = f64::from(tiles().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = tiles().map(|tile| (f64::from(tile) - best).exp()).sum();
    let total = best + sum.ln();
    if total.is_finite() {
        Ok(total)
    } else {
        Err(SamplingError::NotFinite)
    }
}
