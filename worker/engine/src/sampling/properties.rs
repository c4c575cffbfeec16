//! Merged sampling is sampling from the full row, for any logits and any split over ranks.

use proptest::prelude::*;

use super::candidates::candidates;
use super::*;
use crate::step::{RowCandidates, VOCAB_TILE};

const POSITION: u32 = 11;

/// Answers of ranks that own the tiles between `cuts`.
fn split(logits: &[f32], cuts: &[usize], params: &SamplingParams) -> Vec<RowCandidates> {
    let tiles = logits.len().div_ceil(VOCAB_TILE);
    let mut bounds: Vec<usize> = cuts.iter().map(|cut| (cut % (tiles + 1)) * VOCAB_TILE).collect();
    bounds.extend([0, tiles * VOCAB_TILE]);
    bounds.sort_unstable();
    bounds.dedup();
    bounds
        .windows(2)
        .map(|pair| {
            let shard = &logits[pair[0]..pair[1].min(logits.len())];
            candidates(0, pair[0] as u32, shard, &params.key(), POSITION)
        })
        .collect()
}

fn noise(params: &SamplingParams) -> Noise {
    Noise::new(params.seed, POSITION)
}

fn both(logits: &[f32], cuts: &[usize], params: &SamplingParams) -> (Outcome, Sampled) {
    let ranks = split(logits, cuts, params);
    let ranks: Vec<&RowCandidates> = ranks.iter().collect();
    let mass = Mass::of_ranks(&ranks, params.logprobs).unwrap();
    let full = sample_full_row(params, noise(params), logits, &mass).unwrap();
    (merge(params, noise(params), &ranks).unwrap(), full)
}

/// The definition, written the slow way: a token is kept when fewer than k tokens precede it, those weigh less than p, and
/// it is at least min_p times as probable as the best.
fn by_definition(logits: &[f32], params: &SamplingParams) -> u32 {
    let ids = 0..logits.len();
    let best_logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let precedes = |a: usize, b: usize| logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
    let temperature = f64::from(params.temperature);
    let weight = |id: usize| (f64::from(logits[id] - best_logit) / temperature).exp();
    let all: f64 = ids.clone().map(weight).sum();
    let kept = ids.filter(|&id| {
        let before = (0..logits.len()).filter(|&other| precedes(other, id));
        let (count, mass) = before.fold((0, 0.0), |(n, mass), other| (n + 1, mass + weight(other) / all));
        (params.top_k == 0 || count < params.top_k)
            && (params.top_p >= 1.0 || mass < f64::from(params.top_p))
            && weight(id) >= f64::from(params.min_p)
    });
    let value = |id: usize| noise(params).perturb(id as u32, logits[id], params.temperature);
    kept.max_by(|&a, &b| value(a).total_cmp(&value(b)).then(b.cmp(&a)))
        .unwrap() as u32
}

fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values make ties; a wide scale makes peaked rows, a narrow one flat rows.
    (1_usize..1200, 0.1_f32..30.0, any::<bool>()).prop_flat_map(|(len, scale, coarse)| {
        prop::collection::vec(-1.0_f32..1.0, len).prop_map(move |row| {
            row.into_iter()
                .map(|x| {
                    if coarse {
                        (x * 4.0).round() * scale / 4.0
                    } else {
                        x * x * x * scale
                    }
                })
                .collect()
        })
    })
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    (
        prop_oneof![Just(0.0_f32), 0.05_f32..2.0],
        prop_oneof![Just(0_u32), 1_u32..90],
        prop_oneof![Just(1.0_f32), 0.01_f32..1.0],
        prop_oneof![3 => Just(0.0_f32), 1 => 0.001_f32..1.0],
        any::<u64>(),
        any::<bool>(),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, seed, logprobs)| SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                seed,
                logprobs,
                ..SamplingParams::greedy()
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn merged_is_full_row(logits in any_logits(), cuts in prop::collection::vec(0_usize..12, 0..8), params in any_params()) {
        let (merged, full) = both(&logits, &cuts, &params);
        if let Outcome::Token(token) = merged {
            prop_assert_eq!(token, full);
        } else {
            prop_assert!(params.restricts() && logits.len() > 64);
        }
        let (_, unsplit) = both(&logits, &[], &params);
        prop_assert_eq!(unsplit, full);
    }

    #[test]
    fn full_row_is_the_definition(
        logits in prop::collection::vec(-8_i8..8, 1..120),
        params in any_params(),
    ) {
        // Few ties with the cumulative mass, since these logits are far apart; p itself is random.
        let logits: Vec<f32> = logits.into_iter().map(|x| f32::from(x) * 0.7).collect();
        let params = SamplingParams { temperature: params.temperature.max(0.05), ..params };
        let (_, full) = both(&logits, &[], &params);
        prop_assert_eq!(full.token, by_definition(&logits, &params));
    }
}

#[test]
fn flat_rows_need_the_full_row_and_peaked_ones_do_not() {
    let params = SamplingParams {
        temperature: 1.0,
        top_p: 0.5,
        ..SamplingParams::greedy()
    };
    let flat = vec![0.0_f32; 1024];
    // Half of a flat row of 1024 are its first 512 tokens; most winners over everything are not among the first 64.
    let needs = (0..50).filter(|&seed| {
        both(
            &flat,
            &[4],
            &SamplingParams {
                seed,
                ..params.clone()
            },
        )
        .0 == Outcome::NeedFullRow
    });
    assert!(needs.count() > 30);

    let mut peaked = flat;
    peaked[700] = 20.0;
    let (merged, full) = both(&peaked, &[4], &params);
    assert_eq!(merged, Outcome::Token(full));
    assert_eq!(full.token, 700);
}

#[test]
fn frequencies_follow_the_kept_probabilities() {
    // Softmax of ln(4, 3, 2, 1) at temperature 1, top-k 3: 4/9, 3/9, 2/9.
    let logits: Vec<f32> = [4.0_f32, 3.0, 2.0, 1.0].iter().map(|x| x.ln()).collect();
    let draws = 30_000;
    let mut counts = [0_u32; 4];
    for seed in 0..draws {
        let params = SamplingParams {
            temperature: 1.0,
            top_k: 3,
            seed,
            ..SamplingParams::greedy()
        };
        counts[both(&logits, &[], &params).1.token as usize] += 1;
    }
    for (count, share) in counts.iter().zip([4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0, 0.0]) {
        // Four standard errors.
        assert!(
            (f64::from(*count) / draws as f64 - share).abs() <= 0.0116,
            "{counts:?}"
        );
    }
}

#[test]
fn logprob_is_at_temperature_one() {
    let logits: Vec<f32> = [1.0_f32, 3.0].iter().map(|x| x.ln()).collect();
    let params = SamplingParams {
        temperature: 0.0,
        logprobs: true,
        ..SamplingParams::greedy()
    };
    let (merged, full) = both(&logits, &[], &params);
    assert_eq!(merged, Outcome::Token(full));
    assert!((full.logprob.unwrap() - 0.75_f32.ln()).abs() < 1e-6);
}

#[test]
fn masked_tokens_are_never_sampled() {
    let mut logits = vec![f32::NEG_INFINITY; 300];
    logits[130] = -3.0;
    for seed in 0..20 {
        let params = SamplingParams {
            temperature: 1.5,
            top_p: 0.9,
            seed,
            ..SamplingParams::greedy()
        };
        let (merged, full) = both(&logits, &[1, 2], &params);
        assert_eq!((merged, full.token), (Outcome::Token(full), 130));
    }
}

#[test]
fn broken_answers_are_refused() {
    let params = SamplingParams::greedy();
    let nan = candidates(0, 0, &[0.0, f32::NAN], &params.key(), POSITION);
    assert_eq!(
        merge(&params, noise(&params), &[&nan]),
        Err(SamplingError::NotFinite)
    );
    let late = candidates(0, 128, &[0.0; 128], &params.key(), POSITION);
    assert!(matches!(
        merge(&params, noise(&params), &[&late]),
        Err(SamplingError::Inconsistent(_))
    ));
    let masked = candidates(0, 0, &[f32::NEG_INFINITY; 5], &params.key(), POSITION);
    assert_eq!(
        merge(&params, noise(&params), &[&masked]),
        Err(SamplingError::NotFinite)
    );
    let hot = SamplingParams {
        temperature: 1.0,
        ..params
    };
    let cold = candidates(0, 0, &[0.0; 5], &SamplingParams::greedy().key(), POSITION);
    assert!(matches!(
        merge(&hot, noise(&hot), &[&cold]),
        Err(SamplingError::Inconsistent(_))
    ));
}
