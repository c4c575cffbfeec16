//! Candidates of one sampled position, from this rank's logits.
//!
//! Gives what [`llamero_engine::sampling::candidates`] defines, without sorting the vocabulary and without drawing noise for
//! tokens that cannot win.

use llamero_checkpoint::Runs;
use llamero_engine::late_values::Adjustments;
use llamero_engine::sampling::candidates::by_logit;
use llamero_engine::sampling::mass;
use llamero_engine::sampling::noise::{MAX_GUMBEL, Noise, scale};
use llamero_engine::sampling::penalties::repeated;
use llamero_engine::step::{MassRoot, Place, RowCandidates, SampleKey, VOCAB_TILE};

use crate::kernel::math::{exp, ln};
use crate::kernel::{Kernel, vector};

/// Apply repetition penalties, biases and masks of an answered position to its logits, which are those of the tokens `vocab`.
pub(crate) fn adjust(logits: &mut [f32], vocab: &Runs, adjustments: &Adjustments, place: Place) {
    for (penalty, tokens) in adjustments.repetitions(place) {
        for at in tokens.iter().filter_map(|token| vocab.position(*token)) {
            let logit = &mut logits[at as usize];
            *logit = repeated(*logit, penalty);
        }
    }
    for (token, bias) in adjustments.bias_sums(place) {
        if let Some(at) = vocab.position(token) {
            logits[at as usize] += bias;
        }
    }
    for mask in adjustments.masks(place) {
        for (token, logit) in vocab.iter().zip(&mut *logits) {
            let bits = mask.get(token as usize / 8);
            if bits.is_none_or(|bits| bits >> (token % 8) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// This rank's logits of one position.
#[derive(Clone, Copy)]
pub(crate) struct ShardRow<'a> {
    pub(crate) kernel: Kernel,
    /// The vocabulary tiles, and their tokens.
    pub(crate) tiles: &'a Runs,
    pub(crate) vocab: &'a Runs,
    /// Biases and masks applied, in the order of `vocab`.
    pub(crate) logits: &'a [f32],
}

impl<'a> ShardRow<'a> {
    /// The answer to a sampled position; `position` is that of the token to be sampled.
    pub(crate) fn candidates(
        self,
        (row, offset): (u32, u32),
        key: &SampleKey,
        position: u32,
    ) -> RowCandidates {
        let top = self.top(key.top);
        RowCandidates {
            row,
            offset,
            gumbel: (key.temperature > 0.0)
                .then(|| self.best_perturbed(key, position))
                .flatten(),
            top,
            mass: if key.mass {
                self.mass(key.temperature)
            } else {
                Vec::new()
            },
            mass_raw: if key.logprobs { self.mass(0.0) } else { Vec::new() },
            scored: None,
        }
    }

    /// The answer to a scored position, whose token is `id`.
    pub(crate) fn scored(self, (row, offset): (u32, u32), id: u32, top: u16) -> RowCandidates {
        RowCandidates {
            row,
            offset,
            top: self.top(top),
            mass: Vec::new(),
            mass_raw: self.mass(0.0),
            gumbel: None,
            scored: self.vocab.position(id).map(|at| self.logits[at as usize]),
        }
    }

    fn tokens(self) -> impl Iterator<Item = (u32, f32)> + 'a {
        let mut rest = self.logits;
        self.vocab.as_slice().iter().flat_map(move |run| {
            let (part, after) = rest.split_at(run.len());
            rest = after;
            run.clone().zip(part.iter().copied())
        })
    }

    fn mass(self, temperature: f32) -> Vec<MassRoot> {
        let tiles = self.logits.chunks(VOCAB_TILE);
        mass::roots(
            self.tiles,
            tiles.map(|tile| log_sum_exp(self.kernel, tile, temperature)),
        )
    }

    /// The `count` best tokens in the order of [`by_logit`].
    fn top(self, count: u16) -> Vec<(u32, f32)> {
        let count = usize::from(count);
        if count == 0 {
            return Vec::new();
        }
        let most = 4 * count;
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(most);
        let mut threshold = None;
        for (token, logit) in self.tokens() {
            // Tokens come in ascending order, so an equal logit loses to what is there. NaN passes, to be noticed.
            if threshold.is_some_and(|threshold| logit <= threshold) {
                continue;
            }
            best.push((token, logit));
            if best.len() == most {
                best.select_nth_unstable_by(count - 1, by_logit);
                best.truncate(count);
                threshold = Some(best[count - 1].1);
            }
        }
        best.sort_unstable_by(by_logit);
        best.truncate(count);
        best
    }

    /// The token with the largest `logit / temperature + noise`, ties by lower id.
    fn best_perturbed(self, key: &SampleKey, position: u32) -> Option<(u32, f32, f32)> {
        let noise = Noise::new(key.seed, position);
        let (token, logit) = *self.top(1).first()?;
        let mut best = (token, noise.perturb(token, logit, key.temperature), logit);
        for (token, logit) in self.tokens() {
            let needed = best.1 - scale(logit, key.temperature);
            if needed > MAX_GUMBEL {
                continue;
            }
            // To be `needed` or more, -ln(-ln u) wants -ln u <= e^-needed, and -ln u is never below 1 - u. The margin
            // covers the rounding of both sides.
            let distance = (u32::MAX - noise.bits(token)) as f32 * 2.0f32.powi(-32);
            if distance > exp(-needed) * 1.0001 + 1e-6 {
                continue;
            }
            let perturbed = noise.perturb(token, logit, key.temperature);
            if by_logit(&(token, perturbed), &(best.0, best.1)).is_lt() {
                best = (token, perturbed, logit);
            }
        }
        Some(best)
    }
}

/// `ln Σ e^(logit / temperature)` of one tile (of the logits themselves for temperature 0).
fn log_sum_exp(kernel: Kernel, tile: &[f32], temperature: f32) -> f32 {
    let divisor = if temperature > 0.0 { temperature } else { 1.0 };
    let (max, sum) = vector::sum_exp(kernel, tile, divisor);
    if max == f32::NEG_INFINITY || !sum.is_finite() {
        // All masked, or some not a number, which must not pass for masked.
        return if tile.iter().any(|x| x.is_nan()) {
            f32::NAN
        } else {
            max
        };
    }
    (f64::from(max) + ln(sum)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use llamero_engine::sampling::candidates as defined;

    fn logits(n: u32, seed: u32, spread: f32) -> Vec<f32> {
        (0..n)
            .map(|i| {
                let bits = (i ^ seed.wrapping_mul(40_503)).wrapping_mul(2_654_435_761);
                // Coarse steps, so that ties happen.
                ((bits ^ bits >> 15).wrapping_mul(739_982_445) >> 18) as f32 / 16384.0 * spread
            })
            .collect()
    }

    fn key(seed: u32, temperature: f32, top: u16, all: bool) -> SampleKey {
        SampleKey {
            seed: u64::from(seed),
            temperature,
            top,
            mass: all,
            logprobs: all,
        }
    }

    #[test]
    fn equal_to_the_definition() {
        for seed in 0..60u32 {
            // One run of tiles, two with a gap, and a last tile that is not full.
            let (tiles, tokens) = match seed % 3 {
                0 => (Runs::from(2..3), 50),
                1 => (Runs::from(2..26), 3000),
                _ => (Runs::new([1..5, 9..15]), 1280),
            };
            let mut row = logits(tokens, seed, [1.0, 10.0, 60.0][seed as usize % 3]);
            if seed % 7 == 0 {
                row[20..40].fill(f32::NEG_INFINITY);
            }
            let limit = match seed % 3 {
                0 => 2 * 128 + 50,
                1 => 2 * 128 + 3000,
                _ => u32::MAX,
            };
            let vocab = tiles.scaled(128, limit);
            let shard = ShardRow {
                kernel: Kernel::detect(),
                tiles: &tiles,
                vocab: &vocab,
                logits: &row,
            };
            let definition = defined::ShardLogits {
                tiles: &tiles,
                logits: &row,
            };
            let temperature = [0.0, 0.7, 1.0, 2.5][seed as usize % 4];
            let key = key(
                seed,
                temperature,
                [64, 1, 0, 7][seed as usize / 4 % 4],
                seed % 5 != 0,
            );
            let got = shard.candidates((3, 1), &key, 17);
            close(&got, &defined::candidates((3, 1), definition, &key, 17));
            let id = vocab.iter().nth(30).unwrap();
            close(
                &shard.scored((3, 1), id, 5),
                &defined::scored((3, 1), definition, id, 5),
            );
            close(
                &shard.scored((3, 1), 9_999, 0),
                &defined::scored((3, 1), definition, 9_999, 0),
            );
        }
    }

    /// Equal but for the rounding of log-sum-exps.
    fn close(got: &RowCandidates, want: &RowCandidates) {
        for (got, want) in [(&got.mass, &want.mass), (&got.mass_raw, &want.mass_raw)] {
            assert_eq!(got.len(), want.len());
            for ((got_tree, got), (want_tree, want)) in got.iter().zip(want) {
                assert_eq!(got_tree, want_tree);
                let (got, want) = (got.ln(), want.ln());
                assert!(got == want || (got - want).abs() < 1e-5 * want.abs().max(1.0));
            }
        }
        let mut got = got.clone();
        got.mass.clone_from(&want.mass);
        got.mass_raw.clone_from(&want.mass_raw);
        assert_eq!(got, *want);
    }

    #[test]
    fn a_nan_is_noticed() {
        let mut row = logits(3000, 1, 10.0);
        row[2999] = f32::NAN;
        let shard = ShardRow {
            kernel: Kernel::detect(),
            tiles: &Runs::from(0..24),
            vocab: &Runs::from(0..3000),
            logits: &row,
        };
        let got = shard.candidates((0, 0), &key(1, 1.0, 64, true), 17);
        assert!(got.top[0].1.is_nan());
        assert!(got.mass.last().unwrap().1.ln().is_nan());
    }

    #[test]
    fn biases_and_masks_count_in_the_whole_vocabulary() {
        let adjustments = Adjustments {
            biases: vec![
                ((1, 2), vec![(9, 1.5), (11, 0.25), (11, 0.25)]),
                ((1, 1), vec![(8, 9.0)]),
            ],
            masks: vec![((1, 2), vec![0xff, 0b1111_1101])],
            repetitions: vec![((1, 2), 2.0, vec![10, 11]), ((0, 2), 9.0, vec![8])],
        };
        let vocab = Runs::from(8..12);
        let mut row = [0.0; 4];
        adjust(&mut row, &vocab, &adjustments, (1, 2));
        assert_eq!(row, [0.0, f32::NEG_INFINITY, 0.0, 0.5]);
        adjust(&mut row, &vocab, &adjustments, (1, 0));
        assert_eq!(row, [0.0, f32::NEG_INFINITY, 0.0, 0.5]);
        let mut row = [0.0; 5];
        adjust(&mut row, &Runs::new([0..2, 9..12]), &adjustments, (1, 2));
        assert_eq!(row, [0.0, 0.0, f32::NEG_INFINITY, 0.0, 0.5]);
        // The penalty comes before the bias.
        let mut row = [1.0, 1.0, -1.0, 4.0];
        adjust(&mut row, &vocab, &adjustments, (1, 2));
        assert_eq!(row, [1.0, f32::NEG_INFINITY, -2.0, 2.5]);
    }
}
