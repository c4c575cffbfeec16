//! Streaming a rank's shard: only its own byte ranges are read, in chunks of whole rows.
//!
//! ```no_run
//! # use llamero_checkpoint::{Checkpoint, ModelLayout, ShardPlan, Topology, load::{self, Rows}};
//! # fn main() -> llamero_checkpoint::Result<()> {
//! let checkpoint = Checkpoint::open("model".as_ref())?;
//! let layout = ModelLayout::check(&checkpoint)?;
//! let plan = ShardPlan::new(checkpoint.config(), Topology::tensor(2))?;
//! let shard = plan.member(0)?;
//! let mut pack = |rows: Rows<'_>| {
//!     // rows.piece says which tensor; rows.first .. rows.first + rows.count are rows of the piece
//!     let _ = (rows.piece.tensor.id, rows.piece.tensor.dtype, rows.first, rows.bytes, rows.scales);
//!     Ok(())
//! };
//! load::load_rank(&checkpoint, &layout, shard, &mut pack, &mut |progress| println!("{progress:?}"))?;
//! # Ok(()) }
//! ```

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::dtype::extend_f32;
use crate::error::{Error, Result};
use crate::layout::{ModelLayout, Tensor};
use crate::progress::{Meter, Progress};
use crate::runs::Runs;
use crate::shard::{RankShard, Slice};
use crate::strips::{Spans, strips};

/// Chunks hold a multiple of so many rows, except the last of a piece.
pub const ROW_MULTIPLE: u64 = 64;
const CHUNK_BYTES: u64 = 4 << 20;

/// What a sink may fail with; any error stops the load.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// The part of one tensor that a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The whole tensor: identity, dtype, scale.
    pub tensor: &'a Tensor,
    /// The part.
    pub slice: Slice,
}

impl Piece<'_> {
    /// Rows of the part.
    #[must_use]
    pub fn rows(&self) -> u64 {
        u64::from(self.slice.rows.len())
    }

    /// Columns of the part.
    #[must_use]
    pub fn cols(&self) -> u64 {
        u64::from(self.slice.cols.len())
    }

    /// Bytes of one row of the part.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.cols() * self.tensor.dtype.size()
    }

    /// Bytes of the part without scales.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rows() * self.row_bytes()
    }

    /// Bytes of the part in memory: the elements as stored, and one f32 scale a row where there are scales.
    #[must_use]
    pub fn loaded_bytes(&self) -> u64 {
        self.bytes()
            + if self.tensor.scale.is_some() {
                4 * self.rows()
            } else {
                0
            }
    }
}

/// Some rows of a piece.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The piece they belong to.
    pub piece: &'a Piece<'a>,
    /// The first row, counted from the start of the piece.
    pub first: u64,
    /// How many rows.
    pub count: u64,
    /// `count · piece.row_bytes()` bytes, little-endian, row by row.
    pub bytes: &'a [u8],
    /// One scale for each of these rows; empty where the tensor is not quantised. Scalar scales are repeated.
    pub scales: &'a [f32],
}

/// The pieces of a rank in the order in which they are loaded.
#[must_use]
pub fn pieces<'a>(layout: &'a ModelLayout, shard: &RankShard) -> Vec<Piece<'a>> {
    layout
        .tensors
        .iter()
        .filter(|tensor| shard.has(tensor.id))
        .map(|tensor| Piece {
            tensor,
            slice: shard.slice(tensor.id),
        })
        .collect()
}

/// Bytes that [`load_rank`] hands over for this rank, scales as f32 included: the total of its progress.
#[must_use]
pub fn rank_bytes(layout: &ModelLayout, shard: &RankShard) -> u64 {
    pieces(layout, shard).iter().map(Piece::loaded_bytes).sum()
}

/// Hand all rows of the rank's shard to `sink`, tensor by tensor; `report` hears of every chunk that `sink` has taken.
///
/// # Errors
/// A read fails, or the sink does ([`Error::Sink`]).
pub fn load_rank(
    checkpoint: &Checkpoint,
    layout: &ModelLayout,
    shard: &RankShard,
    sink: &mut dyn FnMut(Rows<'_>) -> Result<(), SinkError>,
    report: &mut dyn FnMut(Progress),
) -> Result<()> {
    let mut meter = Meter::new(rank_bytes(layout, shard), report);
    let mut buffer = Vec::new();
    for piece in pieces(layout, shard) {
        let scales = read_scales(checkpoint, &piece)?;
        let step = chunk_rows(piece.row_bytes());
        let mut first = 0;
        while first < piece.rows() {
            let count = step.min(piece.rows() - first);
            buffer.resize((count * piece.row_bytes()) as usize, 0);
            read_rows(checkpoint, &piece, first..first + count, &mut buffer)?;
            let scales = scales
                .get(first as usize..(first + count) as usize)
                .unwrap_or(&[]);
            let rows = Rows {
                piece: &piece,
                first,
                count,
                bytes: &buffer,
                scales,
            };
            sink(rows).map_err(Error::Sink)?;
            meter.add(buffer.len() as u64 + 4 * scales.len() as u64);
            first += count;
        }
    }
    Ok(())
}

/// The scale of every row of the piece; empty where the tensor is not quantised.
pub fn read_scales(checkpoint: &Checkpoint, piece: &Piece<'_>) -> Result<Vec<f32>> {
    let Some(scale) = &piece.tensor.scale else {
        return Ok(Vec::new());
    };
    let one = Runs::from(0..1);
    let wanted = if scale.per_row { &piece.slice.rows } else { &one };
    let size = scale.dtype.size();
    let mut bytes = Vec::new();
    let mut scales = Vec::new();
    for run in wanted.as_slice() {
        bytes.resize((u64::from(run.end - run.start) * size) as usize, 0);
        checkpoint.read_at(&scale.name, u64::from(run.start) * size, &mut bytes)?;
        extend_f32(scale.dtype, &bytes, &mut scales);
    }
    if !scale.per_row {
        scales.resize(piece.rows() as usize, scales[0]);
    }
    Ok(scales)
}

/// Fill `buffer` with `rows` (counted from the start of the piece), row by row; its length must fit.
pub fn read_rows(
    checkpoint: &Checkpoint,
    piece: &Piece<'_>,
    rows: Range<u64>,
    buffer: &mut [u8],
) -> Result<()> {
    debug_assert_eq!(buffer.len() as u64, (rows.end - rows.start) * piece.row_bytes());
    let rows = piece.slice.rows.part(rows.start as u32..rows.end as u32);
    let name = &piece.tensor.name;
    let mut spans = Spans::default();
    for strip in strips(piece.tensor, &rows, &piece.slice.cols) {
        spans.add(strip);
    }
    spans.read(buffer, &mut |offset, target| {
        checkpoint.read_at(name, offset, target)
    })
}

fn chunk_rows(row_bytes: u64) -> u64 {
    let rows = CHUNK_BYTES / row_bytes.max(1);
    (rows - rows % ROW_MULTIPLE).max(ROW_MULTIPLE)
}
