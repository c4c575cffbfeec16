//! Candidates of one sampled position, from this rank's logits.
//!
//! Gives what [`llamero_engine::sampling::candidates`] defines, without sorting the vocabulary and without drawing noise for
//! tokens that cannot win.

use std::collections::BTreeMap;

use llamero_engine::sampling::candidates::by_logit;
use llamero_engine::sampling::noise::{MAX_GUMBEL, Noise, scale};
use llamero_engine::step::{Late, RowCandidates, SampleKey, TOP_CANDIDATES, VOCAB_TILE};

use crate::kernel::math::{exp, ln};
use crate::kernel::{Kernel, vector};

/// Add the biases and apply the masks of plan row `row` to its logits, whose first belongs to token `first`.
pub(crate) fn adjust(late: &Late, row: u32, first: usize, logits: &mut [f32]) {
    let biases = late
        .biases
        .iter()
        .filter(|(of, _)| *of == row)
        .flat_map(|(_, biases)| biases);
    // Several biases of one token add up in the order given, so that the sum does not depend on the sharding.
    let mut sums: BTreeMap<usize, f32> = BTreeMap::new();
    for (token, bias) in biases {
        *sums.entry(*token as usize).or_default() += bias;
    }
    for (token, bias) in sums.range(first..first + logits.len()) {
        logits[token - first] += bias;
    }
    for (_, mask) in late.masks.iter().filter(|(of, _)| *of == row) {
        for (i, logit) in logits.iter_mut().enumerate() {
            let token = first + i;
            if mask
                .get(token / 8)
                .is_none_or(|bits| bits >> (token % 8) & 1 == 0)
            {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The candidates of a row; `position` is that of the token to be sampled, `first` the first token of the shard.
pub(crate) fn candidates(
    kernel: Kernel,
    row: u32,
    first: u32,
    logits: &[f32],
    key: &SampleKey,
    position: u32,
) -> RowCandidates {
    let top = top(first, logits);
    let tiles = |temperature: f32| {
        logits
            .chunks(VOCAB_TILE)
            .map(|tile| log_sum_exp(kernel, tile, temperature))
            .collect()
    };
    RowCandidates {
        row,
        gumbel: (key.temperature > 0.0)
            .then(|| best_perturbed(first, logits, key, position, &top))
            .flatten(),
        top,
        first_tile: first / VOCAB_TILE as u32,
        tile_lse: tiles(key.temperature),
        tile_lse_raw: if key.logprobs { tiles(0.0) } else { Vec::new() },
    }
}

/// The best tokens in the order of [`by_logit`].
fn top(first: u32, logits: &[f32]) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(4 * TOP_CANDIDATES);
    let mut threshold = None;
    for (token, logit) in (first..).zip(logits) {
        // Tokens come in ascending order, so an equal logit loses to what is there. NaN passes, to be noticed.
        if threshold.is_some_and(|threshold| *logit <= threshold) {
            continue;
        }
        best.push((token, *logit));
        if best.len() == 4 * TOP_CANDIDATES {
            best.select_nth_unstable_by(TOP_CANDIDATES - 1, by_logit);
            best.truncate(TOP_CANDIDATES);
            threshold = Some(best[TOP_CANDIDATES - 1].1);
        }
    }
    best.sort_unstable_by(by_logit);
    best.truncate(TOP_CANDIDATES);
    best
}

/// The token with the largest `logit / temperature + noise`, ties by lower id.
fn best_perturbed(
    first: u32,
    logits: &[f32],
    key: &SampleKey,
    position: u32,
    top: &[(u32, f32)],
) -> Option<(u32, f32, f32)> {
    let noise = Noise::new(key.seed, position);
    let (token, logit) = *top.first()?;
    let mut best = (token, noise.perturb(token, logit, key.temperature), logit);
    for (token, logit) in (first..).zip(logits.iter().copied()) {
        let needed = best.1 - scale(logit, key.temperature);
        if needed > MAX_GUMBEL {
            continue;
        }
        // To be `needed` or more, -ln(-ln u) wants -ln u <= e^-needed, and -ln u is never below 1 - u. The margin covers
        // the rounding of both sides.
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

    #[test]
    fn equal_to_the_definition() {
        for seed in 0..60u32 {
            let mut row = logits(
                if seed % 3 == 0 { 50 } else { 3000 },
                seed,
                [1.0, 10.0, 60.0][seed as usize % 3],
            );
            if seed % 7 == 0 {
                row[20..40].fill(f32::NEG_INFINITY);
            }
            let temperature = [0.0, 0.7, 1.0, 2.5][seed as usize % 4];
            let key = SampleKey {
                seed: u64::from(seed),
                temperature,
                logprobs: true,
            };
            let got = candidates(Kernel::detect(), 3, 256, &row, &key, 17);
            let want = defined::candidates(3, 256, &row, &key, 17);
            assert_eq!(got.top, want.top);
            assert_eq!(got.gumbel, want.gumbel, "seed {seed}");
            assert_eq!(got.first_tile, want.first_tile);
            for (got, want) in [
                (&got.tile_lse, &want.tile_lse),
                (&got.tile_lse_raw, &want.tile_lse_raw),
            ] {
                assert_eq!(got.len(), want.len());
                assert!(
                    got.iter()
                        .zip(want)
                        .all(|(a, b)| a == b || (a - b).abs() < 1e-5 * b.abs().max(1.0))
                );
            }
        }
    }

    #[test]
    fn a_nan_is_noticed() {
        let mut row = logits(3000, 1, 10.0);
        row[2999] = f32::NAN;
        let key = SampleKey {
            seed: 1,
            temperature: 1.0,
            logprobs: false,
        };
        let got = candidates(Kernel::detect(), 0, 0, &row, &key, 17);
        assert!(got.top[0].1.is_nan());
        assert!(got.tile_lse.last().unwrap().is_nan());
    }

    #[test]
    fn biases_and_masks_count_in_the_whole_vocabulary() {
        let late = Late {
            tokens: vec![],
            biases: vec![(1, vec![(9, 1.5), (11, 0.25), (11, 0.25)]), (0, vec![(8, 9.0)])],
            masks: vec![(1, vec![0xff, 0b1111_1101])],
        };
        let mut row = [0.0; 4];
        adjust(&late, 1, 8, &mut row);
        assert_eq!(row, [0.0, f32::NEG_INFINITY, 0.0, 0.5]);
        adjust(&late, 2, 8, &mut row);
        assert_eq!(row, [0.0, f32::NEG_INFINITY, 0.0, 0.5]);
    }
}
