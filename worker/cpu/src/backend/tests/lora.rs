//! Adapters: the bits of others unchanged, the same bits whatever the batch and the sharding, and the right numbers.

use std::path::Path;

use llamero_checkpoint::dtype::{extend_bf16, extend_f32};
use llamero_checkpoint::safetensors::SafetensorsFile;
use llamero_checkpoint::{Adapter, Dtype, LlamaConfig, Members, Topology};
use llamero_engine::step::BlockDeltas;
use llamero_engine::{
    AdapterSource, AdapterStore as _, Backend as _, BackendError, BlockTables, Era, FormSpec, KvDtype, Plan,
};
use tempfile::TempDir;

use super::bits::{groups, hash, levels, prompt, survivors, ways};
use super::group::{Adapters, Group, Way, done, options, row, spec};
use super::tiny::{self, ALL_MODULES, AdapterShape};
use crate::{CpuBackend, Kernel, Level};

/// Three adapters: of every module; of some, with an odd rank; and of others.
fn adapters(layers: usize) -> [TempDir; 3] {
    let all = &ALL_MODULES[..];
    let some = &["self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"][..];
    let others = &["self_attn.q_proj", "mlp.down_proj"][..];
    [(1, 8, all), (2, 3, some), (3, 4, others)].map(|(seed, rank, modules)| {
        tiny::adapter(&AdapterShape {
            seed,
            rank,
            modules,
            layers,
        })
    })
}

fn paths(folders: &[TempDir]) -> Vec<&Path> {
    folders.iter().map(TempDir::path).collect()
}

fn with(mut ways: Vec<Way>, main: Option<u32>) -> Vec<Way> {
    for way in &mut ways {
        way.adapters = Adapters { loaded: 3, main };
    }
    ways
}

/// Every combination gives one hash for each main adapter, which are returned; the first is for none.
fn hashes(folder: &Path, adapters: &[TempDir], all: &[(Members, usize, Level)], some: &[Way]) -> Vec<u64> {
    let main = prompt(300, tiny::VOCAB);
    let mut wanted = [None; 4];
    for (members, threads, level) in all {
        let mut group = Group::load(folder, members.clone(), *threads, *level);
        group.adapt(&paths(adapters));
        for (number, wanted) in (0..).zip(&mut wanted) {
            for way in with(some.to_vec(), Some(number).filter(|number| *number > 0)) {
                let got = hash(&group.logits(&main, way));
                let want = *wanted.get_or_insert(got);
                assert_eq!(
                    got, want,
                    "adapter {number}: {members}, {threads} threads, {level}, {way:?}"
                );
            }
        }
    }
    wanted.into_iter().flatten().collect()
}

/// Beside rows with adapters, rows without any have the bits that they have without; and each adapter has one hash of its own.
#[test]
fn every_adapter_has_one_hash_and_changes_no_other() {
    let level = Kernel::detect().level();
    let staged = |tensor, pipeline| (Topology { tensor, pipeline }.into(), 1, level);
    for fp8 in [false, true] {
        let folder = tiny::checkpoint(fp8);
        let adapters = adapters(2);
        let mut alone = Group::load(folder.path(), Topology::tensor(1), 1, level);
        let without = hash(&alone.logits(&prompt(300, tiny::VOCAB), Way::new(64, 0)));
        let some = [ways(&[7], &[5], &[16], &[2]), ways(&[300], &[5], &[32], &[1])].concat();
        let all = match fp8 {
            true => vec![groups(&[1, 3], &[1], &[level])],
            false => vec![
                groups(&[1, 3], &[1], &[level]),
                groups(&[2], &[2], &levels(&[Level::Avx2])),
                survivors(8, &[&[3]], level),
                vec![staged(2, 2)],
            ],
        };
        let got = hashes(folder.path(), &adapters, &all.concat(), &some);
        assert_eq!(got[0], without, "an adapter beside it changed its bits");
        let single = hashes(
            folder.path(),
            &adapters,
            &groups(&[7], &[1], &[level]),
            &ways(&[64], &[2], &[32], &[1]),
        );
        assert_eq!(single, got);
        assert!(
            (0..4).all(|i| got[i + 1..].iter().all(|other| *other != got[i])),
            "{got:?}"
        );
    }
}

/// The portable kernel, over fewer positions because it is slow; and the cache in FP8, which is a class of its own.
#[test]
fn adapters_have_the_same_bits_with_every_kernel_and_cache() {
    let folder = tiny::checkpoint(true);
    let adapters = adapters(2);
    let main = prompt(40, tiny::VOCAB);
    for kv in [KvDtype::Bf16, KvDtype::Fp8E4m3] {
        let mut first = None;
        for (members, threads, level) in groups(&[1, 2], &[1], &levels(&[Level::Portable, Level::Avx512])) {
            let mut group = Group::load(folder.path(), members, threads, level);
            group.adapt(&paths(&adapters));
            let way = Way {
                kv,
                ..with(vec![Way::new(3, 2)], Some(1))[0]
            };
            let got = hash(&group.logits(&main, way));
            assert_eq!(*first.get_or_insert(got), got, "{level}");
        }
    }
}

/// `W + scale · B · A`, computed in f64 and stored as f32 in a copy of the checkpoint, which loading rounds to bf16.
fn merged(folder: &Path, adapter: &Path) -> TempDir {
    let config = LlamaConfig::read(&folder.join("config.json")).unwrap();
    let adapter = Adapter::open(adapter, &config, 8).unwrap();
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), copy.path().join("config.json")).unwrap();
    let mut bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    for (module, factors) in adapter.modules() {
        let floats = |bytes: &[u8]| {
            let mut values = Vec::new();
            assert!(extend_f32(Dtype::BF16, bytes, &mut values));
            values
        };
        let (a, b) = (
            &floats(&adapter.bf16(&factors.a).unwrap()),
            &floats(&adapter.bf16(&factors.b).unwrap()),
        );
        let rank = factors.rank as usize;
        let inputs = a.len() / rank;
        let tensor = file.tensor(&module.name()).unwrap();
        let start = (8 + header + tensor.range.start) as usize;
        let weight = &mut bytes[start..][..tensor.bytes() as usize];
        let sums = floats(weight).into_iter().enumerate().map(|(at, value)| {
            let (row, column) = (at / inputs, at % inputs);
            let product: f64 = (0..rank)
                .map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * inputs + column]))
                .sum();
            (f64::from(value) + f64::from(factors.scale) * product) as f32
        });
        let sums: Vec<f32> = sums.collect();
        let mut rounded = Vec::new();
        extend_bf16(&sums, &mut rounded);
        weight.copy_from_slice(&rounded);
    }
    std::fs::write(copy.path().join("model.safetensors"), bytes).unwrap();
    copy
}

fn rms(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let squares = pairs.map(|(a, b)| f64::from(a - b).powi(2));
    (squares.sum::<f64>() / (a.len() * a[0].len()) as f64).sqrt()
}

/// An adapter gives what a model with the adapter merged into its weights gives, but for the rounding of those.
#[test]
fn an_adapter_is_as_good_as_merged_weights() {
    let folder = tiny::checkpoint(false);
    let main = prompt(100, tiny::VOCAB);
    let level = Kernel::detect().level();
    let adapters = adapters(2);
    let mut group = Group::load(folder.path(), Topology::tensor(1), 2, level);
    group.adapt(&paths(&adapters));
    for (number, adapter) in (1..).zip(&adapters) {
        let way = |main| with(vec![Way::new(64, 0)], main)[0];
        let plain = group.logits(&main, way(None));
        let adapted = group.logits(&main, way(Some(number)));
        let merged = merged(folder.path(), adapter.path());
        let mut merged = Group::load(merged.path(), Topology::tensor(1), 2, level);
        let merged = merged.logits(&main, Way::new(64, 0));
        let (effect, error) = (rms(&plain, &merged), rms(&adapted, &merged));
        println!("adapter {number}: RMS of what it changes {effect:.4}, of the difference {error:.4}");
        assert!(error < effect / 20.0, "adapter {number}: {error} of {effect}");
    }
}

fn source(number: u32) -> AdapterSource {
    AdapterSource {
        number,
        name: format!("a{number}"),
        path: String::new(),
        identity: None,
    }
}

/// Every rank takes as much for an adapter of the largest rank as was set aside.
#[test]
fn an_adapter_takes_what_was_set_aside_for_it() {
    let folder = tiny::checkpoint(false);
    let adapters = adapters(2);
    for tensor in [1, 3, 8] {
        let mut group = Group::load(
            folder.path(),
            Topology::tensor(tensor),
            1,
            Kernel::detect().level(),
        );
        group.adapt(&paths(&adapters));
        for rank in &group.ranks {
            let mut spec = spec(Era::default(), 64);
            (spec.limits.max_adapters, spec.limits.max_adapter_rank) = (1, 8);
            let one = rank.memory(&spec).unwrap().adapters;
            let taken = |number| rank.adapters.get(number).unwrap().bytes() as u64;
            assert_eq!(taken(1), one);
            assert!(taken(2) < one && taken(3) < one);
        }
    }
}

/// A row is never computed without the adapter that it asks for; one that was submitted keeps it.
#[test]
fn an_adapter_that_is_not_there_is_refused_and_one_in_use_stays() {
    let folder = tiny::checkpoint(false);
    let adapters = adapters(2);
    let mut backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    backend.load(&llamero_engine::Unwatched).unwrap();
    let era = Era {
        generation: 1,
        epoch: 1,
    };
    let mut spec: FormSpec = spec(era, 64);
    spec.limits.max_adapters = 1;
    spec.limits.max_adapter_rank = 8;
    let mesh = llamero_engine::mesh::local::local_mesh(backend.members(), era).unwrap();
    for mesh in mesh {
        backend.form(&spec, Box::new(mesh), &mut |_| {}).unwrap();
    }
    let mut tables = BlockTables::new(6, 4096);
    let mut plan = |step: u64, start: u32| {
        let blocks = BlockDeltas {
            appends: if step == 1 { vec![(0, vec![0])] } else { Vec::new() },
            ..BlockDeltas::default()
        };
        tables.apply(&blocks).unwrap();
        let mut row = row(0, start, vec![5, 6]);
        row.adapter = Some(7);
        Plan {
            era,
            step,
            rows: vec![row],
            blocks,
            late_tokens: 0,
            late_sampling: false,
            state_hash: tables.hash(),
        }
    };
    let first = plan(1, 0);
    let refused = backend.submit(&first).unwrap_err();
    assert!(
        matches!(&refused, BackendError::Bug(why) if why.contains("adapter 7")),
        "{refused}"
    );
    let store = backend.adapters();
    let load = |source: &AdapterSource, folder: &Path, max_rank| {
        store.load(store.begin(source), source, folder, max_rank)
    };
    let identity = load(&source(7), adapters[0].path(), 8).unwrap();
    assert_eq!(
        load(&source(7), Path::new("/nowhere"), 8).unwrap(),
        identity,
        "it is there"
    );
    let ticket = backend.submit(&first).unwrap();
    store.unload(7);
    assert_eq!(done(&mut backend, ticket).unwrap().candidates.len(), 2);
    assert!(backend.submit(&plan(2, 2)).is_err(), "unloaded");

    // Another leader numbers others alike.
    let wanted = |number: u32, identity| AdapterSource {
        identity: Some(identity),
        ..source(number)
    };
    let other = load(&source(7), adapters[1].path(), 8).unwrap();
    assert_ne!(other, identity);
    let error = load(&wanted(7, identity), adapters[1].path(), 8).unwrap_err();
    assert!(
        error.to_string().contains("give all ranks the same files"),
        "{error}"
    );
    load(&wanted(7, identity), adapters[0].path(), 8).unwrap();
    store.retain(&[wanted(7, other)]);
    assert!(backend.submit(&plan(2, 2)).is_err(), "it was another one");
    let error = load(&source(8), adapters[0].path(), 4).unwrap_err();
    assert!(error.to_string().contains("rank 8"), "{error}");
}

/// What is unloaded, left out of a new era or begun anew while it is read is not kept.
#[test]
fn a_reading_that_nobody_waits_for_leaves_nothing() {
    let folder = tiny::checkpoint(false);
    let adapters = adapters(2);
    let backend = CpuBackend::new(folder.path(), options(1, 0, 1, Kernel::detect().level())).unwrap();
    let store = &backend.adapters;
    let load = |reading| store.load(reading, &source(7), adapters[0].path(), 8);
    let forgotten = |reading| {
        let error = load(reading).unwrap_err();
        assert!(error.to_string().contains("nobody waits"), "{error}");
    };
    let unloaded = store.begin(&source(7));
    store.unload(7);
    forgotten(unloaded);
    let of_the_last_era = store.begin(&source(7));
    store.retain(&[source(7)]);
    forgotten(of_the_last_era);
    assert_eq!(store.len(), 0);

    let (replaced, last) = (store.begin(&source(7)), store.begin(&source(7)));
    forgotten(replaced);
    assert_eq!(store.len(), 1, "the other one is still waited for");
    load(last).unwrap();
    assert!(store.get(7).is_some());

    // A reading that fails leaves nothing either.
    let reading = store.begin(&source(8));
    store
        .load(reading, &source(8), Path::new("/nowhere"), 8)
        .unwrap_err();
    assert_eq!(store.len(), 1);
}
