//! The same bits whatever the batch and the sharding.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use llamero_checkpoint::{Members, Topology};
use llamero_engine::step::BlockDeltas;
use llamero_engine::{KvDtype, PlanRow, RowOutput, StepOutput};
use llamero_settings::hash::Fnv1a;

use super::group::{Adapters, Group, Way, row};
use super::tiny;
use crate::{Kernel, Level};

/// Sizes of the group.
const TENSORS: [u32; 5] = [1, 2, 3, 4, 8];

/// FNV-1a over the bits of all logits.
pub(super) fn hash(logits: &[Vec<f32>]) -> u64 {
    let mut hash = Fnv1a::default();
    for logit in logits.iter().flatten() {
        hash.write(&logit.to_bits().to_le_bytes());
    }
    hash.finish()
}

pub(super) fn levels(wanted: &[Level]) -> Vec<Level> {
    let runs: Vec<Level> = wanted
        .iter()
        .copied()
        .filter(|level| Kernel::new(*level).is_ok())
        .collect();
    if runs.len() < wanted.len() {
        println!("note: of {wanted:?} this CPU runs only {runs:?}; the others are not tested here");
    }
    runs
}

pub(super) fn prompt(len: u32, vocab: u32) -> Vec<u32> {
    (0..len).map(|i| (i * i * 31 + i * 7 + 3) % vocab).collect()
}

/// Every combination gives one hash, which is returned.
fn one_hash(folder: &Path, main: &[u32], groups: &[(Members, usize, Level)], ways: &[Way]) -> u64 {
    let mut first = None;
    for (members, threads, level) in groups.iter() {
        let started = Instant::now();
        let mut group = Group::load(folder, members.clone(), *threads, *level);
        for way in ways {
            let logits = group.logits(main, *way);
            assert!(logits.iter().flatten().all(|logit| logit.is_finite()));
            let got = hash(&logits);
            let want = *first.get_or_insert(got);
            assert_eq!(got, want, "{members}, {threads} threads, {level}, {way:?}");
        }
        println!(
            "{members}, {threads} threads, {level}: {} ways, {:.1} s",
            ways.len(),
            started.elapsed().as_secs_f64()
        );
    }
    first.unwrap()
}

/// Every combination of chunks, peers, block sizes and steps in flight.
pub(super) fn ways(chunks: &[usize], peers: &[u32], blocks: &[u32], in_flight: &[usize]) -> Vec<Way> {
    let mut all = Vec::new();
    for chunk in chunks {
        for peers in peers {
            for block in blocks {
                for in_flight in in_flight {
                    all.push(Way {
                        chunk: *chunk,
                        peers: *peers,
                        block: *block,
                        in_flight: *in_flight,
                        // A third of the ways, which falls on every value of the others.
                        shared: all.len() % 3 == 1,
                        kv: KvDtype::Bf16,
                        adapters: Adapters::default(),
                    });
                }
            }
        }
    }
    all
}

/// The same with the KV cache in FP8.
fn with_fp8_kv(mut ways: Vec<Way>) -> Vec<Way> {
    ways.iter_mut().for_each(|way| way.kv = KvDtype::Fp8E4m3);
    ways
}

pub(super) fn groups(tensors: &[u32], threads: &[usize], levels: &[Level]) -> Vec<(Members, usize, Level)> {
    let mut all = Vec::new();
    for level in levels {
        for tensor in tensors {
            all.extend(
                threads
                    .iter()
                    .map(|threads| (tensor_group(*tensor), *threads, *level)),
            );
        }
    }
    all
}

fn tensor_group(tensor: u32) -> Members {
    Topology::tensor(tensor).into()
}

/// Groups of `tensor` ranks without some of them.
pub(super) fn survivors(tensor: u32, lost: &[&[u32]], level: Level) -> Vec<(Members, usize, Level)> {
    let group = |lost: &&[u32]| (Members::new(Topology::tensor(tensor), lost).unwrap(), 1, level);
    lost.iter().map(group).collect()
}

/// 300 positions, so that the second chunk of attention is entered.
#[test]
fn a_small_model_has_one_hash() {
    let main = prompt(300, tiny::VOCAB);
    let fast = levels(&[Level::Avx512, Level::Avx2])[..1].to_vec();
    for fp8 in [false, true] {
        let folder = tiny::checkpoint(fp8);
        let want = one_hash(
            folder.path(),
            &main,
            &[(tensor_group(1), 1, fast[0])],
            &ways(&[64], &[0], &[16], &[1]),
        );
        let some = one_hash(
            folder.path(),
            &main,
            &groups(&[2, 3, 8], &[1, 2], &fast),
            &ways(&[7, 512], &[0, 5], &[16, 32], &[1, 2]),
        );
        let slow = one_hash(
            folder.path(),
            &main[..],
            &[(tensor_group(3), 1, Level::Avx2)],
            &ways(&[512], &[1], &[16, 32], &[1]),
        );
        let single = one_hash(
            folder.path(),
            &main,
            &[(tensor_group(4), 1, fast[0])],
            &ways(&[1], &[1], &[16], &[2]),
        );
        assert_eq!([some, slow, single], [want; 3]);
    }
}

/// A numerics class of its own, in which nothing else changes a bit: not kernels, blocks, chunks, batch, threads, ranks, losses,
/// stages, nor how ranks exchange.
#[test]
fn a_kv_cache_in_fp8_has_one_hash_of_its_own() {
    let main = prompt(300, tiny::VOCAB);
    let level = Kernel::detect().level();
    let staged = |tensor, pipeline| (Topology { tensor, pipeline }.into(), 1, level);
    for fp8 in [false, true] {
        let folder = tiny::checkpoint(fp8);
        let alone = [(tensor_group(1), 1, level)];
        let bf16 = one_hash(folder.path(), &main, &alone, &ways(&[64], &[0], &[16], &[1]));
        let all = [
            groups(&[1, 3, 8], &[1], &[level]),
            groups(&[2], &[2], &levels(&[Level::Avx2])),
            survivors(8, &[&[3], &[6, 2]], level),
            vec![staged(1, 2), staged(2, 2)],
        ];
        let some = with_fp8_kv(ways(&[7, 512], &[0, 5], &[16, 32], &[2]));
        let want = one_hash(folder.path(), &main, &all.concat(), &some);
        let single = with_fp8_kv(ways(&[1], &[1], &[16, 128], &[1]));
        let single = one_hash(folder.path(), &main, &groups(&[4], &[1], &[level]), &single);
        assert_eq!(single, want);
        assert_ne!(want, bf16, "the cache is not in FP8");
    }
    // In plain Rust without any CPU feature over fewer positions, because it is slow.
    let folder = tiny::checkpoint(true);
    let all = groups(&[1, 2], &[1], &levels(&[Level::Portable, Level::Avx512]));
    let some = with_fp8_kv(ways(&[64, 3], &[1], &[16, 32], &[1]));
    one_hash(folder.path(), &prompt(40, tiny::VOCAB), &all, &some);
}

/// Any 7 or 6 of 8 ranks, and any 3 of 4: shares have gaps then, and the numbers of ranks have, too.
#[test]
fn survivors_of_a_small_model_have_its_hash() {
    let main = prompt(300, tiny::VOCAB);
    let level = Kernel::detect().level();
    let of_eight: [&[u32]; 7] = [&[7], &[3], &[1], &[2, 6], &[6, 2], &[1, 7], &[5, 4]];
    let of_four: [&[u32]; 4] = [&[1], &[3], &[2, 1], &[1, 3]];
    for fp8 in [false, true] {
        let folder = tiny::checkpoint(fp8);
        let mut all = groups(&[1, 8], &[1], &[level]);
        all.extend(survivors(8, &of_eight, level));
        all.extend(survivors(4, &of_four, level));
        one_hash(folder.path(), &main, &all, &ways(&[64], &[3], &[16], &[2]));
        // Steps so large that sums go by reduce-scatter.
        one_hash(folder.path(), &main, &all[..6], &ways(&[300], &[0], &[32], &[1]));
    }
}

/// Stages of a pipeline that come out even and uneven, alone and with sums among their ranks, after losses, and of a model whose
/// embedding is its head.
#[test]
fn a_pipeline_has_the_same_hash() {
    let main = prompt(300, tiny::VOCAB);
    let level = Kernel::detect().level();
    let staged = |tensor, pipeline, lost: &[u32]| {
        let members = Members::new(Topology { tensor, pipeline }, lost).unwrap();
        (members, 1, level)
    };
    for (fp8, tied) in [(true, false), (false, false), (false, true)] {
        let folder = tiny::checkpoint_of(fp8, 5, tied);
        let all = [
            staged(1, 1, &[]),
            staged(1, 2, &[]),
            staged(1, 3, &[]),
            staged(1, 5, &[]),
            staged(2, 2, &[]),
            staged(3, 2, &[4, 1]),
            staged(2, 3, &[3]),
        ];
        one_hash(folder.path(), &main, &all, &ways(&[64], &[3], &[16], &[3]));
        // What goes from stage to stage is so long that it goes in parts.
        one_hash(folder.path(), &main, &all, &ways(&[300], &[0], &[32], &[1]));
    }
}

/// Scored tokens, and the state behind a last token and summed over all tokens: each from the rank that has it.
#[test]
fn rows_of_every_kind_have_the_same_bits_in_every_group() {
    let asks = |slot, output| PlanRow {
        output,
        ..row(slot, 0, prompt(20 + slot, tiny::VOCAB))
    };
    let score = RowOutput::Score {
        ids: (0..12).map(|i| i * 47 % tiny::VOCAB).collect(),
        top: 2,
    };
    let rows = [
        asks(0, RowOutput::None),
        row(1, 0, prompt(9, tiny::VOCAB)),
        asks(2, score),
        asks(3, RowOutput::Hidden),
        asks(4, RowOutput::HiddenSum),
    ];
    let blocks = BlockDeltas {
        appends: (0..5).map(|slot| (slot, vec![slot * 2, slot * 2 + 1])).collect(),
        ..BlockDeltas::default()
    };
    let level = Kernel::detect().level();
    for (fp8, tied) in [(true, false), (false, true)] {
        let folder = tiny::checkpoint_of(fp8, 5, tied);
        let mut first = None;
        for (tensor, pipeline) in [(1, 1), (2, 1), (3, 1), (8, 1), (1, 2), (2, 3)] {
            let mut group = Group::load(folder.path(), Topology { tensor, pipeline }, 1, level);
            for shared in [false, true] {
                let answers = group.answers(&rows, &blocks, shared);
                let (scored, hidden) = (scored(&answers), hidden(&answers));
                assert_eq!((scored.len(), hidden.len()), (12, 2));
                let want = first.get_or_insert((scored.clone(), hidden.clone()));
                assert!(
                    *want == (scored, hidden),
                    "{tensor} × {pipeline}, shared memory: {shared}"
                );
            }
        }
    }
}

/// By row and number of the position, the bits of the scored token's logit, which one rank has.
fn scored(answers: &[StepOutput]) -> BTreeMap<(u32, u32), u32> {
    let all = answers.iter().flat_map(|answer| &answer.candidates);
    let scored: Vec<_> = all
        .filter_map(|one| Some(((one.row, one.offset), one.scored?.to_bits())))
        .collect();
    let by_place: BTreeMap<_, _> = scored.iter().copied().collect();
    assert_eq!(by_place.len(), scored.len(), "two ranks scored one token");
    by_place
}

/// By row, the bits of its hidden state, which one rank has.
fn hidden(answers: &[StepOutput]) -> Vec<(u32, Vec<u64>)> {
    let all = answers.iter().flat_map(|answer| &answer.hidden);
    all.map(|(row, state)| (*row, state.iter().map(|x| x.to_bits()).collect()))
        .collect()
}

/// The same in plain Rust without any CPU feature, over fewer positions because it is slow.
#[test]
fn the_portable_kernel_gives_the_same_hash() {
    let main = prompt(40, tiny::VOCAB);
    let folder = tiny::checkpoint(true);
    let levels = levels(&[Level::Portable, Level::Avx512]);
    one_hash(
        folder.path(),
        &main,
        &groups(&[2], &[1], &levels),
        &ways(&[64, 3], &[1], &[16, 32], &[1]),
    );
}

/// Nine query heads and three kv heads, split evenly and unevenly, also over what is left of a larger group.
#[test]
fn smollm2_has_one_hash_in_every_sharding() {
    let folder = model("SmolLM2-135M-Instruct-FP8");
    let all = groups(&[1, 2, 3, 4, 5, 8, 9], &[1], &[Kernel::detect().level()]);
    let level = Kernel::detect().level();
    let staged = [(1, 4), (2, 3)].map(|(tensor, pipeline)| (Topology { tensor, pipeline }.into(), 1, level));
    let all = [
        all,
        survivors(8, &[&[3], &[6, 2]], level),
        survivors(9, &[&[8]], level),
        staged.to_vec(),
    ]
    .concat();
    let some = ways(&[8], &[1], &[16], &[2]);
    let bf16 = one_hash(&folder, &prompt(12, 49_152), &all, &some);
    let fp8 = one_hash(&folder, &prompt(12, 49_152), &all[..4], &with_fp8_kv(some));
    assert_ne!(fp8, bf16);
}

/// A different order changes sums by their last bit, and only where that tips the rounding of an activation to bf16 do
/// logits change: hence so many positions.
#[test]
fn swapped_leaves_are_seen() {
    let main = prompt(500, tiny::VOCAB);
    let folder = tiny::checkpoint(false);
    let way = Way::new(500, 0);
    let mut group = Group::load(folder.path(), tensor_group(1), 1, Kernel::detect().level());
    let before = hash(&group.logits(&main, way));
    assert_eq!(hash(&group.logits(&main, way)), before);
    group.ranks[0].swap_leaves_of_down(1, 2);
    assert_ne!(hash(&group.logits(&main, way)), before);
}

/// Every combination, on a small model.
#[test]
#[ignore = "long: run by make test-long"]
fn a_small_model_has_one_hash_in_every_combination() {
    let main = prompt(300, tiny::VOCAB);
    for fp8 in [false, true] {
        let folder = tiny::checkpoint(fp8);
        let all = levels(&[Level::Avx512, Level::Avx2, Level::Portable]);
        let all = groups(&TENSORS, &[1, 2], &all);
        let ways_of_all = ways(&[1, 7, 64, 512], &[0, 1, 5], &[16, 32], &[1, 2]);
        let bf16 = one_hash(folder.path(), &main, &all, &ways_of_all);
        let fp8 = one_hash(folder.path(), &main, &all, &with_fp8_kv(ways_of_all));
        assert_ne!(fp8, bf16);
    }
}

/// Every combination, on SmolLM2.
#[test]
#[ignore = "long: run by make test-long"]
fn smollm2_has_one_hash_in_every_combination() {
    for name in ["SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct-FP8"] {
        let folder = model(name);
        let all = groups(&TENSORS, &[1, 2], &levels(&[Level::Avx512, Level::Avx2]));
        let ways_of_all = ways(&[1, 7, 64, 512], &[0, 1, 5], &[16, 32], &[1, 2]);
        one_hash(&folder, &prompt(70, 49_152), &all, &ways_of_all);
        let some = with_fp8_kv(ways(&[7, 64], &[1], &[16, 32], &[2]));
        one_hash(&folder, &prompt(70, 49_152), &all, &some);
        // Three tokens a second: few of them, in few ways.
        let mut slow = groups(&TENSORS, &[1, 2], &levels(&[Level::Portable]));
        slow.push((tensor_group(1), 1, Kernel::detect().level()));
        one_hash(
            &folder,
            &prompt(24, 49_152),
            &slow,
            &ways(&[7, 512], &[0, 1], &[16], &[2]),
        );
    }
}

/// A model that the repository makes.
pub(super) fn model(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../.local/models")
        .join(name);
    assert!(
        folder.join("config.json").exists(),
        "{} is not there: run `make model` first",
        folder.display()
    );
    folder
}
