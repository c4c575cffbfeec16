//! From a checkpoint to the packed weights of one rank.

pub(crate) mod dummy;
pub(crate) mod pod;
pub(crate) mod share;

use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::time::UNIX_EPOCH;

use llamero_checkpoint::load::{LoadProgress, ROW_MULTIPLE, Rows, Sink, SinkError, load_rank};
use llamero_checkpoint::{Checkpoint, Dtype, ModelLayout, RankShard, TensorId, TensorKind};
use llamero_engine::{BackendError, LoadWatch};
use llamero_settings::hash::Fnv1a;

use crate::kernel::pack::{Element, LANES, pack_rows};
use crate::layout::{HeadAt, LayerAt, Layout, MatrixAt, Role};
use crate::shape::Shape;
use crate::weights::{Store, Weights};

/// The layout of the rank's region: every matrix in the type that the checkpoint has it in.
pub(crate) fn layout(shape: &Shape, model: &ModelLayout) -> Layout {
    let element = |layer: Option<usize>, kind| {
        let id = TensorId {
            layer: layer.and_then(|layer| u32::try_from(layer).ok()),
            kind,
        };
        match model.get(id) {
            Some(tensor) if tensor.dtype == Dtype::F8E4M3 => Element::E4m3,
            _ => Element::Bf16,
        }
    };
    Layout::new(
        shape,
        |layer, role| element(Some(layer), kind_of(role)),
        element(None, TensorKind::Head),
        model.is_tied(),
    )
}

pub(crate) fn kind_of(role: Role) -> TensorKind {
    match role {
        Role::Q => TensorKind::Q,
        Role::K => TensorKind::K,
        Role::V => TensorKind::V,
        Role::O => TensorKind::O,
        Role::Gate => TensorKind::Gate,
        Role::Up => TensorKind::Up,
        Role::Down => TensorKind::Down,
    }
}

fn role_of(kind: TensorKind) -> Option<Role> {
    Role::ALL.into_iter().find(|role| kind_of(*role) == kind)
}

/// A number that changes when the files, the shard or the layout change.
pub(crate) fn fingerprint(checkpoint: &Checkpoint, shard: &RankShard, layout: &Layout) -> u64 {
    let mut hash = Fnv1a::default();
    layout.hash(&mut hash);
    (shard.topology, shard.rank).hash(&mut hash);
    (&shard.q_heads, &shard.ffn_leaves, &shard.vocab_tiles).hash(&mut hash);
    for file in checkpoint.files() {
        file.path().hash(&mut hash);
        if let Ok(facts) = file.path().metadata() {
            facts.len().hash(&mut hash);
            let modified = facts
                .modified()
                .ok()
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            modified.hash(&mut hash);
        }
    }
    hash.finish()
}

/// Threads that load at most: more do not make memory faster.
const MAX_THREADS: usize = 8;

/// Fill `weights` with the rank's shard, read by this rank alone; `file` is what they are mapped from, if it is a file.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    model: &ModelLayout,
    shard: &RankShard,
    weights: &mut Weights,
    file: Option<&OwnedFd>,
    threads: usize,
    watch: &dyn LoadWatch,
) -> Result<(), BackendError> {
    let layout = weights.layout().clone();
    let packer = Packer {
        layout: &layout,
        first_layer: shard.layers.start as usize,
        store: weights.store(file),
    };
    let threads = threads.clamp(1, MAX_THREADS);
    let loaded = load_rank(checkpoint, model, shard, threads, &packer, &mut |now| {
        tell(watch, now)
    });
    finish(loaded, weights)
}

fn tell(watch: &dyn LoadWatch, now: LoadProgress) -> ControlFlow<()> {
    watch.progress(now);
    if watch.is_cancelled() {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}

fn finish(loaded: llamero_checkpoint::Result<()>, weights: &mut Weights) -> Result<(), BackendError> {
    match loaded {
        Err(llamero_checkpoint::Error::Cancelled) => return Err(BackendError::Cancelled),
        outcome => outcome?,
    }
    weights.set_complete();
    Ok(())
}

/// Packs rows into the region.
struct Packer<'a> {
    layout: &'a Layout,
    /// The first layer of the rank's stage.
    first_layer: usize,
    store: Store<'a>,
}

/// What one thread works with.
#[derive(Default)]
struct Scratch {
    converted: Vec<u8>,
    packed: Vec<u8>,
}

impl Sink for Packer<'_> {
    type Scratch = Scratch;

    fn put(&self, rows: &Rows<'_>, scratch: &mut Scratch) -> Result<(), SinkError> {
        let id = rows.piece.tensor.id;
        let layer = match id.layer {
            None => None,
            Some(layer) => Some(self.layer(layer)?),
        };
        match (id.kind, layer) {
            (TensorKind::Embed, _) => self.embedding(rows, scratch),
            (TensorKind::FinalNorm, _) => self.norm(self.head()?.norm, rows),
            (TensorKind::Head, _) => self.matrix(self.head()?.matrix, rows, scratch),
            (TensorKind::InputNorm, Some(layer)) => self.norm(layer.input_norm, rows),
            (TensorKind::PostAttentionNorm, Some(layer)) => self.norm(layer.post_norm, rows),
            (kind, Some(layer)) => match role_of(kind) {
                Some(role) => self.matrix(layer.matrix(role), rows, scratch),
                None => Err(format!("unexpected tensor {id}").into()),
            },
            (_, None) => Err(format!("unexpected tensor {id}").into()),
        }
    }
}

impl Packer<'_> {
    fn layer(&self, layer: u32) -> Result<&LayerAt, SinkError> {
        let of_stage = (layer as usize).checked_sub(self.first_layer);
        let known = of_stage.and_then(|layer| self.layout.layers.get(layer));
        known.ok_or_else(|| format!("layer {layer} has no place in this rank's memory").into())
    }

    fn head(&self) -> Result<HeadAt, SinkError> {
        self.layout
            .head
            .ok_or_else(|| "the head belongs to the last stage".into())
    }

    fn embedding(&self, rows: &Rows<'_>, scratch: &mut Scratch) -> Result<(), SinkError> {
        let Some(table) = self.layout.embedding else {
            return Err("the embedding has no place of its own in this rank's memory".into());
        };
        let bytes = rows.bf16(&mut scratch.converted)?;
        let first = counted(rows.first)? * (bytes.len() / counted(rows.count.max(1))?);
        self.store(table + first, bytes)
    }

    fn norm(&self, at: usize, rows: &Rows<'_>) -> Result<(), SinkError> {
        self.store(at, bytemuck::cast_slice(&rows.f32()?))
    }

    fn matrix(&self, at: MatrixAt, rows: &Rows<'_>, scratch: &mut Scratch) -> Result<(), SinkError> {
        let bytes = match at.element {
            Element::Bf16 => rows.bf16(&mut scratch.converted)?,
            Element::E4m3 => rows.e4m3()?,
        };
        pack_rows(at.element, at.k, bytes, &mut scratch.packed);
        let first = counted(rows.first)?;
        self.store(
            at.weights + first / LANES * at.element.block_bytes(at.k),
            &scratch.packed,
        )?;
        let ones;
        let scales = if rows.scales.is_empty() {
            ones = vec![1.0; counted(rows.count)?];
            &ones
        } else {
            rows.scales
        };
        self.store(at.scales + first * size_of::<f32>(), bytemuck::cast_slice(scales))
    }

    fn store(&self, at: usize, bytes: &[u8]) -> Result<(), SinkError> {
        // SAFETY: every row is handed over once; tensors, rows of the embedding and scales have places of their own, and
        // chunks of a matrix start at whole blocks, because ROW_MULTIPLE is a multiple of LANES.
        unsafe { self.store.put(at, bytes) }?;
        Ok(())
    }
}

/// Rows of a tensor that is in memory.
fn counted(rows: u64) -> Result<usize, SinkError> {
    usize::try_from(rows).map_err(|_| "a tensor has more rows than this machine can count".into())
}

const _: () = assert!(ROW_MULTIPLE.is_multiple_of(LANES as u64));

#[cfg(test)]
mod tests;
