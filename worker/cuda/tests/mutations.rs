//! Every barrier and every wait of the kernels is needed: without it, a result changes in some order of warps.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{numbers, to_bf16};
use llamero_cuda::compile::{Modules, ptx};
use llamero_cuda::device::devices;
use llamero_cuda::ops::{AttentionShape, Cache, Element, Leaves, Ops, Places, TOP, Weights};
use llamero_cuda::probe;
use llamero_cuda::source::Source;
use llamero_gpu_emulator::harness::{ORDERS, inside, on_machines};

/// What a kernel gives for some inputs, as bits.
type Scenario = fn(&mut Ops) -> Option<Vec<u32>>;

/// Kernels, and scenarios that together go through all of each.
const KERNELS: [(Source, &str, &[Scenario]); 5] = [
    (Source::Product, "product_fp8_8", &[product]),
    (Source::Layer, "add_norm", &[norm]),
    // Values are weighted by other code for up to 4, 8 and 16 heads of a group.
    (
        Source::Attention,
        "attention_64",
        &[attention::<3>, attention::<6>, attention::<9>],
    ),
    (Source::Candidates, "top_of_segment", &[top]),
    (Source::Candidates, "tile_lse", &[lse]),
];

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

fn product(ops: &mut Ops) -> Option<Vec<u32>> {
    let (stream, leaves) = (ops.stream().clone(), Leaves::tree(9, 0..9, 512).unwrap());
    let codes: Vec<u8> = numbers(1, 16 * leaves.stride())
        .iter()
        .map(|x| ((x + 1.0) * 120.0) as u8 & 0x77)
        .collect();
    let weights = Weights {
        values: stream.clone_htod(&codes).ok()?,
        element: Element::E4m3,
        scales: None,
        outputs: 16,
        program: stream.clone_htod(&leaves.program().unwrap()).ok()?.into(),
        leaves,
    };
    let x = stream
        .clone_htod(&to_bf16(&numbers(2, weights.leaves.stride())))
        .ok()?;
    let mut y = stream.alloc_zeros(16).ok()?;
    ops.product(&weights, &x, 1, &mut y).ok()?;
    stream.clone_dtoh(&y).ok().map(bits)
}

fn norm(ops: &mut Ops) -> Option<Vec<u32>> {
    let stream = ops.stream().clone();
    let mut hidden = stream.clone_htod(&numbers(1, 512)).ok()?;
    let weight = stream.clone_htod(&numbers(2, 512)).ok()?;
    let mut y = stream.alloc_zeros(512).ok()?;
    ops.add_norm(&mut hidden, None, &weight, &mut y, 1, (64, 1e-5), None)
        .ok()?;
    Some(stream.clone_dtoh(&y).ok()?.into_iter().map(u32::from).collect())
}

fn attention<const GROUP: usize>(ops: &mut Ops) -> Option<Vec<u32>> {
    let stream = ops.stream().clone();
    let shape = AttentionShape {
        q_heads: GROUP,
        kv_heads: 1,
        group: GROUP,
        skipped: 0,
        dim: 64,
        block_tokens: 256,
        table_stride: 1,
        longest: 250,
        leaf_width: 64,
    };
    let q = stream.clone_htod(&numbers(1, GROUP * 64)).ok()?;
    let [keys, values] = [2, 3].map(|seed| stream.clone_htod(&to_bf16(&numbers(seed, 256 * 64))).unwrap());
    let positions = stream.clone_htod(&[249u32]).ok()?;
    let (slots, tables) = (stream.clone_htod(&[0u32]).ok()?, stream.clone_htod(&[0u32]).ok()?);
    let places = Places {
        positions: &positions,
        slots: &slots,
        tables: &tables,
    };
    let mut parts = stream.alloc_zeros(shape.parts(1)).ok()?;
    let mut y = stream.alloc_zeros(GROUP * 64).ok()?;
    let cache = Cache {
        keys: &keys,
        values: &values,
    };
    ops.attention(shape, &q, &cache, &places, &mut parts, &mut y, 1)
        .ok()?;
    stream.clone_dtoh(&parts).ok().map(bits)
}

fn top(ops: &mut Ops) -> Option<Vec<u32>> {
    let stream = ops.stream().clone();
    let logits = stream.clone_htod(&numbers(1, 2048)).ok()?;
    let mut keys = stream.alloc_zeros(TOP).ok()?;
    let mut top = stream.alloc_zeros(TOP).ok()?;
    ops.top(&logits, (1, 2048), &mut keys, &mut top).ok()?;
    let top = stream.clone_dtoh(&top).ok()?;
    Some(top.into_iter().map(|pair| pair as u32).collect())
}

fn lse(ops: &mut Ops) -> Option<Vec<u32>> {
    let stream = ops.stream().clone();
    let logits = stream.clone_htod(&numbers(1, 512)).ok()?;
    let temperatures = stream.clone_htod(&[0.7f32]).ok()?;
    let mut out = stream.alloc_zeros(4).ok()?;
    ops.tile_lse(&logits, (1, 512), &temperatures, &mut out).ok()?;
    stream.clone_dtoh(&out).ok().map(bits)
}

/// Numbers of the lines of `kernel` that wait for somebody.
fn waits(text: &str, kernel: &str) -> Vec<usize> {
    let entry = format!(".entry {kernel}(");
    let start = text.lines().position(|line| line.contains(&entry)).unwrap();
    let body = text
        .lines()
        .enumerate()
        .skip(start + 1)
        .take_while(|(_, line)| !line.contains(".entry "));
    let waits = body.filter(|(_, line)| line.contains("bar.sync") || line.contains("cp.async.wait_group"));
    waits.map(|(number, _)| number).collect()
}

/// Run a scenario on this text of its file, in a context of its own: a fault of a mutated kernel sticks to it.
fn run(file: &Path, text: &str, scenario: Scenario) -> Option<Vec<u32>> {
    std::fs::write(file, text).unwrap();
    let device = devices(probe::driver().unwrap()).unwrap().remove(0);
    let mut ops = Ops::new(Modules::new(device, file.parent().map(Path::to_owned))).unwrap();
    scenario(&mut ops)
}

/// Mutations that change nothing in any scenario: kernel, number of the wait in it, and the line.
fn survivors() -> Vec<String> {
    let mut survivors = Vec::new();
    for (source, kernel, scenarios) in KERNELS {
        let folder = tempfile::tempdir().unwrap();
        let text = ptx(source, "compute_90a", Some(folder.path())).unwrap();
        let file = std::fs::read_dir(folder.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let wanted: Vec<Vec<u32>> = scenarios
            .iter()
            .map(|scenario| run(&file, &text, *scenario).unwrap())
            .collect();
        for (number, dropped) in waits(&text, kernel).into_iter().enumerate() {
            let lines = text.lines().enumerate().filter(|(line, _)| *line != dropped);
            let mutated = lines.map(|(_, line)| line).collect::<Vec<_>>().join("\n");
            let changes = |(scenario, wanted): (&Scenario, &Vec<u32>)| {
                run(&file, &mutated, *scenario).as_ref() != Some(wanted)
            };
            if !scenarios.iter().zip(&wanted).any(changes) {
                let what = text.lines().nth(dropped).unwrap().trim().replace('\t', " ");
                survivors.push(format!("{kernel} {number} {what}"));
            }
        }
    }
    survivors
}

/// Waits that no order of warps shows to be needed, and why they stay.
const EXPLAINED: [&str; 0] = [];

#[test]
fn every_barrier_and_wait_is_needed() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutations");
    std::fs::create_dir_all(&folder).unwrap();
    let file = |order: &str| -> PathBuf { folder.join(order.replace([':', '='], "-")) };
    on_machines("mutations::every_barrier_and_wait_is_needed", &ORDERS, || {
        let order = std::env::var("LLAMERO_GPU_EMULATOR").unwrap();
        std::fs::write(file(&order), survivors().join("\n")).unwrap();
    });
    if inside() {
        return;
    }
    let sets = ORDERS.map(|order| -> BTreeSet<String> {
        std::fs::read_to_string(file(order))
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    });
    let left: Vec<&String> = sets[0]
        .iter()
        .filter(|line| sets[1..].iter().all(|set| set.contains(*line)))
        .collect();
    assert_eq!(left, EXPLAINED);
}
