//! From a checkpoint to the packed weights of one rank.

use std::hash::{Hash, Hasher};
use std::time::UNIX_EPOCH;

use llamero_checkpoint::dtype::{extend_bf16, extend_f32};
use llamero_checkpoint::load::{Rows, SinkError, load_rank};
use llamero_checkpoint::{Checkpoint, Dtype, ModelLayout, Progress, RankShard, TensorId, TensorKind};

use crate::kernel::pack::{Element, LANES};
use crate::layout::{Layout, MatrixAt, Role};
use crate::shape::Shape;
use crate::weights::Weights;

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
    )
}

fn kind_of(role: Role) -> TensorKind {
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
    let mut hash = Fnv1a(0xcbf2_9ce4_8422_2325);
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

/// FNV-1a (draft-eastlake-fnv §2), which unlike the standard library's hasher is the same in every process.
struct Fnv1a(u64);

impl Hasher for Fnv1a {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// Fill `weights` with the rank's shard.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    model: &ModelLayout,
    shard: &RankShard,
    hidden: usize,
    weights: &mut Weights,
    report: &mut dyn FnMut(Progress),
) -> llamero_checkpoint::Result<()> {
    let mut scratch = Vec::new();
    let mut sink = |rows: Rows<'_>| store(weights, hidden, &rows, &mut scratch);
    load_rank(checkpoint, model, shard, &mut sink, report)?;
    weights.set_complete();
    Ok(())
}

/// A weight that is not a number would turn every answer into nonsense.
#[derive(Debug, thiserror::Error)]
#[error("{0} holds values that are not numbers; the file is damaged, download it again")]
struct NotANumber(String);

fn store(
    weights: &mut Weights,
    hidden: usize,
    rows: &Rows<'_>,
    scratch: &mut Vec<u8>,
) -> Result<(), SinkError> {
    let tensor = rows.piece.tensor;
    let layer = tensor.id.layer.map(|layer| layer as usize);
    let at = match (tensor.id.kind, layer) {
        (TensorKind::Embed, _) => {
            let row_bytes = to_bf16(tensor.dtype, rows.bytes, scratch).len() / rows.count.max(1) as usize;
            for (i, row) in scratch.chunks_exact(row_bytes).enumerate() {
                weights
                    .embedding_mut(rows.first as usize + i, hidden)
                    .copy_from_slice(row);
            }
            return Ok(());
        }
        (TensorKind::FinalNorm, _) => weights.layout().final_norm,
        (TensorKind::InputNorm, Some(layer)) => weights.layout().layers[layer].input_norm,
        (TensorKind::PostAttentionNorm, Some(layer)) => weights.layout().layers[layer].post_norm,
        (TensorKind::Head, _) => return matrix(weights, weights.layout().head, rows, scratch),
        (kind, Some(layer)) => {
            let Some(role) = role_of(kind) else {
                return Err(format!("unexpected tensor {}", tensor.id).into());
            };
            return matrix(
                weights,
                weights.layout().layers[layer].matrix(role),
                rows,
                scratch,
            );
        }
        (_, None) => return Err(format!("unexpected tensor {}", tensor.id).into()),
    };
    let mut values = Vec::with_capacity(hidden);
    extend_f32(tensor.dtype, rows.bytes, &mut values);
    if values.iter().any(|value| value.is_nan()) {
        return Err(NotANumber(tensor.name.clone()).into());
    }
    weights.floats_mut(at, hidden).copy_from_slice(&values);
    Ok(())
}

/// Pack some rows of a matrix.
fn matrix(
    weights: &mut Weights,
    at: MatrixAt,
    rows: &Rows<'_>,
    scratch: &mut Vec<u8>,
) -> Result<(), SinkError> {
    let tensor = rows.piece.tensor;
    let bytes = match at.element {
        Element::Bf16 => to_bf16(tensor.dtype, rows.bytes, scratch),
        Element::E4m3 if rows.bytes.iter().any(|code| code & 0x7f == 0x7f) => {
            return Err(NotANumber(tensor.name.clone()).into());
        }
        Element::E4m3 => rows.bytes,
    };
    let first = rows.first as usize;
    let row_bytes = at.k * at.element.size();
    for (i, row) in bytes.chunks_exact(row_bytes).enumerate() {
        weights.fill_row(at, first + i, 0, row);
    }
    let scales = weights.floats_mut(at.scales, at.n.next_multiple_of(LANES));
    let scales = &mut scales[first..first + rows.count as usize];
    if rows.scales.is_empty() {
        scales.fill(1.0);
    } else {
        scales.copy_from_slice(rows.scales);
    }
    Ok(())
}

/// The elements as bf16: a copy, or rounded where the checkpoint is wider.
fn to_bf16<'a>(dtype: Dtype, bytes: &[u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    scratch.clear();
    if dtype == Dtype::BF16 {
        scratch.extend_from_slice(bytes);
    } else {
        let mut values = Vec::with_capacity(bytes.len() / 2);
        extend_f32(dtype, bytes, &mut values);
        extend_bf16(&values, scratch);
    }
    scratch
}
