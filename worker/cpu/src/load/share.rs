//! From one share of the model to another: what both have is moved within the memory, and what lacks is read.
//!
//! Shares of one rank either contain one another or are made of the one that the rank has in the whole group, since who takes
//! over a part of what a lost rank had keeps all its own ([`ShardPlan::without`]). So a rank's share only ever grows or shrinks,
//! and with it every tensor of its layout: tensors are moved from the last to the first where they grow, else from the first to
//! the last, and none is written over before it is moved. It takes room for one tensor besides.
//!
//! [`ShardPlan::without`]: llamero_checkpoint::ShardPlan::without

use std::ops::Range;
use std::os::fd::OwnedFd;

use llamero_checkpoint::load::{Rows, Sink, SinkError, load_beyond};
use llamero_checkpoint::piece::{pieces_beyond, rank_bytes};
use llamero_checkpoint::{Checkpoint, ModelLayout, Piece, RankShard, Runs, Slice, TensorId, TensorKind};
use llamero_engine::{BackendError, LoadProgress, LoadWatch};

use super::{MAX_THREADS, Packer, Scratch, finish, kind_of, role_of, tell};
use crate::kernel::pack::{Element, LANES, pack_rows};
use crate::layout::{Layout, MatrixAt, Role};
use crate::weights::Weights;

/// Bytes of one tensor that go from one place to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    /// Where the tensor lay.
    pub(crate) from: Range<usize>,
    /// Where it lies.
    pub(crate) to: Range<usize>,
    /// What both shares have of it: bytes within `from`, and where in `to` they go.
    pub(crate) parts: Vec<(Range<usize>, usize)>,
}

/// One share of a rank and the layout of its memory.
pub(crate) struct Held<'a> {
    pub(crate) shard: &'a RankShard,
    pub(crate) layout: &'a Layout,
}

/// Make `weights`, which hold `from`, those of `to`, of which one contains the other; `file` is what they are mapped from, if it
/// is a file. `fingerprint` is that of `to`.
///
/// # Errors
/// What lacks cannot be read, or no memory is had; the weights are incomplete then.
pub(crate) fn change(
    (checkpoint, model): (&Checkpoint, &ModelLayout),
    (from, to): (&RankShard, &Held<'_>),
    fingerprint: u64,
    (weights, file): (&mut Weights, Option<&OwnedFd>),
    threads: usize,
    watch: &dyn LoadWatch,
) -> Result<(), BackendError> {
    let held = Held {
        shard: from,
        layout: &weights.layout().clone(),
    };
    let grows = to.shard.contains_all(from);
    let moves = moves(&held, to);
    weights
        .change(to.layout.clone(), fingerprint, (moves, grows), file)
        .map_err(|error| {
            let bytes = to.layout.bytes;
            BackendError::Unavailable(format!("cannot map {bytes} bytes for the weights: {error}"))
        })?;
    let packer = Beyond {
        packer: Packer {
            layout: to.layout,
            first_layer: to.shard.layers.start as usize,
            store: weights.store(file),
        },
        shard: to.shard,
    };
    let total = rank_bytes(model, to.shard);
    let lacks: u64 = pieces_beyond(model, to.shard, from)
        .iter()
        .map(Piece::loaded_bytes)
        .sum();
    let threads = threads.clamp(1, MAX_THREADS);
    let whole = |now: LoadProgress| LoadProgress {
        loaded: total - lacks + now.loaded,
        total,
        read: now.read,
    };
    let loaded = load_beyond(
        checkpoint,
        model,
        (to.shard, from),
        threads,
        &packer,
        &mut |now| tell(watch, whole(now)),
    );
    finish(loaded, weights)?;
    if lacks == 0 {
        watch.progress(whole(LoadProgress::default()));
    }
    Ok(())
}

/// Every tensor's move, in the order of their places.
fn moves(from: &Held<'_>, to: &Held<'_>) -> Vec<Move> {
    let slices = |layer: Option<u32>, kind| {
        let id = TensorId { layer, kind };
        (from.shard.slice(id), to.shard.slice(id))
    };
    let mut moves = Vec::new();
    let hidden = slices(None, TensorKind::Embed).0.cols.len() as usize;
    if let (Some(old), Some(new)) = (from.layout.embedding, to.layout.embedding) {
        let (held, wanted) = slices(None, TensorKind::Embed);
        moves.push(rows_move((old, &held.rows), (new, &wanted.rows), 2 * hidden));
    }
    for ((layer, old), new) in (from.shard.layers.clone())
        .zip(&from.layout.layers)
        .zip(&to.layout.layers)
    {
        let hidden = slices(Some(layer), TensorKind::InputNorm).0.cols.len() as usize;
        moves.push(whole_move(old.input_norm, new.input_norm, hidden));
        for role in Role::ALL {
            let (held, wanted) = slices(Some(layer), kind_of(role));
            moves.extend(matrix_moves(
                (old.matrix(role), &held),
                (new.matrix(role), &wanted),
            ));
        }
        moves.push(whole_move(old.post_norm, new.post_norm, hidden));
    }
    if let (Some(old), Some(new)) = (from.layout.head, to.layout.head) {
        let hidden = slices(None, TensorKind::FinalNorm).0.cols.len() as usize;
        moves.push(whole_move(old.norm, new.norm, hidden));
        let (held, wanted) = slices(None, TensorKind::Head);
        moves.extend(matrix_moves((old.matrix, &held), (new.matrix, &wanted)));
    }
    moves.sort_by_key(|one| one.from.start);
    moves
}

/// A norm, which every share has whole.
fn whole_move(from: usize, to: usize, floats: usize) -> Move {
    let bytes = floats * size_of::<f32>();
    Move {
        from: from..from + bytes,
        to: to..to + bytes,
        parts: vec![(0..bytes, 0)],
    }
}

/// Plain rows of so many bytes.
fn rows_move((from, held): (usize, &Runs), (to, wanted): (usize, &Runs), row_bytes: usize) -> Move {
    Move {
        from: from..from + held.len() as usize * row_bytes,
        to: to..to + wanted.len() as usize * row_bytes,
        parts: row_parts(held, wanted, row_bytes),
    }
}

/// Packed weights, and their scales.
fn matrix_moves((from, held): (MatrixAt, &Slice), (to, wanted): (MatrixAt, &Slice)) -> [Move; 2] {
    let bytes = |at: MatrixAt| at.weights..at.weights + at.element.packed_bytes(at.n, at.k);
    let weights = Move {
        from: bytes(from),
        to: bytes(to),
        parts: packed_parts(from.element, held, wanted),
    };
    let scales = rows_move(
        (from.scales, &held.rows),
        (to.scales, &wanted.rows),
        size_of::<f32>(),
    );
    [weights, scales]
}

/// The rows that are in both: bytes among those of `from`, and where among those of `to`.
fn row_parts(from: &Runs, to: &Runs, row_bytes: usize) -> Vec<(Range<usize>, usize)> {
    let part = |run: &Range<u32>| {
        let start = from.position(run.start)? as usize * row_bytes;
        let bytes = (run.end - run.start) as usize * row_bytes;
        Some((start..start + bytes, to.position(run.start)? as usize * row_bytes))
    };
    from.common(to).as_slice().iter().filter_map(part).collect()
}

/// The same of packed matrices. Heads, leaves and tiles are whole numbers of blocks and of steps; only a vocabulary may end
/// within a block, which is the last one then on both sides.
fn packed_parts(element: Element, from: &Slice, to: &Slice) -> Vec<(Range<usize>, usize)> {
    let block = |slice: &Slice| element.block_bytes(slice.cols.len() as usize);
    let (from_block, to_block) = (block(from), block(to));
    let cols = from.cols.common(&to.cols);
    let mut parts = Vec::new();
    for rows in from.rows.common(&to.rows).as_slice() {
        let first = |slice: &Slice| slice.rows.position(rows.start).map(|row| row as usize / LANES);
        let (Some(from_first), Some(to_first)) = (first(from), first(to)) else {
            continue;
        };
        let blocks = ((rows.end - rows.start) as usize).div_ceil(LANES);
        if from.cols == to.cols {
            let start = from_first * from_block;
            parts.push((start..start + blocks * from_block, to_first * to_block));
            continue;
        }
        for number in 0..blocks {
            for run in cols.as_slice() {
                let step = |slice: &Slice| {
                    let col = slice.cols.position(run.start)? as usize;
                    Some(col / 2 * element.step_bytes())
                };
                let (Some(from_step), Some(to_step)) = (step(from), step(to)) else {
                    continue;
                };
                let start = (from_first + number) * from_block + from_step;
                let bytes = element.block_bytes((run.end - run.start) as usize);
                parts.push((start..start + bytes, (to_first + number) * to_block + to_step));
            }
        }
    }
    parts
}

/// Packs rows that a share has beyond another one into the places that they have in it.
struct Beyond<'a> {
    packer: Packer<'a>,
    shard: &'a RankShard,
}

impl Sink for Beyond<'_> {
    type Scratch = Scratch;

    fn put(&self, rows: &Rows<'_>, scratch: &mut Scratch) -> Result<(), SinkError> {
        let id = rows.piece.tensor.id;
        let first = u32::try_from(rows.first)?;
        let part = Slice {
            rows: (rows.piece.slice.rows).part(first..first.saturating_add(u32::try_from(rows.count)?)),
            cols: rows.piece.slice.cols.clone(),
        };
        let wanted = self.shard.slice(id);
        match (id.kind, id.layer) {
            (TensorKind::Embed, _) => {
                let Some(table) = self.packer.layout.embedding else {
                    return Err("the embedding has no place of its own in this rank's memory".into());
                };
                let row_bytes = 2 * wanted.cols.len() as usize;
                let bytes = rows.bf16(&mut scratch.converted)?;
                self.store(table, bytes, row_parts(&part.rows, &wanted.rows, row_bytes))
            }
            (TensorKind::Head, _) => self.matrix(self.packer.head()?.matrix, rows, (&part, &wanted), scratch),
            (kind, Some(layer)) => match role_of(kind) {
                Some(role) => {
                    let at = self.packer.layer(layer)?.matrix(role);
                    self.matrix(at, rows, (&part, &wanted), scratch)
                }
                None => Err(format!("unexpected tensor {id}").into()),
            },
            (_, None) => Err(format!("unexpected tensor {id}").into()),
        }
    }
}

impl Beyond<'_> {
    fn matrix(
        &self,
        at: MatrixAt,
        rows: &Rows<'_>,
        (part, wanted): (&Slice, &Slice),
        scratch: &mut Scratch,
    ) -> Result<(), SinkError> {
        let bytes = match at.element {
            Element::Bf16 => rows.bf16(&mut scratch.converted)?,
            Element::E4m3 => rows.e4m3()?,
        };
        pack_rows(at.element, part.cols.len() as usize, bytes, &mut scratch.packed);
        let places = packed_parts(at.element, part, wanted);
        self.store(at.weights, &scratch.packed, places)?;
        let ones;
        let scales = if rows.scales.is_empty() {
            ones = vec![1.0; part.rows.len() as usize];
            &ones
        } else {
            rows.scales
        };
        let places = row_parts(&part.rows, &wanted.rows, size_of::<f32>());
        self.store(at.scales, bytemuck::cast_slice(scales), places)
    }

    fn store(&self, at: usize, bytes: &[u8], places: Vec<(Range<usize>, usize)>) -> Result<(), SinkError> {
        for (from, to) in places {
            let bytes = bytes.get(from).ok_or("rows came short")?;
            self.packer.store(at + to, bytes)?;
        }
        Ok(())
    }
}
