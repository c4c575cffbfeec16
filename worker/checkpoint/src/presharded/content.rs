//! Which tensors and blocks the file of a rank has. Follows from the model's tensors and the rank's part of them alone, so who
//! reads knows what must be there.

use std::ops::Range;

use super::PreshardedError;
use super::manifest::ShardManifest;
use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::layout::ModelLayout;
use crate::load::chunk_rows;
use crate::narrow::to_usize;
use crate::piece::{Piece, pieces};
use crate::safetensors::{SafetensorsFile, TensorSpec};
use crate::shard::{RankShard, ShardPlan};

/// Name of the table of digests. No tensor of a model is called so.
pub(crate) const HASHES: &str = "block_sha256";
/// Bytes of a digest.
pub(super) const DIGEST: u64 = 32;

/// The blocks of a piece, as ranges of its rows.
pub(super) fn blocks(piece: &Piece<'_>, block_bytes: u64) -> impl Iterator<Item = Range<u64>> + use<> {
    let (rows, step) = (piece.rows(), chunk_rows(piece, block_bytes));
    (0..rows)
        .step_by(to_usize(step))
        .map(move |first| first..(first + step).min(rows))
}

/// How many blocks a piece has.
pub(super) fn block_count(piece: &Piece<'_>, block_bytes: u64) -> u64 {
    piece.rows().div_ceil(chunk_rows(piece, block_bytes))
}

/// Scales of a piece in its file: as many as it has rows, or one.
pub(super) fn scale_count(piece: &Piece<'_>) -> u64 {
    match &piece.tensor.scale {
        Some(scale) if scale.per_row => piece.rows(),
        Some(_) => 1,
        None => 0,
    }
}

/// The tensors of a rank's file: the table of digests, then its pieces in the order in which they are loaded, each behind its
/// scales.
pub(super) fn specs(pieces: &[Piece<'_>], block_bytes: u64) -> Vec<TensorSpec> {
    let blocks = pieces.iter().map(|piece| block_count(piece, block_bytes)).sum();
    let mut specs = vec![TensorSpec {
        name: HASHES.to_owned(),
        dtype: Dtype::U8,
        shape: vec![blocks, DIGEST],
    }];
    for piece in pieces {
        if let Some(scale) = &piece.tensor.scale {
            let shape = if scale.per_row {
                vec![piece.rows(), 1]
            } else {
                vec![1]
            };
            specs.push(TensorSpec {
                name: scale.name.clone(),
                dtype: scale.dtype,
                shape,
            });
        }
        let shape = if piece.tensor.id.kind.is_norm() {
            vec![piece.cols()]
        } else {
            vec![piece.rows(), piece.cols()]
        };
        specs.push(TensorSpec {
            name: piece.tensor.name.clone(),
            dtype: piece.tensor.dtype,
            shape,
        });
    }
    specs
}

/// Whether every rank's file has exactly what its rank holds.
///
/// # Errors
/// One has not, or the model cannot be split for the group that the folder was made for.
pub(crate) fn check_files(
    checkpoint: &Checkpoint,
    manifest: &ShardManifest,
    layout: &ModelLayout,
) -> Result<()> {
    let plan = ShardPlan::new(checkpoint.config(), manifest.topology)?;
    for (shard, file) in plan.shards().iter().zip(checkpoint.files()) {
        check_file(file, shard, layout, manifest.block_bytes)?;
    }
    Ok(())
}

fn check_file(
    file: &SafetensorsFile,
    shard: &RankShard,
    layout: &ModelLayout,
    block_bytes: u64,
) -> Result<(), PreshardedError> {
    let other = |reason| PreshardedError::OtherFile {
        path: file.path().to_path_buf(),
        rank: shard.rank,
        reason,
    };
    let wanted = specs(&pieces(layout, shard), block_bytes);
    let mut start = 0;
    for spec in &wanted {
        let TensorSpec { name, dtype, shape } = spec;
        let found = file
            .tensor(name)
            .ok_or_else(|| other(format!("it has no {name}")))?;
        if found.dtype != *dtype || found.shape != *shape {
            return Err(other(format!(
                "its {name} is {} {:?}, the rank's is {dtype} {shape:?}",
                found.dtype, found.shape
            )));
        }
        if found.range.start != start {
            return Err(other(format!("its {name} is not where it belongs")));
        }
        start = found.range.end;
    }
    if file.header().tensors.len() > wanted.len() {
        return Err(other("it has more tensors than the rank holds".to_owned()));
    }
    Ok(())
}
