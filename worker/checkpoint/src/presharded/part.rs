//! The file of a rank while it is made. It has its name only when it is whole.
#![expect(
    clippy::indexing_slicing,
    reason = "numbers of pieces come from the same list, which has a place for each, and scales were read for all rows"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::content::{DIGEST, block_count, blocks, scale_count, specs};
use crate::error::Result;
use crate::identity::ContentIdentity;
use crate::io_error::IoError;
use crate::layout::{ModelLayout, TensorId};
use crate::load::chunk_rows;
use crate::narrow::to_usize;
use crate::piece::{Piece, pieces};
use crate::safetensors::{OutputDir, TensorSpec, header_bytes};
use crate::shard::RankShard;

/// Where a piece lies in the file.
struct Place {
    scales: u64,
    weight: u64,
    /// Number of its first block.
    block: u64,
}

/// The file of one rank.
pub(super) struct Part<'a> {
    /// Its name when it is whole.
    pub(super) name: String,
    path: PathBuf,
    /// None where an earlier run has finished it.
    file: Option<File>,
    /// What it holds.
    pub(super) pieces: Vec<Piece<'a>>,
    places: Vec<Place>,
    header: Vec<u8>,
    bytes: u64,
    data: u64,
    block_bytes: u64,
    /// Where the piece is that is being written.
    now: Option<Now>,
}

/// A piece that is being written.
struct Now {
    number: usize,
    scales: Vec<u8>,
    /// Rows written.
    rows: u64,
    digest: Sha256,
}

impl<'a> Part<'a> {
    /// The file of `shard`, as far as an earlier run has come with it. Nothing is written yet.
    pub(super) fn new(
        output: &OutputDir,
        layout: &'a ModelLayout,
        shard: &RankShard,
        block_bytes: u64,
    ) -> Self {
        let pieces = pieces(layout, shard);
        let specs = specs(&pieces, block_bytes);
        let header = header_bytes(&specs);
        let data = header.len() as u64;
        let name = format!(
            "rank-{:05}-of-{:05}.safetensors",
            shard.rank,
            shard.topology.ranks()
        );
        Self {
            path: output.path().join(format!("{name}.part")),
            name,
            file: None,
            places: places(&pieces, data + specs[0].bytes(), block_bytes),
            pieces,
            bytes: data + specs.iter().map(TensorSpec::bytes).sum::<u64>(),
            header,
            data,
            block_bytes,
            now: None,
        }
    }

    /// Its size when it is whole.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether an earlier run has finished it.
    pub(super) fn is_finished(&self, output: &OutputDir) -> bool {
        let found = fs::metadata(output.path().join(&self.name));
        found.is_ok_and(|found| found.len() == self.bytes)
    }

    /// Whether an earlier run has begun it.
    pub(super) fn is_begun(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| found.len() == self.bytes)
    }

    /// Open it for writing, with what an earlier run has written.
    pub(super) fn begin(&mut self) -> Result<()> {
        let at = |action| IoError::at(action, &self.path);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let file = options.open(&self.path).map_err(at("create"))?;
        file.set_len(self.bytes).map_err(at("lengthen"))?;
        file.write_all_at(&self.header, 0).map_err(at("write"))?;
        self.file = Some(file);
        Ok(())
    }

    /// The piece of that tensor, where it is to be written here.
    pub(super) fn piece(&self, id: TensorId) -> Option<(usize, &Piece<'a>)> {
        self.file.as_ref()?;
        let mut all = self.pieces.iter().enumerate();
        all.find(|(_, piece)| piece.tensor.id == id)
    }

    /// Begin with a piece, whose scales are stored as `scales`.
    pub(super) fn start(&mut self, number: usize, scales: Vec<u8>) -> Result<()> {
        self.write(self.places[number].scales, &scales)?;
        self.now = Some(Now {
            number,
            scales,
            rows: 0,
            digest: Sha256::new(),
        });
        Ok(())
    }

    /// Append some whole rows of the piece; how many bytes were written.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<u64> {
        let written = bytes.len() as u64;
        let Some(mut now) = self.now.take() else {
            return Ok(0);
        };
        let piece = &self.pieces[now.number];
        let (row_bytes, step) = (piece.row_bytes(), chunk_rows(piece, self.block_bytes));
        let place = &self.places[now.number];
        self.write(place.weight + now.rows * row_bytes, bytes)?;
        while !bytes.is_empty() {
            let block = now.rows / step;
            let end = ((block + 1) * step).min(piece.rows());
            let left = to_usize((end - now.rows) * row_bytes);
            let (of_block, rest) = bytes.split_at(left.min(bytes.len()));
            now.digest.update(of_block);
            now.rows += of_block.len() as u64 / row_bytes;
            bytes = rest;
            if now.rows == end {
                let size = now.scales.len() as u64 / scale_count(piece).max(1);
                let of_rows = match &piece.tensor.scale {
                    Some(scale) if scale.per_row => block * step * size..end * size,
                    _ => 0..size,
                };
                now.digest
                    .update(&now.scales[to_usize(of_rows.start)..to_usize(of_rows.end)]);
                let digest = now.digest.finalize_reset();
                self.write(self.data + (place.block + block) * DIGEST, &digest)?;
            }
        }
        self.now = Some(now);
        Ok(written)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        match &self.file {
            Some(file) => Ok(file
                .write_all_at(bytes, at)
                .map_err(IoError::at("write", &self.path))?),
            None => Ok(()),
        }
    }

    /// Have everything on disk that was written.
    pub(super) fn flush(&self) -> Result<()> {
        match &self.file {
            Some(file) => Ok(file.sync_all().map_err(IoError::at("flush", &self.path))?),
            None => Ok(()),
        }
    }

    /// Give it its name: all of it is on disk.
    pub(super) fn finish(&mut self, output: &OutputDir) -> Result<()> {
        if self.file.take().is_some() {
            let whole = output.path().join(&self.name);
            fs::rename(&self.path, &whole).map_err(IoError::at("rename into", &whole))?;
        }
        Ok(())
    }

    /// The SHA-256 of the table of digests of the finished file.
    pub(super) fn table(&self, output: &OutputDir) -> Result<ContentIdentity> {
        let path = output.path().join(&self.name);
        let blocks: u64 = self
            .pieces
            .iter()
            .map(|piece| block_count(piece, self.block_bytes))
            .sum();
        let mut table = vec![0; to_usize(blocks * DIGEST)];
        File::open(&path)
            .and_then(|file| file.read_exact_at(&mut table, self.data))
            .map_err(IoError::at("read", &path))?;
        Ok(<[u8; 32]>::from(Sha256::digest(&table)).into())
    }
}

fn places(pieces: &[Piece<'_>], mut at: u64, block_bytes: u64) -> Vec<Place> {
    let mut block = 0;
    let place = |piece: &Piece<'_>| {
        let size = piece.tensor.scale.as_ref().map_or(0, |scale| scale.dtype.size());
        let scales = at;
        let weight = scales + scale_count(piece) * size;
        at = weight + piece.bytes();
        let first = block;
        block += blocks(piece, block_bytes).count() as u64;
        Place {
            scales,
            weight,
            block: first,
        }
    };
    pieces.iter().map(place).collect()
}
