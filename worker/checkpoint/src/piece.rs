//! The parts of tensors that a rank holds, and reading them.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::dtype::extend_f32;
use crate::error::Result;
use crate::layout::{ModelLayout, Tensor, TensorId, TensorKind};
use crate::narrow::{to_u32, to_usize};
use crate::runs::Runs;
use crate::shard::{RankShard, Slice};
use crate::strips::{Spans, strips};

/// Chunks of a piece start at a multiple of so many of its rows.
pub const ROW_MULTIPLE: u64 = 32;

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
        let scales = if self.tensor.scale.is_some() {
            4 * self.rows()
        } else {
            0
        };
        self.bytes() + scales
    }
}

/// The pieces of a rank in the order in which they are loaded. A table that serves as embedding and as head is one piece,
/// the head, where the rank holds both.
#[must_use]
pub fn pieces<'a>(layout: &'a ModelLayout, shard: &RankShard) -> Vec<Piece<'a>> {
    let head = TensorId {
        layer: None,
        kind: TensorKind::Head,
    };
    let twice = layout.is_tied() && shard.has(head);
    layout
        .tensors
        .iter()
        .filter(|tensor| shard.has(tensor.id) && !(twice && tensor.id.kind == TensorKind::Embed))
        .map(|tensor| Piece {
            tensor,
            slice: shard.slice(tensor.id),
        })
        .collect()
}

/// The pieces that `shard` has and `held`, another share of the same rank, has not. Norms are in both.
#[must_use]
pub fn pieces_beyond<'a>(layout: &'a ModelLayout, shard: &RankShard, held: &RankShard) -> Vec<Piece<'a>> {
    let norms = [
        TensorKind::InputNorm,
        TensorKind::PostAttentionNorm,
        TensorKind::FinalNorm,
    ];
    let mut pieces = pieces(layout, &shard.beyond(held));
    pieces.retain(|piece| piece.bytes() > 0 && !norms.contains(&piece.tensor.id.kind));
    pieces
}

/// Bytes of a rank's shard, scales as f32 included.
#[must_use]
pub fn rank_bytes(layout: &ModelLayout, shard: &RankShard) -> u64 {
    pieces(layout, shard).iter().map(Piece::loaded_bytes).sum()
}

/// The scales of `rows` (counted from the start of the piece), put into `scales`; none where the tensor is not quantised.
///
/// # Errors
/// A read fails.
pub fn read_scales(
    checkpoint: &Checkpoint,
    piece: &Piece<'_>,
    rows: Range<u64>,
    scales: &mut Vec<f32>,
) -> Result<()> {
    scales.clear();
    let Some(scale) = &piece.tensor.scale else {
        return Ok(());
    };
    let wanted = if scale.per_row {
        piece.slice.rows.part(to_u32(rows.start)..to_u32(rows.end))
    } else {
        Runs::from(0..1)
    };
    let size = scale.dtype.size();
    let mut bytes = Vec::new();
    for run in wanted.as_slice() {
        bytes.resize(to_usize(u64::from(run.end - run.start) * size), 0);
        checkpoint.read_at(&scale.name, u64::from(run.start) * size, &mut bytes)?;
        extend_f32(scale.dtype, &bytes, scales);
    }
    if !scale.per_row {
        let one = scales.first().copied().unwrap_or(1.0);
        scales.resize(to_usize(rows.end - rows.start), one);
    }
    Ok(())
}

/// Put `rows` (counted from the start of the piece) into `buffer`, row by row.
///
/// # Errors
/// A read fails.
pub fn read_rows(
    checkpoint: &Checkpoint,
    piece: &Piece<'_>,
    rows: Range<u64>,
    buffer: &mut Vec<u8>,
) -> Result<()> {
    buffer.resize(to_usize((rows.end - rows.start) * piece.row_bytes()), 0);
    let spans = match checkpoint.is_remote() {
        true => Spans::without_gaps(),
        false => Spans::through_small_gaps(),
    };
    let spans = strips_of(piece, rows, spans);
    spans.read(buffer, &mut |offset, target| {
        checkpoint.read_at(&piece.tensor.name, offset, target)
    })
}

/// The strips of `rows`, joined.
fn strips_of(piece: &Piece<'_>, rows: Range<u64>, mut spans: Spans) -> Spans {
    let rows = piece.slice.rows.part(to_u32(rows.start)..to_u32(rows.end));
    for strip in strips(piece.tensor, &rows, &piece.slice.cols) {
        spans.add(strip);
    }
    spans
}
