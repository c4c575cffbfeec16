//! Merged sampling is sampling from the full row, for any logits and any split over ranks.

use proptest::prelude::*;

use llamero_checkpoint::Runs;

use super::candidates::{ShardLogits, candidates};
use super::*;
use crate::log_sum::LogSum;
use crate::step::{LogitShard, MassRoot, RowCandidates, VOCAB_TILE};

const POSITION: u32 = 11;

/// One rank's answer, which owns `tiles`.
fn answer(tiles: &Runs, row: &[f32], params: &SamplingParams) -> RowCandidates {
    let shard = logits_of(tiles, row);
    let shard = ShardLogits {
        tiles,
        logits: &shard.logits,
    };
    candidates((0, 0), shard, &params.key(), POSITION)
}

fn logits_of(tiles: &Runs, row: &[f32]) -> LogitShard {
    let tokens = tiles.scaled(VOCAB_TILE as u32, row.len() as u32);
    LogitShard {
        logits: tokens.iter().map(|token| row[token as usize]).collect(),
        tokens,
    }
}

/// The tiles of ranks; tile `t` belongs to rank `owners[t % owners.len()]`, or all to one.
fn shares(row: &[f32], owners: &[usize]) -> Vec<Runs> {
    let tiles = row.len().div_ceil(VOCAB_TILE) as u32;
    let ranks = owners.iter().max().map_or(1, |most| most + 1);
    let owner = |tile: u32| {
        owners
            .get(tile as usize % owners.len().max(1))
            .copied()
            .unwrap_or(0)
    };
    let of = |rank| (0..tiles).filter(move |tile| owner(*tile) == rank);
    (0..ranks)
        .map(|rank| Runs::new(of(rank).map(|tile| tile..tile + 1)))
        .collect()
}

fn noise(params: &SamplingParams) -> Noise {
    Noise::new(params.seed, POSITION)
}

fn both(logits: &[f32], owners: &[usize], params: &SamplingParams) -> (Outcome, Sampled) {
    let shares = shares(logits, owners);
    let ranks: RowAnswers = shares.iter().map(|tiles| answer(tiles, logits, params)).collect();
    let mass = ranks
        .mass(params.needs_mass(), params.logprobs.is_some())
        .unwrap();
    let parts: Vec<LogitShard> = shares.iter().map(|tiles| logits_of(tiles, logits)).collect();
    let row = join_shards(&parts).unwrap();
    assert_eq!(row, logits);
    let full = sample_full_row(params, noise(params), &row, &mass).unwrap();
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
        prop::option::of(0_u16..20),
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
    fn merged_is_full_row(logits in any_logits(), owners in prop::collection::vec(0_usize..5, 0..8), params in any_params()) {
        let (merged, full) = both(&logits, &owners, &params);
        if let Outcome::Token(token) = merged {
            prop_assert_eq!(token, full);
        } else {
            prop_assert!(params.restricts() && logits.len() > 64);
        }
        let (_, unsplit) = both(&logits, &[], &params);
        prop_assert_eq!(unsplit, full);
    }

    #[test]
    fn any_split_gives_the_same_mass(
        scale in 0.1_f32..300.0,
        // Enough tiles for a deep tree.
        row in prop::collection::vec(-1.0_f32..1.0, 4000..12_000),
        owners in prop::collection::vec(0_usize..8, 1..40),
        first in 0_usize..16,
        temperature in 0.05_f32..2.0,
    ) {
        let row: Vec<f32> = row.into_iter().map(|x| x * scale).collect();
        let params = SamplingParams { temperature, top_p: 0.9, logprobs: Some(0), ..SamplingParams::greedy() };
        let mass = |owners: &[usize]| {
            let shares = shares(&row, owners);
            let mut ranks: Vec<_> = shares.iter().map(|tiles| answer(tiles, &row, &params)).collect();
            // The order in which the ranks answer does not matter either.
            ranks.rotate_left(first % shares.len());
            if first % 2 == 0 {
                ranks.reverse();
            }
            ranks.into_iter().collect::<RowAnswers>().mass(true, true).unwrap()
        };
        let (whole, split) = (mass(&[]), mass(&owners));
        prop_assert_eq!(whole.scaled.map(f64::to_bits), split.scaled.map(f64::to_bits));
        prop_assert_eq!(whole.raw.map(f64::to_bits), split.raw.map(f64::to_bits));
        for (found, divisor) in [(whole.scaled, temperature), (whole.raw, 1.0)] {
            let scaled = || row.iter().map(|x| f64::from(x / divisor));
            let best = scaled().fold(f64::NEG_INFINITY, f64::max);
            let exact = best + scaled().map(|x| (x - best).exp()).sum::<f64>().ln();
            // A tile's log-sum-exp is an f32.
            prop_assert!((found.unwrap() - exact).abs() <= 1e-6 * exact.abs().max(1.0));
        }
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
            &[0, 1],
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
    let (merged, full) = both(&peaked, &[0, 1], &params);
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
        logprobs: Some(0),
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
        let (merged, full) = both(&logits, &[0, 1, 2], &params);
        assert_eq!((merged, full.token), (Outcome::Token(full), 130));
    }
}

#[test]
fn broken_answers_are_refused() {
    let params = SamplingParams::greedy();
    let whole = Runs::from(0..1);
    let merged = |params: &SamplingParams, ranks: &[&RowCandidates]| {
        let answers: RowAnswers = ranks.iter().map(|rank| (*rank).clone()).collect();
        merge(params, noise(params), &answers)
    };
    for params in [
        params.clone(),
        SamplingParams {
            temperature: 1.0,
            ..params.clone()
        },
    ] {
        for row in [[0.0, f32::NAN], [f32::NEG_INFINITY; 2], [f32::INFINITY, 1.0]] {
            let broken = answer(&whole, &row, &params);
            assert_eq!(
                merged(&params, &[&broken]),
                Err(SamplingError::NotFinite),
                "{row:?}"
            );
        }
    }
    let logprobs = SamplingParams {
        logprobs: Some(0),
        ..params.clone()
    };
    let second = answer(&Runs::from(1..2), &[0.0; 256], &logprobs);
    let inconsistent = |result| matches!(result, Err(SamplingError::Inconsistent(_)));
    assert!(
        inconsistent(merged(&logprobs, &[&second])),
        "the first tile is missing"
    );
    assert!(
        inconsistent(merged(&logprobs, &[&second, &second])),
        "a tile is there twice"
    );
    for tree in [0..3, 0..0, 0..6] {
        let odd = RowCandidates {
            mass_raw: vec![(tree.clone(), LogSum::of(1.0))],
            ..answer(&whole, &[0.0; 128], &logprobs)
        };
        assert!(
            inconsistent(merged(&logprobs, &[&odd])),
            "{tree:?} is not complete"
        );
    }
    let without = answer(&whole, &[0.0; 128], &params);
    assert!(merged(&logprobs, &[&without]).is_err());
    let hot = SamplingParams {
        temperature: 1.0,
        ..params
    };
    assert!(inconsistent(merged(&hot, &[&without])), "sampled greedily there");
}

#[test]
fn candidates_carry_only_what_the_request_needs() {
    let row: Vec<f32> = (0..300).map(|i| (i as f32).sin()).collect();
    let carried = |change: &dyn Fn(&mut SamplingParams)| {
        let mut params = SamplingParams::greedy();
        change(&mut params);
        let answer = answer(&Runs::from(0..3), &row, &params);
        let roots = |of: &[MassRoot]| of.iter().map(|(tree, _)| tree.len()).collect::<Vec<_>>();
        let masses = [roots(&answer.mass), roots(&answer.mass_raw)];
        (answer.top.len(), masses, answer.gumbel.is_some())
    };
    // Three tiles are a subtree of two and one of one.
    let (none, sum) = (Vec::new, || vec![2, 1]);
    assert_eq!(carried(&|_| ()), (1, [none(), none()], false));
    assert_eq!(carried(&|p| p.logprobs = Some(0)), (1, [none(), sum()], false));
    assert_eq!(carried(&|p| p.temperature = 1.0), (0, [none(), none()], true));
    let warm = |p: &mut SamplingParams| p.temperature = 0.7;
    assert_eq!(
        carried(&|p| (warm(p), p.top_k = 5).1),
        (5, [none(), none()], true)
    );
    assert_eq!(
        carried(&|p| (warm(p), p.min_p = 0.1).1),
        (64, [none(), none()], true)
    );
    assert_eq!(
        carried(&|p| (warm(p), p.top_p = 0.9).1),
        (64, [sum(), none()], true)
    );
}

#[test]
fn scores_come_from_the_rank_that_holds_the_token() {
    let row: Vec<f32> = (0..300).map(|i| (i as f32).sin()).collect();
    let ranks: Vec<_> = shares(&row, &[0, 1])
        .iter()
        .map(|tiles| {
            let shard = logits_of(tiles, &row);
            let shard = ShardLogits {
                tiles,
                logits: &shard.logits,
            };
            candidates::scored((2, 1), shard, 130, 2)
        })
        .collect();
    assert_eq!(
        ranks.iter().map(|rank| rank.scored).collect::<Vec<_>>(),
        [None, Some(row[130])]
    );
    let lonely: RowAnswers = ranks[..1].iter().cloned().collect();
    assert!(scored(2, &lonely).is_err(), "nobody holds the token");
    let answers: RowAnswers = ranks.into_iter().collect();
    let exact: f64 = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let scored = scored(2, &answers).unwrap();
    assert!((f64::from(scored.logprob) - (f64::from(row[130]) - exact)).abs() < 1e-5);
    let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert_eq!(scored.top.len(), 2);
    assert!((f64::from(scored.top[0].1) - (f64::from(best) - exact)).abs() < 1e-5);
}
