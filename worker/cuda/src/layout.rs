//! Which matrices a rank has, in which types, and what they take of the device's memory.

use llamero_checkpoint::{Dtype, ModelLayout, TensorId, TensorKind};

use crate::ops::{Element, Leaves};
use crate::shape::Shape;

/// Allocations of a device start at multiples of this.
const ALIGN: usize = 512;

/// A matrix that is multiplied with, of one tensor or of several whose rows follow each other.
#[derive(Debug, Clone)]
pub(crate) struct MatrixLayout {
    pub(crate) element: Element,
    /// Whether its rows have scales.
    pub(crate) scaled: bool,
    /// Rows.
    pub(crate) outputs: usize,
    /// Columns and their order of summation.
    pub(crate) leaves: Leaves,
}

impl MatrixLayout {
    /// Bytes of values and scales.
    pub(crate) fn bytes(&self) -> usize {
        let scales = if self.scaled { 4 * self.outputs } else { 0 };
        aligned(self.outputs * self.leaves.stride() * self.element.bytes()) + aligned(scales)
    }

    /// Bytes of one row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.leaves.stride() * self.element.bytes()
    }
}

pub(crate) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN)
}

/// The matrices of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerLayout {
    pub(crate) qkv: MatrixLayout,
    pub(crate) o: MatrixLayout,
    pub(crate) gate_up: MatrixLayout,
    pub(crate) down: MatrixLayout,
}

/// All tensors of a rank.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) layers: Vec<LayerLayout>,
    /// None before the last stage.
    pub(crate) head: Option<MatrixLayout>,
    hidden: usize,
}

/// Where the rows of a tensor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Embedding,
    InputNorm(usize),
    PostNorm(usize),
    FinalNorm,
    /// Into a matrix, from this row on.
    Matrix(MatrixId, usize),
}

/// A matrix of the rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixId {
    Qkv(usize),
    O(usize),
    GateUp(usize),
    Down(usize),
    Head,
}

impl Layout {
    pub(crate) fn new(shape: &Shape, model: &ModelLayout, first_layer: u32) -> Self {
        let matrix = |layer: Option<usize>, kinds: &[TensorKind], outputs: usize, leaves: &Leaves| {
            let fp8 = |kind: &TensorKind| {
                let id = TensorId {
                    layer: layer.map(|layer| first_layer + layer as u32),
                    kind: *kind,
                };
                model.get(id).is_some_and(|tensor| tensor.dtype == Dtype::F8E4M3)
            };
            // Where types are mixed, codes are widened to bf16, which is exact, and keep their scales.
            let element = if kinds.iter().all(fp8) {
                Element::E4m3
            } else {
                Element::Bf16
            };
            MatrixLayout {
                element,
                scaled: kinds.iter().any(fp8),
                outputs,
                leaves: leaves.clone(),
            }
        };
        let layer = |layer| LayerLayout {
            qkv: matrix(
                Some(layer),
                &[TensorKind::Q, TensorKind::K, TensorKind::V],
                shape.qkv(),
                &shape.hidden_leaves,
            ),
            o: matrix(
                Some(layer),
                &[TensorKind::O],
                shape.hidden,
                &shape.attention_leaves,
            ),
            gate_up: matrix(
                Some(layer),
                &[TensorKind::Gate, TensorKind::Up],
                2 * shape.ffn,
                &shape.hidden_leaves,
            ),
            down: matrix(Some(layer), &[TensorKind::Down], shape.hidden, &shape.ffn_leaves),
        };
        Self {
            layers: (0..shape.layers).map(layer).collect(),
            head: shape.has_head.then(|| {
                let kinds = &[TensorKind::Head];
                matrix(None, kinds, shape.vocab_width(), &shape.hidden_leaves)
            }),
            hidden: shape.hidden,
        }
    }

    /// Where a tensor's rows go; none for one that the rank does not have.
    pub(crate) fn place(&self, shape: &Shape, id: TensorId, first_layer: u32) -> Option<Place> {
        let layer = match id.layer {
            Some(layer) => layer.checked_sub(first_layer)? as usize,
            None => 0,
        };
        if layer >= self.layers.len() {
            return None;
        }
        let (q, kv) = (shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        Some(match id.kind {
            TensorKind::Embed => Place::Embedding,
            TensorKind::InputNorm => Place::InputNorm(layer),
            TensorKind::PostAttentionNorm => Place::PostNorm(layer),
            TensorKind::FinalNorm => Place::FinalNorm,
            TensorKind::Q => Place::Matrix(MatrixId::Qkv(layer), 0),
            TensorKind::K => Place::Matrix(MatrixId::Qkv(layer), q),
            TensorKind::V => Place::Matrix(MatrixId::Qkv(layer), q + kv),
            TensorKind::O => Place::Matrix(MatrixId::O(layer), 0),
            TensorKind::Gate => Place::Matrix(MatrixId::GateUp(layer), 0),
            TensorKind::Up => Place::Matrix(MatrixId::GateUp(layer), shape.ffn),
            TensorKind::Down => Place::Matrix(MatrixId::Down(layer), 0),
            TensorKind::Head => Place::Matrix(MatrixId::Head, 0),
        })
    }

    /// A matrix; none for the head of a stage that has none.
    pub(crate) fn matrix(&self, id: MatrixId) -> Option<&MatrixLayout> {
        match id {
            MatrixId::Qkv(layer) => Some(&self.layers[layer].qkv),
            MatrixId::O(layer) => Some(&self.layers[layer].o),
            MatrixId::GateUp(layer) => Some(&self.layers[layer].gate_up),
            MatrixId::Down(layer) => Some(&self.layers[layer].down),
            MatrixId::Head => self.head.as_ref(),
        }
    }

    pub(crate) fn matrices(&self) -> impl Iterator<Item = &MatrixLayout> {
        let of_layers = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        of_layers.chain(&self.head)
    }

    /// Bytes of all weights on the device; the embedding stays in memory of the host.
    pub(crate) fn bytes(&self) -> usize {
        let last = usize::from(self.head.is_some());
        let norms = (2 * self.layers.len() + last) * aligned(4 * self.hidden);
        self.matrices().map(MatrixLayout::bytes).sum::<usize>() + norms
    }

    /// Bytes of weights that one step of decoding reads: every matrix and scale.
    pub(crate) fn bytes_per_step(&self) -> usize {
        self.matrices()
            .map(|matrix| {
                let values =
                    matrix.outputs * matrix.leaves.count * matrix.leaves.width * matrix.element.bytes();
                values + if matrix.scaled { 4 * matrix.outputs } else { 0 }
            })
            .sum()
    }
}
