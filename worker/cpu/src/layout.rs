//! Where every tensor of a rank lies in its region of memory.

use crate::kernel::pack::{Element, LANES};
use crate::shape::Shape;

/// Bytes before the first tensor: see [`crate::weights`].
pub(crate) const HEADER_BYTES: usize = 4096;
/// Tensors start at multiples of a cache line, which is also the width of a register.
const ALIGN: usize = 64;
/// Matrices start at pages, so that blocks are written to memory files in whole pages: of a page that is not there yet and
/// is not written as a whole, the kernel clears the rest.
const PAGE: usize = 4096;

/// A matrix of the model that is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Role {
    pub(crate) const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

/// A packed matrix and its row scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MatrixAt {
    pub(crate) element: Element,
    /// Outputs of this rank.
    pub(crate) n: usize,
    /// Inputs of this rank.
    pub(crate) k: usize,
    /// First byte of the weights.
    pub(crate) weights: usize,
    /// First byte of the f32 scales, one per output, padded to whole blocks.
    pub(crate) scales: usize,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LayerAt {
    /// f32 `[hidden]`.
    pub(crate) input_norm: usize,
    /// f32 `[hidden]`.
    pub(crate) post_norm: usize,
    matrices: [MatrixAt; 7],
}

impl LayerAt {
    #[expect(clippy::indexing_slicing, reason = "there is a place for every role")]
    pub(crate) fn matrix(&self, role: Role) -> MatrixAt {
        self.matrices[role as usize]
    }
}

/// What stands behind the layers of the last stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct HeadAt {
    /// The last norm, f32 `[hidden]`.
    pub(crate) norm: usize,
    /// From hidden states to logits of the rank's vocabulary.
    pub(crate) matrix: MatrixAt,
}

/// All of a rank's tensors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    /// bf16 `[vocabulary of the rank, hidden]`, row-major: it is only looked up. None where it is the head's table, and behind
    /// the first stage.
    pub(crate) embedding: Option<usize>,
    pub(crate) layers: Vec<LayerAt>,
    /// None before the last stage.
    pub(crate) head: Option<HeadAt>,
    /// Length of the region.
    pub(crate) bytes: usize,
}

impl Layout {
    /// `element_of(layer, role)` is the type of each matrix, by the layer's number in the model; `head` that of the head, which
    /// is the embedding, too, where the model is `tied` and the rank has both.
    pub(crate) fn new(
        shape: &Shape,
        element_of: impl Fn(usize, Role) -> Element,
        head: Element,
        tied: bool,
    ) -> Self {
        let mut end = HEADER_BYTES;
        let mut take_at = |bytes: usize, align: usize| {
            let at = aligned(end, align);
            end = aligned(at.saturating_add(bytes), ALIGN);
            at
        };
        let table = shape.vocab_width().saturating_mul(shape.hidden);
        let table = table.saturating_mul(size_of::<u16>());
        let has_table = shape.has_embedding && !(tied && shape.has_head);
        let embedding = has_table.then(|| take_at(table, PAGE));
        let norm_bytes = shape.hidden.saturating_mul(size_of::<f32>());
        let matrix =
            |take_at: &mut dyn FnMut(usize, usize) -> usize, element: Element, n: usize, k: usize| MatrixAt {
                element,
                n,
                k,
                weights: take_at(element.packed_bytes(n, k), PAGE),
                scales: take_at(aligned(n, LANES).saturating_mul(size_of::<f32>()), ALIGN),
            };
        let layers = (0..shape.layers)
            .map(|layer| LayerAt {
                input_norm: take_at(norm_bytes, ALIGN),
                matrices: Role::ALL.map(|role| {
                    let (n, k) = sizes(shape, role);
                    matrix(&mut take_at, element_of(shape.first_layer + layer, role), n, k)
                }),
                post_norm: take_at(norm_bytes, ALIGN),
            })
            .collect();
        let head = shape.has_head.then(|| HeadAt {
            norm: take_at(norm_bytes, ALIGN),
            matrix: matrix(&mut take_at, head, shape.vocab_width(), shape.hidden),
        });
        Self {
            embedding,
            layers,
            head,
            bytes: end,
        }
    }
}

/// The next multiple; where no number holds it, the largest: more than any memory has.
fn aligned(bytes: usize, align: usize) -> usize {
    bytes.checked_next_multiple_of(align).unwrap_or(usize::MAX)
}

/// Outputs and inputs of this rank's part of a matrix.
pub(crate) fn sizes(shape: &Shape, role: Role) -> (usize, usize) {
    match role {
        Role::Q => (shape.q_width(), shape.hidden),
        Role::K | Role::V => (shape.kv_width(), shape.hidden),
        Role::O => (shape.hidden, shape.q_width()),
        Role::Gate | Role::Up => (shape.ffn, shape.hidden),
        Role::Down => (shape.hidden, shape.ffn),
    }
}
