//! Checkpoints of true Llama 3.1 shape, as sparse files: headers are real, data takes no room.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{LLAMA_8B, LLAMA_70B, LLAMA_405B, Sizes, write_checkpoint};
use llamero_checkpoint::inspect::{Report, inspect};
use llamero_checkpoint::piece::{Piece, pieces, rank_bytes, read_rows, read_scales};
use llamero_checkpoint::{Checkpoint, ModelLayout, ShardPlan, TensorId, TensorKind, Topology};

/// Meta keeps attention, the first and the last layer and the head in bf16.
fn meta(id: TensorId) -> bool {
    let attention = matches!(
        id.kind,
        TensorKind::Q | TensorKind::K | TensorKind::V | TensorKind::O
    );
    id.layer.is_some_and(|layer| layer != 0 && layer != 125) && !attention
}

fn report(sizes: Sizes, tensor: u32, fp8: impl Fn(TensorId) -> bool) -> Report {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), sizes, 40, fp8);
    inspect(folder.path(), Topology::tensor(tensor)).unwrap()
}

fn billions(number: u64) -> f64 {
    (number as f64 / 1e8).round() / 10.0
}

#[test]
fn llama_8b_in_bf16() {
    let report = report(LLAMA_8B, 2, |_| false);
    assert_eq!(report.summary.parameters, 8_030_261_248);
    assert_eq!(report.summary.weights, "bf16");
    assert_eq!(billions(report.summary.checkpoint_bytes), 16.1);
    assert_eq!(report.summary.plans[0].kv_bytes_per_token_per_rank, 131_072);
    assert_eq!(report.ranks.len(), 2);
    assert_eq!(report.ranks[1].kv_bytes_per_token, 65_536);
    assert_eq!(report.summary.problem, None);
}

#[test]
fn llama_70b_in_fp8() {
    let report = report(LLAMA_70B, 8, |id| id.layer.is_some());
    assert_eq!(report.summary.weights, "fp8");
    assert_eq!(billions(report.summary.checkpoint_bytes), 72.7);
    assert_eq!(
        report
            .summary
            .plans
            .iter()
            .map(|plan| plan.tensor)
            .collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 8, 9, 16, 32]
    );
    let eighth = report.ranks[0].weight_bytes;
    assert!(
        report
            .ranks
            .iter()
            .all(|rank| rank.weight_bytes.abs_diff(eighth) < 6_000_000),
        "8 divides everything but the tiles"
    );
}

#[test]
fn llama_405b_in_metas_mix() {
    let report = report(LLAMA_405B, 8, meta);
    assert_eq!(report.summary.weights, "mixed");
    assert_eq!(billions(report.summary.parameters), 405.9);
    assert_eq!(billions(report.summary.checkpoint_bytes), 487.2);
    assert_eq!(report.summary.plans[0].kv_bytes_per_token_per_rank, 516_096);
    let json = serde_json::to_string(&report.summary).unwrap();
    assert!(
        json.len() < 4096,
        "a termination message holds 4096 bytes, not {}",
        json.len()
    );
    let text = report.to_string();
    assert!(
        text.contains("405.9 billion parameters") && text.contains("rank"),
        "{text}"
    );
}

#[test]
fn too_many_ranks_are_a_problem_and_not_an_error() {
    let report = report(LLAMA_8B, 33, |_| false);
    assert!(report.ranks.is_empty());
    assert!(
        report
            .summary
            .problem
            .as_ref()
            .unwrap()
            .contains("33 is more than 32 q heads")
    );
    assert!(report.to_string().contains("Problem: tensor 33"));
}

#[test]
fn a_report_shows_stages_tables_and_identity() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), LLAMA_70B, 40, |id| id.layer.is_some());
    let topology = Topology {
        tensor: 4,
        pipeline: 2,
    };
    let report = inspect(folder.path(), topology).unwrap();
    let text = report.to_string();
    assert!(
        text.contains("tensor 4 x pipeline 2; embedding and head are split"),
        "{text}"
    );
    assert!(
        text.contains(&format!("content identity {}", report.identity)),
        "{text}"
    );
    let (first, last) = (&report.ranks[0], &report.ranks[7]);
    assert_eq!(
        (first.shard.layers.clone(), last.shard.layers.clone()),
        (0..40, 40..80)
    );
    assert!(text.contains("40..80"), "{text}");
    // A quarter of 2.1 GB each: the embedding in the first stage, the head in the last.
    let quarter = 128_256 * 8192 * 2 / 4;
    assert!(
        first.table_bytes.abs_diff(quarter) < 3_000_000 && last.table_bytes.abs_diff(quarter) < 3_000_000
    );
    assert_eq!(
        first.kv_bytes_per_token, report.summary.plans[3].kv_bytes_per_token_per_rank,
        "sizing is told of stages"
    );
    let largest = report.ranks.iter().map(|rank| rank.weight_bytes).max();
    assert_eq!(Some(report.summary.plans[3].weight_bytes_per_rank), largest);
}

/// A rank of a 405B finds its last rows inside the files, at offsets beyond 4 GiB.
#[test]
fn the_far_end_of_a_large_checkpoint_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_checkpoint(folder.path(), LLAMA_405B, 400, meta);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(&config, Topology::tensor(16)).unwrap();
    let shard = plan.member(15).unwrap();
    for piece in pieces(&layout, shard)
        .iter()
        .filter(|piece| piece.tensor.id.layer.is_none_or(|layer| layer > 123))
    {
        let (mut row, mut scales) = (vec![1], vec![]);
        let last = piece.rows() - 1..piece.rows();
        read_rows(&checkpoint, piece, last.clone(), &mut row).unwrap();
        assert_eq!(row, vec![0; piece.row_bytes() as usize]);
        read_scales(&checkpoint, piece, last, &mut scales).unwrap();
        assert_eq!(scales.len(), usize::from(piece.tensor.scale.is_some()));
    }
}

/// Bytes read for two layers of a rank, for each byte that it keeps. Counted where they are read.
fn read_factor(sizes: Sizes, tensor: u32, rank: u32, fp8: impl Fn(TensorId) -> bool) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let config = write_checkpoint(folder.path(), sizes, 400, fp8);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(&config, Topology::tensor(tensor)).unwrap();
    let pieces = pieces(&layout, plan.member(rank).unwrap());
    let kept = pieces
        .iter()
        .filter(|piece| matches!(piece.tensor.id.layer, Some(0 | 1)));
    let before = checkpoint.bytes_read();
    let mut buffer = Vec::new();
    let mut kept_bytes = 0;
    for piece in kept {
        kept_bytes += piece.bytes();
        for first in (0..piece.rows()).step_by(512) {
            let rows = first..(first + 512).min(piece.rows());
            read_rows(&checkpoint, piece, rows, &mut buffer).unwrap();
        }
    }
    (checkpoint.bytes_read() - before) as f64 / kept_bytes as f64
}

/// Reading through every gap, as before, took 8 times what a rank of a 70B keeps of `o` and `down`, and 16 times at 405B.
#[test]
fn a_rank_reads_little_more_than_it_keeps() {
    let all = |id: TensorId| id.layer.is_some();
    for (sizes, tensor, rank, most) in [
        (LLAMA_70B, 8, 3, 1.0),
        (LLAMA_70B, 16, 15, 1.0),
        (LLAMA_405B, 8, 0, 1.0),
        (LLAMA_405B, 16, 9, 1.0),
        // Strips of `o` are 512 bytes every 4 KiB, a page each: those are read through.
        (LLAMA_8B, 8, 5, 1.6),
    ] {
        let factor = read_factor(sizes, tensor, rank, all);
        assert!(factor <= most, "{factor} at tensor {tensor} of {sizes:?}");
    }
    let factor = read_factor(LLAMA_405B, 16, 9, meta);
    assert!(factor <= 1.0, "{factor} in Meta's mix");
}

/// 405B over 16: the embedding is split as the head is; it was 4.2 GB of each rank.
#[test]
fn the_embedding_is_split() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_checkpoint(folder.path(), LLAMA_405B, 400, meta);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    let plan = ShardPlan::new(&config, Topology::tensor(16)).unwrap();
    let of = |kind| {
        let id = TensorId { layer: None, kind };
        let tensor = layout.get(id).unwrap();
        let sizes = plan.shards().iter().map(|shard| Piece {
            tensor,
            slice: shard.slice(id),
        });
        sizes.map(|piece| piece.bytes()).collect::<Vec<_>>()
    };
    let (embedding, head) = (of(TensorKind::Embed), of(TensorKind::Head));
    assert_eq!(embedding, head);
    assert_eq!(embedding.iter().sum::<u64>(), 2 * 128_256 * 16384);
    assert!(
        embedding.iter().all(|bytes| *bytes < 270_000_000),
        "{embedding:?}"
    );
    // Stages share the layers, and only the ends hold tables.
    let stages = Topology {
        tensor: 8,
        pipeline: 2,
    };
    let plan = ShardPlan::new(&config, stages).unwrap();
    let bytes = |rank| rank_bytes(&layout, plan.member(rank).unwrap());
    assert!(
        bytes(0).abs_diff(bytes(8)) < bytes(0) / 20,
        "{} and {}",
        bytes(0),
        bytes(8)
    );
}
