//! What a load is going to read, for weights that are fetched over a network before they are asked for.

use std::ops::Range;

use crate::checkpoint::Checkpoint;
use crate::narrow::to_usize;
use crate::piece::Piece;
use crate::remote::{Announced, BLOCK_BYTES};
use crate::runs::Runs;

/// What reading all of `piece` reads, in whole rows: a row that is split by columns is fetched from the first wanted
/// column to the last, because a request of its own for each strip would cost far more than the bytes between them.
pub(super) fn announced(checkpoint: &Checkpoint, piece: &Piece<'_>) -> Vec<Announced> {
    let mut all = Vec::new();
    let size = piece.tensor.dtype.size();
    if let (Some((file, start)), [first, ..]) = (
        checkpoint.position(&piece.tensor.name),
        piece.slice.cols.as_slice(),
    ) {
        let last = piece.slice.cols.as_slice().last().unwrap_or(first);
        let stride = piece.tensor.cols * size;
        let (from, to) = (u64::from(first.start) * size, u64::from(last.end) * size);
        let step = (BLOCK_BYTES / stride.max(1)).max(1);
        for rows in blocks(&piece.slice.rows, step) {
            all.push(Announced {
                file,
                range: start + rows.start * stride + from..start + (rows.end - 1) * stride + to,
                wanted: Some((rows.end - rows.start) * piece.row_bytes()),
            });
        }
    }
    let scale = piece.tensor.scale.as_ref();
    if let Some(scale) = scale
        && let Some((file, start)) = checkpoint.position(&scale.name)
        && !all.is_empty()
    {
        let size = scale.dtype.size();
        if !scale.per_row {
            all.push(Announced {
                file,
                range: start..start + size,
                wanted: None,
            });
            return all;
        }
        for rows in blocks(&piece.slice.rows, BLOCK_BYTES / size) {
            all.push(Announced {
                file,
                range: start + rows.start * size..start + rows.end * size,
                wanted: Some((rows.end - rows.start) * size),
            });
        }
    }
    all
}

/// The rows in parts of at most `step` that follow one another.
fn blocks(rows: &Runs, step: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    rows.as_slice().iter().flat_map(move |run| {
        let (start, end) = (u64::from(run.start), u64::from(run.end));
        (start..end)
            .step_by(to_usize(step))
            .map(move |first| first..(first + step).min(end))
    })
}
