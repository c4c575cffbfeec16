//! The shards of all ranks together are the checkpoint, byte for byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Sizes, config_json, header, model, tensors};
use llamero_checkpoint::load::{LoadProgress, ROW_MULTIPLE, Rows, Sink, SinkError, load_rank};
use llamero_checkpoint::piece::rank_bytes;
use llamero_checkpoint::{
    Checkpoint, Error, LlamaConfig, ModelLayout, RankShard, ShardPlan, TensorId, TensorKind, Topology,
};

/// A whole tensor and how often every byte of it has been seen.
type Seen = BTreeMap<TensorId, (Vec<u8>, Vec<u8>)>;

/// Calls a closure under a lock.
struct Locked<F>(Mutex<F>);

impl<F: FnMut(&Rows<'_>) -> Result<(), SinkError> + Send> Sink for Locked<F> {
    type Scratch = ();

    fn put(&self, rows: &Rows<'_>, (): &mut ()) -> Result<(), SinkError> {
        (self.0.lock().unwrap())(rows)
    }
}

/// Load a shard by three threads into `take`; the progress that was told.
fn load(
    checkpoint: &Checkpoint,
    layout: &ModelLayout,
    shard: &RankShard,
    take: impl FnMut(&Rows<'_>) -> Result<(), SinkError> + Send,
) -> Result<Vec<LoadProgress>, Error> {
    let mut progress = Vec::new();
    let mut watch = |now| {
        progress.push(now);
        ControlFlow::Continue(())
    };
    load_rank(
        checkpoint,
        layout,
        shard,
        3,
        &Locked(Mutex::new(take)),
        &mut watch,
    )?;
    Ok(progress)
}

fn gather(checkpoint: &Checkpoint, layout: &ModelLayout, plan: &ShardPlan) -> Seen {
    let mut seen: Seen = layout
        .tensors
        .iter()
        .map(|tensor| (tensor.rows * tensor.cols * tensor.dtype.size(), tensor.id))
        .map(|(size, id)| (id, (vec![0; size as usize], vec![0; size as usize])))
        .collect();
    for shard in plan.shards() {
        let take = |rows: &Rows<'_>| {
            let (tensor, slice) = (rows.piece.tensor, &rows.piece.slice);
            let (stride, size) = (tensor.cols * tensor.dtype.size(), tensor.dtype.size());
            let (whole, times) = seen.get_mut(&tensor.id).unwrap();
            assert_eq!(rows.first % ROW_MULTIPLE, 0);
            assert_eq!(rows.bytes.len() as u64, rows.count * rows.piece.row_bytes());
            let mut bytes = rows.bytes;
            for row in slice
                .rows
                .iter()
                .skip(rows.first as usize)
                .take(rows.count as usize)
            {
                for run in slice.cols.as_slice() {
                    let (strip, rest) = bytes.split_at((u64::from(run.end - run.start) * size) as usize);
                    let at = (u64::from(row) * stride + u64::from(run.start) * size) as usize;
                    whole[at..at + strip.len()].copy_from_slice(strip);
                    times[at..at + strip.len()]
                        .iter_mut()
                        .for_each(|times| *times += 1);
                    bytes = rest;
                }
            }
            Ok(())
        };
        let read_before = checkpoint.bytes_read();
        let progress = load(checkpoint, layout, shard, take).unwrap();
        let last = progress.last().unwrap();
        assert_eq!(
            (last.loaded, last.total),
            (rank_bytes(layout, shard), rank_bytes(layout, shard))
        );
        assert_eq!(last.read, checkpoint.bytes_read() - read_before);
        assert!(progress.is_sorted_by_key(|progress| (progress.loaded, progress.read)));
    }
    seen
}

fn check(checkpoint: &Checkpoint, tensor: u32) {
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(tensor)).unwrap();
    check_plan(checkpoint, &plan);
    if tensor > 2 {
        // The survivors of a lost rank hold everything, too, in pieces with gaps.
        check_plan(checkpoint, &plan.without(1).unwrap());
    }
}

fn check_plan(checkpoint: &Checkpoint, plan: &ShardPlan) {
    let tensor = plan.topology();
    let layout = ModelLayout::check(checkpoint).unwrap();
    for (id, (whole, times)) in gather(checkpoint, &layout, plan) {
        if layout.is_tied() && id.kind == TensorKind::Embed {
            assert!(
                times.iter().all(|times| *times == 0),
                "a tied table is loaded once"
            );
            continue;
        }
        let mut stored = vec![0; whole.len()];
        checkpoint
            .read_at(&layout.get(id).unwrap().name, 0, &mut stored)
            .unwrap();
        assert!(whole == stored, "{id} at tensor {tensor}");
        // Norms and kv heads may be held by several ranks.
        let once = !id.kind.is_norm() && !matches!(id.kind, TensorKind::K | TensorKind::V);
        assert!(
            times.iter().all(|times| *times == 1 || (!once && *times > 1)),
            "{id} at tensor {tensor}"
        );
    }
}

/// Random bytes under FP8 and bf16, wide enough that column strips are read one by one.
#[test]
fn small_and_wide_checkpoints() {
    let wide = Sizes {
        hidden: 128,
        layers: 1,
        q_heads: 4,
        kv_heads: 2,
        ffn: 32768,
        vocab: 700,
    };
    for sizes in [common::TINY, wide] {
        for fp8 in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let json = config_json(sizes);
            let config = LlamaConfig::from_json(json.clone()).unwrap();
            fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
            let (header, data) = header(&tensors(&config, |_| fp8));
            let text = header.to_string();
            let mut file = (text.len() as u64).to_le_bytes().to_vec();
            file.extend(text.as_bytes());
            let mut state = 1u32;
            file.extend((0..data).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }));
            fs::write(folder.path().join("model.safetensors"), file).unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            for tensor in 1..=3 {
                check(&checkpoint, tensor);
            }
        }
    }
}

#[test]
fn smollm2_at_every_group_size() {
    let checkpoint = Checkpoint::open(&model("SmolLM2-135M-Instruct-FP8")).unwrap();
    for tensor in [1, 2, 3, 4, 5, 8, 9] {
        check(&checkpoint, tensor);
    }
    check(&Checkpoint::open(&model("SmolLM2-135M-Instruct")).unwrap(), 2);
}

#[test]
fn scales_go_with_their_rows() {
    let checkpoint = Checkpoint::open(&model("SmolLM2-135M-Instruct-FP8")).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let name = "model.layers.3.mlp.gate_proj.weight_scale";
    let mut bytes = vec![0; 4 * 1536];
    checkpoint.read_at(name, 0, &mut bytes).unwrap();
    let mut stored = Vec::new();
    llamero_checkpoint::dtype::extend_f32(llamero_checkpoint::Dtype::F32, &bytes, &mut stored);
    let mut found = Vec::new();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(5)).unwrap();
    let gate = TensorId {
        layer: Some(3),
        kind: TensorKind::Gate,
    };
    for shard in plan.shards() {
        let take = |rows: &Rows<'_>| {
            if rows.piece.tensor.id == gate {
                assert_eq!(rows.scales.len() as u64, rows.count);
                found.push((shard.rank, rows.first, rows.scales.to_vec()));
            }
            Ok(())
        };
        load(&checkpoint, &layout, shard, take).unwrap();
    }
    found.sort_by_key(|(rank, first, _)| (*rank, *first));
    let found: Vec<f32> = found.into_iter().flat_map(|(.., scales)| scales).collect();
    assert_eq!(found, stored);
}

#[test]
fn a_sink_can_stop_the_load() {
    let checkpoint = Checkpoint::open(&model("SmolLM2-135M-Instruct-FP8")).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(2)).unwrap();
    let calls = AtomicU64::new(0);
    let take = |_: &Rows<'_>| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        if call >= 2 { Err("enough".into()) } else { Ok(()) }
    };
    let error = load(&checkpoint, &layout, plan.member(0).unwrap(), take).unwrap_err();
    assert!(matches!(error, Error::Sink(_)) && error.to_string().contains("enough"));
    assert!(
        calls.into_inner() <= 5,
        "each of three threads may be at one more"
    );
}

#[test]
fn who_watches_can_stop_the_load() {
    let checkpoint = Checkpoint::open(&model("SmolLM2-135M-Instruct-FP8")).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(2)).unwrap();
    for threads in [1, 3] {
        let sink = Locked(Mutex::new(|_: &Rows<'_>| Ok(())));
        let mut told = 0;
        let mut watch = |_| {
            told += 1;
            if told == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let error = load_rank(
            &checkpoint,
            &layout,
            plan.member(0).unwrap(),
            threads,
            &sink,
            &mut watch,
        )
        .unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
        assert_eq!(told, 5, "once more at the end");
    }
}
