//! Total probability mass of a row.

use llamero_checkpoint::Runs;

use super::SamplingError;
use super::noise::scale;
use crate::leaf_tree;
use crate::log_sum::LogSum;
use crate::step::{MassRoot, RowCandidates, VOCAB_TILE};

/// No tree over the tiles of 2³² tokens is deeper.
const TREE_DEPTH: usize = 26;

/// Log-sum-exp over the whole vocabulary, in f64; none where the ranks were not asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mass {
    /// Of `logit / temperature`.
    pub scaled: Option<f64>,
    /// Of the unscaled logits.
    pub raw: Option<f64>,
}

impl Mass {
    /// From the roots of all ranks, in any order. They are joined in the tree over all tiles, so the bits do not depend
    /// on the sharding.
    ///
    /// # Errors
    /// [`SamplingError::Inconsistent`] when tiles are missing or given twice, [`SamplingError::NotFinite`] when a mass
    /// is not finite.
    pub fn of_ranks(ranks: &[&RowCandidates], scaled: bool, raw: bool) -> Result<Self, SamplingError> {
        let total = |wanted: bool, roots: fn(&RowCandidates) -> &[MassRoot]| {
            wanted
                .then(|| total(ranks.iter().map(|rank| roots(rank))))
                .transpose()
        };
        Ok(Self {
            scaled: total(scaled, |rank| &rank.mass)?,
            raw: total(raw, |rank| &rank.mass_raw)?,
        })
    }
}

fn total<'a>(of_ranks: impl Iterator<Item = &'a [MassRoot]>) -> Result<f64, SamplingError> {
    // What is left of each rank's list.
    let mut rest: Vec<&[MassRoot]> = of_ranks.filter(|list| !list.is_empty()).collect();
    let (mut next, mut roots) = (0, Vec::with_capacity(TREE_DEPTH));
    while !rest.is_empty() {
        let goes_on = |list: &&[MassRoot]| list.first().is_some_and(|(tree, _)| tree.start == next);
        let Some(index) = rest.iter().position(goes_on) else {
            return Err(SamplingError::Inconsistent(
                "the vocabulary tiles leave a gap or overlap",
            ));
        };
        while let Some(((tree, sum), after)) = rest[index].split_first()
            && tree.start == next
        {
            if !leaf_tree::is_complete(tree) {
                return Err(SamplingError::Inconsistent(
                    "a mass is not that of a complete subtree of tiles",
                ));
            }
            next = tree.end;
            rest[index] = after;
            leaf_tree::append(&mut roots, (tree.clone(), *sum), LogSum::join);
        }
        if rest[index].is_empty() {
            rest.swap_remove(index);
        }
    }
    let total = leaf_tree::crown(roots, LogSum::join)
        .ok_or(SamplingError::Inconsistent("no rank gave a mass"))?
        .ln();
    if total.is_finite() {
        Ok(total)
    } else {
        Err(SamplingError::NotFinite)
    }
}

/// What a rank sends for its `tiles`, whose log-sum-exps are `tile_lse` in ascending order: the sums of the maximal
/// complete subtrees.
#[must_use]
pub fn roots(tiles: &Runs, tile_lse: impl IntoIterator<Item = f32>) -> Vec<MassRoot> {
    let mut roots = Vec::new();
    for (tile, lse) in tiles.iter().zip(tile_lse) {
        leaf_tree::append(&mut roots, (tile..tile + 1, LogSum::of(lse)), LogSum::join);
    }
    roots
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

/// [`roots`] of the `tiles` with these logits, each divided by `temperature` first (0: as they are).
#[must_use]
pub(super) fn of_shard(tiles: &Runs, logits: &[f32], temperature: f32) -> Vec<MassRoot> {
    roots(
        tiles,
        logits.chunks(VOCAB_TILE).map(|tile| tile_lse(tile, temperature)),
    )
}
