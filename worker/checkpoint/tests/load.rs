//! The shards of all ranks together are the checkpoint, byte for byte.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{Sizes, config_json, header, model, tensors};
use llamero_checkpoint::load::{Rows, load_rank, rank_bytes};
use llamero_checkpoint::{
    Checkpoint, Error, LlamaConfig, ModelLayout, ShardPlan, TensorId, TensorKind, Topology,
};

/// A whole tensor and how often every byte of it has been seen.
type Seen = BTreeMap<TensorId, (Vec<u8>, Vec<u8>)>;

fn gather(checkpoint: &Checkpoint, layout: &ModelLayout, tensor: u32) -> Seen {
    let mut seen: Seen = layout
        .tensors
        .iter()
        .map(|tensor| (tensor.rows * tensor.cols * tensor.dtype.size(), tensor.id))
        .map(|(size, id)| (id, (vec![0; size as usize], vec![0; size as usize])))
        .collect();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(tensor)).unwrap();
    for shard in plan.shards() {
        let mut progress = Vec::new();
        let mut sink = |rows: Rows<'_>| {
            let (tensor, slice) = (rows.piece.tensor, &rows.piece.slice);
            let (stride, size) = (tensor.cols * tensor.dtype.size(), tensor.dtype.size());
            let (whole, times) = seen.get_mut(&tensor.id).unwrap();
            for (row, bytes) in slice
                .rows
                .iter()
                .skip(rows.first as usize)
                .zip(rows.bytes.chunks(rows.piece.row_bytes() as usize))
            {
                let at =
                    (u64::from(row) * stride + u64::from(slice.cols.as_slice()[0].start) * size) as usize;
                whole[at..at + bytes.len()].copy_from_slice(bytes);
                times[at..at + bytes.len()]
                    .iter_mut()
                    .for_each(|times| *times += 1);
            }
            assert_eq!(rows.bytes.len() as u64, rows.count * rows.piece.row_bytes());
            Ok(())
        };
        load_rank(checkpoint, layout, shard, &mut sink, &mut |now| {
            progress.push(now)
        })
        .unwrap();
        let last = progress.last().unwrap();
        assert_eq!(
            (last.done, last.total),
            (rank_bytes(layout, shard), rank_bytes(layout, shard))
        );
        assert!(progress.is_sorted_by_key(|progress| progress.done));
    }
    seen
}

fn check(checkpoint: &Checkpoint, tensor: u32) {
    let layout = ModelLayout::check(checkpoint).unwrap();
    for (id, (whole, times)) in gather(checkpoint, &layout, tensor) {
        let mut stored = vec![0; whole.len()];
        checkpoint
            .read_at(&layout.get(id).unwrap().name, 0, &mut stored)
            .unwrap();
        assert!(whole == stored, "{id} at tensor {tensor}");
        // Embedding, norms and kv heads may be held by several ranks.
        let once = id.kind.is_linear() && !matches!(id.kind, TensorKind::K | TensorKind::V);
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
    for shard in plan.shards() {
        let mut sink = |rows: Rows<'_>| {
            if rows.piece.tensor.id
                == (TensorId {
                    layer: Some(3),
                    kind: TensorKind::Gate,
                })
            {
                assert_eq!(rows.scales.len() as u64, rows.count);
                found.extend_from_slice(rows.scales);
            }
            Ok(())
        };
        load_rank(&checkpoint, &layout, shard, &mut sink, &mut |_| ()).unwrap();
    }
    assert_eq!(found, stored);
}

#[test]
fn a_sink_can_stop_the_load() {
    let checkpoint = Checkpoint::open(&model("SmolLM2-135M-Instruct-FP8")).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(2)).unwrap();
    let shard = plan.member(0).unwrap();
    let mut calls = 0;
    let mut sink = |_: Rows<'_>| {
        calls += 1;
        if calls == 3 { Err("enough".into()) } else { Ok(()) }
    };
    let error = load_rank(&checkpoint, &layout, shard, &mut sink, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::Sink(_)) && error.to_string().contains("enough"));
    assert_eq!(calls, 3);
}
