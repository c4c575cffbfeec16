//! Checkpoints of true Llama 3.1 shape, as sparse files: headers are real, data takes no room.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{LLAMA_8B, LLAMA_70B, LLAMA_405B, Sizes, write_checkpoint};
use llamero_checkpoint::inspect::{Report, inspect};
use llamero_checkpoint::load::{pieces, read_rows, read_scales};
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
    inspect(folder.path(), tensor).unwrap()
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
            .all(|rank| rank.weight_bytes.abs_diff(eighth) < 3_000_000),
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
        let mut row = vec![1; piece.row_bytes() as usize];
        read_rows(&checkpoint, piece, piece.rows() - 1..piece.rows(), &mut row).unwrap();
        assert!(row.iter().all(|byte| *byte == 0));
        let scales = read_scales(&checkpoint, piece).unwrap();
        assert_eq!(
            scales.len() as u64,
            if piece.tensor.scale.is_some() {
                piece.rows()
            } else {
                0
            }
        );
    }
}
