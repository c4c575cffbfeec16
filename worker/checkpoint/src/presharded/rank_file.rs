//! Reading the file of a rank: whole blocks, each checked by its digest.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::PreshardedError;
use super::content::{DIGEST, HASHES, block_count};
use super::manifest::ShardManifest;
use crate::checkpoint::Checkpoint;
use crate::dtype::extend_f32;
use crate::error::{Error, Result};
use crate::identity::ContentIdentity;
use crate::load::chunk_rows;
use crate::narrow::to_usize;
use crate::piece::Piece;
use crate::remote::{Announced, BLOCK_BYTES};
use crate::shard::RankShard;

/// The file of one rank, and the digests of its blocks.
#[derive(Debug)]
pub(crate) struct RankFile {
    rank: usize,
    block_bytes: u64,
    digests: Vec<u8>,
    /// Number of the first block of each piece.
    starts: Vec<u64>,
}

impl RankFile {
    /// The file of `shard`, whose pieces are `pieces`. Reads the table of digests.
    ///
    /// # Errors
    /// The folder was made for other ranks, the table is damaged, or cannot be read.
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        manifest: &ShardManifest,
        shard: &RankShard,
        pieces: &[Piece<'_>],
    ) -> Result<Self> {
        let plan = checkpoint.shard_plan(&shard.topology.into())?;
        if plan.shard(shard.rank) != Some(shard) {
            // Whoever inherited from a lost rank holds more than is in its file.
            return Err(crate::error::ShardError::MadeForAll {
                made_for: manifest.topology,
            }
            .into());
        }
        let rank = shard.rank as usize;
        let mut starts = Vec::with_capacity(pieces.len());
        let mut blocks = 0;
        for piece in pieces {
            starts.push(blocks);
            blocks += block_count(piece, manifest.block_bytes);
        }
        let mut digests = vec![0; to_usize(blocks * DIGEST)];
        checkpoint.read_file_at(rank, HASHES, 0, &mut digests)?;
        let found = ContentIdentity::from(<[u8; 32]>::from(Sha256::digest(&digests)));
        if manifest.files.get(rank).is_none_or(|file| file.table != found) {
            return Err(damaged(checkpoint, rank, HASHES, 0..blocks));
        }
        Ok(Self {
            rank,
            block_bytes: manifest.block_bytes,
            digests,
            starts,
        })
    }

    /// Rows of a block of `piece`.
    pub(crate) fn step(&self, piece: &Piece<'_>) -> u64 {
        chunk_rows(piece, self.block_bytes)
    }

    /// Put the block of `piece`, the `number`-th, that has exactly `rows` into `bytes`, and its scales into `scales`.
    ///
    /// # Errors
    /// A read fails, or the bytes are not what was written.
    pub(crate) fn read(
        &self,
        checkpoint: &Checkpoint,
        number: usize,
        piece: &Piece<'_>,
        rows: Range<u64>,
        bytes: &mut Vec<u8>,
        scales: &mut Vec<f32>,
    ) -> Result<()> {
        let row_bytes = piece.row_bytes();
        bytes.resize(to_usize((rows.end - rows.start) * row_bytes), 0);
        checkpoint.read_file_at(self.rank, &piece.tensor.name, rows.start * row_bytes, bytes)?;
        let stored = self.stored_scales(checkpoint, piece, &rows)?;
        let digest = Sha256::new()
            .chain_update(&*bytes)
            .chain_update(&stored)
            .finalize();
        let first = self.starts.get(number).copied().unwrap_or(u64::MAX);
        let block = first.saturating_add(rows.start / self.step(piece));
        let at = to_usize(block.saturating_mul(DIGEST));
        if self.digests.get(at..at.saturating_add(digest.len())) != Some(&digest[..]) {
            return Err(damaged(checkpoint, self.rank, &piece.tensor.name, rows));
        }
        scales.clear();
        if let Some(scale) = &piece.tensor.scale {
            extend_f32(scale.dtype, &stored, scales);
            let one = scales.first().copied().unwrap_or(1.0);
            scales.resize(to_usize(rows.end - rows.start), one);
        }
        Ok(())
    }

    /// The scales of `rows` as they are stored; the one that there is for all.
    fn stored_scales(
        &self,
        checkpoint: &Checkpoint,
        piece: &Piece<'_>,
        rows: &Range<u64>,
    ) -> Result<Vec<u8>> {
        let Some(scale) = &piece.tensor.scale else {
            return Ok(Vec::new());
        };
        let wanted = if scale.per_row { rows.clone() } else { 0..1 };
        let size = scale.dtype.size();
        let mut stored = vec![0; to_usize((wanted.end - wanted.start) * size)];
        checkpoint.read_file_at(self.rank, &scale.name, wanted.start * size, &mut stored)?;
        Ok(stored)
    }

    /// What reading all of `piece` reads.
    pub(crate) fn announced(&self, checkpoint: &Checkpoint, piece: &Piece<'_>) -> Vec<Announced> {
        let mut all = Vec::new();
        if let Some(scale) = &piece.tensor.scale
            && let Some(range) = checkpoint.range_in_file(self.rank, &scale.name)
        {
            // One for all rows is read with each block.
            let wanted = scale.per_row.then_some(range.end - range.start);
            all.push(self.range(range, wanted));
        }
        if let Some(range) = checkpoint.range_in_file(self.rank, &piece.tensor.name) {
            let step = self.step(piece) * piece.row_bytes();
            let step = (BLOCK_BYTES / step.max(1)).max(1) * step;
            let mut start = range.start;
            while start < range.end {
                let end = (start + step).min(range.end);
                all.push(self.range(start..end, Some(end - start)));
                start = end;
            }
        }
        all
    }

    fn range(&self, range: Range<u64>, wanted: Option<u64>) -> Announced {
        Announced {
            file: self.rank,
            range,
            wanted,
        }
    }
}

fn damaged(checkpoint: &Checkpoint, rank: usize, tensor: &str, rows: Range<u64>) -> Error {
    PreshardedError::Damaged {
        path: checkpoint.files().get(rank).map_or_else(
            || checkpoint.folder().to_path_buf(),
            |file| file.path().to_path_buf(),
        ),
        tensor: tensor.to_owned(),
        rows,
    }
    .into()
}
