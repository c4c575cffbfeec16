//! Candidates against the engine's definition.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{numbers, ops};
use llamero_checkpoint::Runs;
use llamero_cuda::ops::{NOTHING, Ops, SEGMENT, TILE, TOP, mask_words};
use llamero_engine::sampling::candidates::{ShardLogits, candidates};
use llamero_engine::sampling::mass;
use llamero_engine::step::{MassRoot, RowCandidates, SampleKey};
use llamero_gpu_emulator::emulated;
use llamero_gpu_emulator::harness::ORDERS;

/// The first tile; after the third, one is another rank's.
const FIRST: u32 = 1;

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
    let mut top = stream.alloc_zeros(rows * TOP).unwrap();
    let mut lse = stream.alloc_zeros(rows * tiles).unwrap();
    let mut best = stream.alloc_zeros(4 * rows * segments).unwrap();
    let runs = tiles_of(vocab);
    let numbers: Vec<u32> = runs.iter().collect();
    let numbers = stream.clone_htod(&numbers).unwrap();
    ops.top(&on_device, (rows, vocab), &mut work, &mut top).unwrap();
    ops.tile_lse(&on_device, (rows, vocab), &temperatures, &mut lse)
        .unwrap();
    let keyed = (&temperatures, &seeds, &positions);
    ops.best_perturbed(&on_device, (rows, vocab), keyed, &numbers, &mut best)
        .unwrap();
    let (top, lse) = (stream.clone_dtoh(&top).unwrap(), stream.clone_dtoh(&lse).unwrap());
    let best = stream.clone_dtoh(&best).unwrap();
    let token =
        |number: u32| runs.iter().nth(number as usize / TILE).unwrap() * TILE as u32 + number % TILE as u32;
    (0..rows)
        .map(|row| {
            let pairs = top[row * TOP..][..TOP].iter();
            let there = pairs.take_while(|pair| **pair as u32 != NOTHING);
            let top = there.map(|pair| (token(*pair as u32), f32::from_bits((*pair >> 32) as u32)));
            let (entries, _) = best[4 * row * segments..][..4 * segments].as_chunks::<4>();
            let order = |entry: &&[u32; 4]| u64::from(entry[1]) << 32 | u64::from(entry[0]);
            let winner = entries.iter().max_by_key(order).filter(|entry| order(entry) != 0);
            (
                top.collect(),
                mass::roots(&runs, lse[row * tiles..][..tiles].iter().copied()),
                winner.map(|entry| {
                    let number = !entry[0];
                    assert_eq!(entry[2], logits[row][number as usize].to_bits());
                    token(number)
                }),
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

/// The tiles of `vocab` tokens.
fn tiles_of(vocab: usize) -> Runs {
    let count = vocab.div_ceil(TILE) as u32;
    if count < 4 {
        return Runs::from(FIRST..FIRST + count);
    }
    Runs::new([FIRST..FIRST + 3, FIRST + 4..FIRST + 1 + count])
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

    fn masks_biases_and_single_logits() on ORDERS, {
        let mut ops = ops();
        let stream = ops.stream().clone();
        let (rows, vocab) = (3, 300);
        let logits = numbers(5, rows * vocab);
        let mut on_device = stream.clone_htod(&logits).unwrap();
        let biases = [0u32, 7, 1.5f32.to_bits(), 0, 2, 299, (-2.0f32).to_bits(), 0];
        let biases = stream.clone_htod(&biases).unwrap();
        ops.add_biases(&mut on_device, vocab, &biases, 2).unwrap();
        let mut mask = vec![0u32; mask_words(vocab)];
        mask[1] = 0x8000_0001;
        let (places, masks) = (stream.clone_htod(&[1u32]).unwrap(), stream.clone_htod(&mask).unwrap());
        ops.apply_masks(&mut on_device, vocab, (&places, &masks), 1).unwrap();
        let mut wanted = logits.clone();
        wanted[7] += 1.5;
        wanted[2 * vocab + 299] -= 2.0;
        for token in (0..vocab).filter(|token| ![32, 63].contains(token)) {
            wanted[vocab + token] = f32::NEG_INFINITY;
        }
        assert_eq!(stream.clone_dtoh(&on_device).unwrap(), wanted);
        let tokens = stream.clone_htod(&[7u32, NOTHING, 299]).unwrap();
        let mut picked = stream.alloc_zeros(rows).unwrap();
        ops.pick(&on_device, (rows, vocab), &tokens, &mut picked).unwrap();
        assert_eq!(stream.clone_dtoh(&picked).unwrap(), [wanted[7], 0.0, wanted[2 * vocab + 299]]);
    }
}
