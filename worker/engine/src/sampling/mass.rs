//! Total probability mass of a row.

use llamero_checkpoint::Runs;

use super::SamplingError;
use super::noise::scale;
use super::rounded;
use crate::leaf_tree;
use crate::log_sum::LogSum;
use crate::step::{MassRoot, VOCAB_TILE};

/// Log-sum-exp over the whole vocabulary, in f64; none where the ranks were not asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mass {
    /// Of `logit / temperature`.
    pub scaled: Option<f64>,
    /// Of the unscaled logits.
    pub raw: Option<f64>,
}

/// The sum over the tiles of the ranks that have answered so far, in any order. It is joined in the tree over all tiles, so
/// the bits depend neither on the sharding nor on who answers first.
#[derive(Debug, Clone, Default)]
pub(super) struct MassSoFar {
    /// Maximal complete subtrees of what has come, ascending.
    roots: Vec<MassRoot>,
    /// Why no sum can come of it.
    wrong: Option<&'static str>,
}

impl MassSoFar {
    /// The roots of one more rank, ascending.
    pub(super) fn add(&mut self, of_rank: &[MassRoot]) {
        let Some((first, _)) = of_rank.first() else { return };
        let before = self.roots.partition_point(|(tree, _)| tree.start < first.start);
        let mut behind = self.roots.split_off(before).into_iter().peekable();
        self.roots.reserve(of_rank.len() + behind.len());
        for (tree, sum) in of_rank {
            while let Some(root) = behind.next_if(|(other, _)| other.start < tree.start) {
                self.append(root);
            }
            self.append((tree.clone(), *sum));
        }
        for root in behind {
            self.append(root);
        }
    }

    fn append(&mut self, root: MassRoot) {
        if !leaf_tree::is_complete(&root.0) {
            self.wrong = Some("a mass is not that of a complete subtree of tiles");
        } else if self.roots.last().is_some_and(|(last, _)| last.end > root.0.start) {
            self.wrong = Some("the vocabulary tiles of the ranks overlap");
        } else {
            leaf_tree::append(&mut self.roots, root, LogSum::join);
        }
    }

    /// Log-sum-exp of the whole row, when all ranks have answered.
    ///
    /// # Errors
    /// [`SamplingError::Inconsistent`] when tiles are missing or were given twice, [`SamplingError::NotFinite`].
    pub(super) fn total(&self) -> Result<f64, SamplingError> {
        if let Some(wrong) = self.wrong {
            return Err(SamplingError::Inconsistent(wrong));
        }
        let mut next = 0;
        for (tree, _) in &self.roots {
            if tree.start != next {
                return Err(SamplingError::Inconsistent("vocabulary tiles are missing"));
            }
            next = tree.end;
        }
        let values = self.roots.iter().map(|(_, sum)| *sum);
        let total = leaf_tree::crown(values, LogSum::join)
            .ok_or(SamplingError::Inconsistent("no rank gave a mass"))?
            .ln();
        if total.is_finite() {
            Ok(total)
        } else {
            Err(SamplingError::NotFinite)
        }
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
    rounded(best + sum.ln())
}

/// [`roots`] of the `tiles` with these logits, each divided by `temperature` first (0: as they are).
#[must_use]
pub(super) fn of_shard(tiles: &Runs, logits: &[f32], temperature: f32) -> Vec<MassRoot> {
    roots(
        tiles,
        logits.chunks(VOCAB_TILE).map(|tile| tile_lse(tile, temperature)),
    )
}
