//! Who of a pod reads what of the tensors that are split by columns.
//!
//! A rank alone reads its own strip of each row. On a disk or a network that is a small read every few kilobytes, and the
//! ranks of a pod ask for neighbouring strips of the same rows. Ranks that load at the same time rather read each row once,
//! as far as any of them keeps it: chunk `i` of all chunks is read by member `i mod n`, who gives every member its strips.
//! Chunks are small, so that all members are busy to the end, and who reads a chunk follows from its number alone, so that
//! a member that finds one undone for long, because its reader died, can read its own strips of it instead.

use crate::layout::{ModelLayout, Tensor, TensorKind};
use crate::narrow::{to_u32, to_usize};
use crate::piece::{Piece, ROW_MULTIPLE};
use crate::runs::Runs;
use crate::shard::{RankShard, Slice};

/// Bytes of a chunk at most, unless 32 rows are more.
const CHUNK_BYTES: u64 = 1 << 20;

/// A chunk of whole rows, as far as any member keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRead<'a> {
    /// What to read: some rows, and the columns of all members.
    pub piece: Piece<'a>,
    /// The first of the rows, in the whole tensor.
    pub first: u64,
    /// The member that reads it.
    pub reader: usize,
}

impl SharedRead<'_> {
    /// The columns of the piece, counted from 0, that belong to a member's `shard`.
    #[must_use]
    pub fn share(&self, shard: &RankShard) -> Runs {
        let own = shard.slice(self.piece.tensor.id).cols;
        let position = |col: u32| self.piece.slice.cols.position(col).unwrap_or(0);
        // A run of the member lies in one run of the union.
        let runs = own.as_slice().iter().map(|run| {
            let start = position(run.start);
            start..start + (run.end - run.start)
        });
        Runs::new(runs)
    }
}

/// Whether ranks split that tensor by columns.
#[must_use]
pub fn is_split_by_columns(tensor: &Tensor) -> bool {
    matches!(tensor.id.kind, TensorKind::O | TensorKind::Down)
}

/// All chunks of the column-split tensors of `members`, which are ranks of one stage, in the order in which they are read.
pub fn shared_reads<'a>(
    layout: &'a ModelLayout,
    members: &'a [RankShard],
) -> impl Iterator<Item = SharedRead<'a>> + 'a {
    let wanted =
        |tensor: &&Tensor| is_split_by_columns(tensor) && members.iter().any(|member| member.has(tensor.id));
    let chunks = layout.tensors.iter().filter(wanted).flat_map(|tensor| {
        let cols = Runs::new(members.iter().flat_map(|member| {
            let cols = member.slice(tensor.id).cols;
            cols.as_slice().to_vec()
        }));
        let row_bytes = u64::from(cols.len()) * tensor.dtype.size();
        let rows = CHUNK_BYTES / row_bytes.max(1);
        let step = (rows - rows % ROW_MULTIPLE).max(ROW_MULTIPLE);
        (0..tensor.rows).step_by(to_usize(step)).map(move |first| {
            let end = (first + step).min(tensor.rows);
            let slice = Slice {
                rows: Runs::from(to_u32(first)..to_u32(end)),
                cols: cols.clone(),
            };
            (Piece { tensor, slice }, first)
        })
    });
    chunks.enumerate().map(|(number, (piece, first))| SharedRead {
        piece,
        first,
        reader: number % members.len().max(1),
    })
}
