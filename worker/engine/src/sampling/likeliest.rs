//! The likeliest tokens beside a sampled one, or those of a list, for log-probabilities.

use super::candidates::by_logit;
use super::mass::Mass;
use super::rounded;
use crate::step::RowCandidates;

/// The `count` likeliest tokens of a row with their log-probabilities at temperature 1, best first, ties by lower id. Each rank reports
/// at least as many of its own, so these are certain. Masked tokens are left out.
#[must_use]
pub fn likeliest(count: u16, ranks: &[RowCandidates], mass: &Mass) -> Vec<(u32, f32)> {
    let Some(total) = mass.raw.filter(|_| count > 0) else {
        return Vec::new();
    };
    let mut all: Vec<(u32, f32)> = ranks.iter().flat_map(|rank| &rank.top).copied().collect();
    all.retain(|(_, logit)| logit.is_finite());
    all.sort_unstable_by(by_logit);
    all.truncate(count.into());
    for (_, logit) in &mut all {
        *logit = rounded(f64::from(*logit) - total);
    }
    all
}

/// The log-probabilities at temperature 1 of these tokens, in their order, from a full row of logits. Masked tokens are left out.
#[must_use]
pub fn listed(tokens: &[u32], logits: &[f32], mass: &Mass) -> Vec<(u32, f32)> {
    let Some(total) = mass.raw else { return Vec::new() };
    let logit = |token: &u32| {
        let logit = logits.get(usize::try_from(*token).ok()?).copied();
        Some((*token, logit.filter(|logit| logit.is_finite())?))
    };
    let all = tokens.iter().filter_map(logit);
    all.map(|(token, logit)| (token, rounded(f64::from(logit) - total)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::candidates::{ShardLogits, candidates};
    use crate::sampling::{RowAnswers, SamplingParams};
    use crate::step::VOCAB_TILE;
    use llamero_checkpoint::Runs;

    #[test]
    fn the_likeliest_do_not_depend_on_the_ranks() {
        let params = SamplingParams {
            logprobs: Some(3),
            ..SamplingParams::greedy()
        };
        let mut logits: Vec<f32> = (0..2 * VOCAB_TILE)
            .map(|i| -((i * 37 % 251) as f32) / 8.0)
            .collect();
        logits[5] = f32::NEG_INFINITY;
        let tiles = |run: std::ops::Range<u32>| Runs::new([run]);
        let of = |run: std::ops::Range<u32>| {
            let part = &logits[run.start as usize * VOCAB_TILE..run.end as usize * VOCAB_TILE];
            candidates(
                (0, 0),
                ShardLogits {
                    tiles: &tiles(run),
                    logits: part,
                },
                &params.key(),
                1,
            )
        };
        let likeliest_of = |count: u16, ranks: Vec<RowCandidates>| {
            let answers: RowAnswers = ranks.into_iter().collect();
            likeliest(count, answers.ranks(), &answers.mass(false, true).unwrap())
        };
        let best = likeliest_of(3, vec![of(0..2)]);
        assert_eq!(best, likeliest_of(3, vec![of(1..2), of(0..1)]));
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let mut order: Vec<u32> = (0..).take(logits.len()).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for ((token, logprob), expected) in best.iter().zip(&order) {
            assert_eq!(token, expected);
            assert!((f64::from(*logprob) - (f64::from(logits[*token as usize]) - total.ln())).abs() < 1e-5);
        }
        assert_eq!(likeliest_of(0, vec![of(0..2)]), []);
        // Tokens by their ids have the same values to the last bit; one is masked, and one there is not.
        let answers: RowAnswers = [of(0..2)].into_iter().collect();
        let mass = answers.mass(false, true).unwrap();
        let asked = [best[2].0, 5, best[0].0, 1_000];
        assert_eq!(listed(&asked, &logits, &mass), [best[2], best[0]]);
    }
}
