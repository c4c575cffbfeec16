//! What the ranks of a pod read together.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use common::{LLAMA_70B, LLAMA_405B, Sizes, write_checkpoint};
use llamero_checkpoint::piece::read_rows;
use llamero_checkpoint::pod::{is_split_by_columns, shared_reads};
use llamero_checkpoint::{Checkpoint, ModelLayout, Runs, ShardPlan, Topology};

fn open(sizes: Sizes) -> (tempfile::TempDir, Checkpoint, ModelLayout) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), sizes, 400, |id| id.layer.is_some());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let layout = ModelLayout::check(&checkpoint).unwrap();
    (folder, checkpoint, layout)
}

/// Bytes of all column-split tensors.
fn all(layout: &ModelLayout) -> u64 {
    let split = layout.tensors.iter().filter(|tensor| is_split_by_columns(tensor));
    split.map(|tensor| tensor.rows * tensor.cols).sum()
}

#[test]
fn a_pod_reads_every_row_once_and_everybody_a_part() {
    let (_folder, checkpoint, layout) = open(LLAMA_70B);
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(8)).unwrap();
    let mut read = [0; 8];
    for chunk in shared_reads(&layout, plan.shards()) {
        read[chunk.reader] += chunk.piece.bytes();
        // The members' shares are the chunk, each column once.
        let shares: Vec<Runs> = plan.shards().iter().map(|shard| chunk.share(shard)).collect();
        assert_eq!(
            shares.iter().map(Runs::len).sum::<u32>(),
            chunk.piece.slice.cols.len()
        );
        assert_eq!(
            Runs::new(shares.iter().flat_map(|share| share.as_slice().to_vec())),
            Runs::from(0..chunk.piece.slice.cols.len())
        );
    }
    assert_eq!(read.iter().sum::<u64>(), all(&layout), "24 GB, once");
    let eighth = all(&layout) / 8;
    assert!(
        read.iter().all(|bytes| bytes.abs_diff(eighth) < 2 << 20),
        "{read:?}"
    );
}

#[test]
fn two_pods_of_a_405b_read_half_of_each_row() {
    let (_folder, checkpoint, layout) = open(LLAMA_405B);
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(16)).unwrap();
    for pod in plan.shards().chunks(8) {
        let bytes: u64 = shared_reads(&layout, pod).map(|chunk| chunk.piece.bytes()).sum();
        assert_eq!(bytes, all(&layout) / 2);
    }
    // Really reading some chunks: what is read is what is kept, in one call for each row at most.
    let mut buffer = Vec::new();
    let (mut kept, before) = (0, checkpoint.bytes_read());
    for chunk in shared_reads(&layout, &plan.shards()[..8]).step_by(97).take(20) {
        read_rows(&checkpoint, &chunk.piece, 0..chunk.piece.rows(), &mut buffer).unwrap();
        kept += chunk.piece.bytes();
    }
    assert_eq!(checkpoint.bytes_read() - before, kept);
}

#[test]
fn survivors_share_with_gaps() {
    let (_folder, checkpoint, layout) = open(LLAMA_70B);
    let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(8)).unwrap();
    let seven = plan.without(3).unwrap();
    // Two of them in one pod.
    let pod = &seven.shards()[..2];
    let chunk = shared_reads(&layout, pod).next().unwrap();
    let shares: Vec<Runs> = pod.iter().map(|shard| chunk.share(shard)).collect();
    assert_eq!(
        chunk.piece.slice.cols.len(),
        shares.iter().map(Runs::len).sum::<u32>()
    );
    assert_eq!(shares[0].len(), 10 * 128, "eight q heads and two more");
    let mut buffer = Vec::new();
    read_rows(&checkpoint, &chunk.piece, 0..chunk.piece.rows(), &mut buffer).unwrap();
    assert_eq!(buffer.len() as u64, chunk.piece.bytes());
}
