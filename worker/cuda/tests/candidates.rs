//! Candidates against the engine's definition.
#![cfg(not(target_feature = "crt-static"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{numbers, ops};
use llamero_checkpoint::Runs;
use llamero_cuda::ops::{Ops, SEGMENT, TILE, TOP};
use llamero_engine::sampling::candidates::{ShardLogits, candidates};
use llamero_engine::sampling::mass;
use llamero_engine::step::{MassRoot, RowCandidates, SampleKey};
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

const FIRST: u32 = 128;

/// What the device gives for one row: best tokens, masses, and the token that won under noise.
type Found = (Vec<(u32, f32)>, Vec<MassRoot>, Option<u32>);

fn run(ops: &mut Ops, logits: &[Vec<f32>], keys: &[SampleKey], positions: &[u32]) -> Vec<Found> {
    let (rows, vocab) = (logits.len(), logits[0].len());
    let (segments, tiles) = (vocab.div_ceil(SEGMENT), vocab.div_ceil(TILE));
    let stream = ops.stream().clone();
    let on_device = stream.clone_htod(&logits.concat()).unwrap();
    let temperatures: Vec<f32> = keys.iter().map(|key| key.temperature).collect();
    let seeds: Vec<u64> = keys.iter().map(|key| key.seed).collect();
    let (temperatures, seeds) = (
        stream.clone_htod(&temperatures).unwrap(),
        stream.clone_htod(&seeds).unwrap(),
    );
    let positions = stream.clone_htod(positions).unwrap();
    let mut work = stream.alloc_zeros(rows * segments * TOP).unwrap();
    let (mut tokens, mut values) = (
        stream.alloc_zeros(rows * TOP).unwrap(),
        stream.alloc_zeros(rows * TOP).unwrap(),
    );
    let (mut counts, mut lse) = (
        stream.alloc_zeros(rows).unwrap(),
        stream.alloc_zeros(rows * tiles).unwrap(),
    );
    let mut best = stream.alloc_zeros(rows * segments).unwrap();
    ops.top(
        &on_device,
        (rows, vocab, FIRST),
        &mut work,
        &mut tokens,
        &mut values,
        &mut counts,
    )
    .unwrap();
    ops.tile_lse(&on_device, (rows, vocab), &temperatures, &mut lse)
        .unwrap();
    ops.best_perturbed(
        &on_device,
        (rows, vocab, FIRST),
        (&temperatures, &seeds, &positions),
        &mut best,
    )
    .unwrap();
    let (tokens, values) = (
        stream.clone_dtoh(&tokens).unwrap(),
        stream.clone_dtoh(&values).unwrap(),
    );
    let (counts, lse) = (
        stream.clone_dtoh(&counts).unwrap(),
        stream.clone_dtoh(&lse).unwrap(),
    );
    let best = stream.clone_dtoh(&best).unwrap();
    (0..rows)
        .map(|row| {
            let count = counts[row] as usize;
            let top = tokens[row * TOP..][..count]
                .iter()
                .copied()
                .zip(values[row * TOP..][..count].iter().copied());
            let winner = best[row * segments..][..segments]
                .iter()
                .max()
                .filter(|key| **key != 0);
            (
                top.collect(),
                mass::roots(&tiles_of(vocab), lse[row * tiles..][..tiles].iter().copied()),
                winner.map(|key| !(*key as u32)),
            )
        })
        .collect()
}

fn same(found: &Found, wanted: &RowCandidates) {
    let bits = |top: &[(u32, f32)]| {
        top.iter()
            .map(|(token, value)| (*token, value.to_bits()))
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&found.0), bits(&wanted.top));
    assert_eq!(found.2, wanted.gumbel.map(|gumbel| gumbel.0));
    assert_eq!(found.1.len(), wanted.mass.len());
    for ((found_tree, found), (wanted_tree, wanted)) in found.1.iter().zip(&wanted.mass) {
        assert_eq!(found_tree, wanted_tree);
        let (found, wanted) = (found.ln(), wanted.ln());
        assert!(
            found == wanted || (found - wanted).abs() <= 1e-5 * wanted.abs().max(1.0),
            "{found} {wanted}"
        );
    }
}

/// The tiles of `vocab` tokens from [`FIRST`] on.
fn tiles_of(vocab: usize) -> Runs {
    let first = FIRST / TILE as u32;
    Runs::from(first..first + vocab.div_ceil(TILE) as u32)
}

fn wanted(logits: &[f32], key: &SampleKey, position: u32) -> RowCandidates {
    let tiles = tiles_of(logits.len());
    candidates(
        (0, 0),
        ShardLogits {
            tiles: &tiles,
            logits,
        },
        key,
        position,
    )
}

emulated! {
    fn candidates_are_the_engines() on ORDERS, {
        let vocab = 5000;
        let key = |seed, temperature| SampleKey { seed, temperature, top: TOP as u16, mass: true, logprobs: false };
        let mut rows: Vec<Vec<f32>> = (0..3).map(|row| numbers(row, vocab).iter().map(|x| 8.0 * x).collect()).collect();
        // Ties, both zeros, masked tokens, and a whole masked tile.
        rows[1].iter_mut().step_by(7).for_each(|x| *x = 7.5);
        rows[1][3..9].copy_from_slice(&[0.0, -0.0, 0.0, -0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        rows[2][256..384].fill(f32::NEG_INFINITY);
        let keys = [key(1, 0.0), key(2, 0.7), key(3, 1.3)];
        let positions = [0, 17, 130_000];
        let mut ops = ops();
        let found = run(&mut ops, &rows, &keys, &positions);
        for row in 0..3 {
            same(&found[row], &wanted(&rows[row], &keys[row], positions[row]));
        }
        assert_eq!(found[2], run(&mut ops, &rows[2..], &keys[2..], &positions[2..])[0], "a row alone");
    }

    fn fewer_tokens_than_candidates() on ["order=forward"], {
        let key = SampleKey { seed: 9, temperature: 1.0, top: TOP as u16, mass: true, logprobs: false };
        let rows = [numbers(4, 40)];
        let found = run(&mut ops(), &rows, std::slice::from_ref(&key), &[3]);
        same(&found[0], &wanted(&rows[0], &key, 3));
    }
}
