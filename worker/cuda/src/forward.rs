//! The forward pass of Llama on one rank's device (Touvron et al., 2023; Grattafiori et al., 2024): nothing but launches, so
//! that it can be captured.
//!
//! The residual stream is f32; what enters a matrix product is rounded to bf16; what leaves it is f32.

use cudarc::driver::CudaSlice;

use crate::exchange::{Edge, Exchange, Which};
use crate::kv::KvCache;
use crate::ops::{Added, LayerCount, OpError, Ops, Places, Weights};
use crate::pinned::Pinned;
use crate::rope::Rope;
use crate::shape::Shape;
use crate::weights::ModelWeights;
use crate::work::{Sizes, Workspace};

/// What a forward pass reads.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) weights: &'a ModelWeights,
    pub(crate) rope: &'a Rope,
}

/// Up to 64 rows of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    /// Tokens of the step's frame, in whole chunks.
    pub(crate) width: usize,
    /// The first row.
    pub(crate) first: usize,
    pub(crate) rows: usize,
    /// Tokens that the row which sees most sees.
    pub(crate) longest: usize,
}

impl Model<'_> {
    /// Run a chunk through every layer of the stage, writing its keys and values to the cache. The first stage looks the tokens
    /// up, the others take the hidden rows from `edge`, to which all but the last give theirs; behind the last one the final
    /// norms are in `normed`.
    pub(crate) fn run(
        &self,
        ops: &mut Ops,
        work: &mut Workspace,
        (cache, sizes): (&KvCache, &Sizes),
        (exchange, edge): (Option<&Exchange>, &mut Edge),
        chunk: Chunk,
    ) -> Result<(), OpError> {
        let Self { shape, weights, rope } = *self;
        let rows = chunk.rows;
        let layers = LayerCount {
            count: ops.address(&work.layers),
            seen: work.layers_seen.address(),
        };
        let region = |number: usize| {
            let start = number * chunk.width + chunk.first;
            work.frame.slice(start..start + rows)
        };
        let (tokens, positions, slots) = (region(0), region(1), region(2));
        let places = Places {
            positions: &positions,
            slots: &slots,
            tables: &work.tables,
        };
        let (hidden, normed) = (&mut work.hidden, &mut work.normed);
        let attention = sizes.attention(shape, chunk.longest);
        let norm = (shape.hidden_leaves.width, shape.epsilon);
        let table = weights.embedding.as_ref().map(Pinned::address);
        match (table, exchange) {
            (Some(table), Some(exchange)) => {
                ops.embed_together(exchange.areas(), table, &tokens, rows, hidden, shape.hidden)?
            }
            (Some(table), None) => ops.embed_from(table, &tokens, rows, hidden, shape.hidden)?,
            (None, _) => edge.enqueue_take(ops, (exchange, shape), &chunk, (hidden, &work.roots))?,
        }
        let size = (rows, shape.hidden);
        let mut before = None;
        for (number, layer) in weights.layers.iter().enumerate() {
            let counted = (number > 0).then_some(layers);
            ops.add_norm(hidden, before, &layer.input_norm, normed, rows, norm, counted)?;
            ops.product(&layer.qkv, normed, rows, &mut work.qkv)?;
            let angles = (&rope.cos, &rope.sin);
            let cache = cache.layer(number);
            ops.rope_kv(
                sizes.rope(shape),
                &work.qkv,
                angles,
                &places,
                &mut work.q,
                &cache,
                rows,
            )?;
            let (parts, attended) = (&mut work.attention_parts, &mut work.attended);
            ops.attention(attention, &work.q, &cache, &places, parts, attended, rows)?;
            ops.unscaled_product(&layer.o, &work.attended, rows, &mut work.roots)?;
            let product = (&layer.o, &work.roots);
            let attended = sum(ops, exchange, Which::Attention, product, hidden, size)?;
            ops.add_norm(hidden, attended, &layer.post_norm, normed, rows, norm, None)?;
            ops.product(&layer.gate_up, normed, rows, &mut work.gate_up)?;
            let width = shape.ffn_leaves.width;
            ops.silu_mul(&work.gate_up, &mut work.gated, rows, shape.ffn, width)?;
            ops.unscaled_product(&layer.down, &work.gated, rows, &mut work.roots)?;
            let product = (&layer.down, &work.roots);
            before = sum(ops, exchange, Which::Ffn, product, hidden, size)?;
        }
        // Before the last stage it only adds and counts, by any weights: the next stage norms by its own.
        let any = weights.layers.last().map(|layer| &layer.post_norm);
        let last = weights.head.as_ref().map(|head| &head.norm);
        if let Some(weights) = last.or(any) {
            ops.add_norm(hidden, before, weights, normed, rows, norm, Some(layers))?;
        }
        match last {
            Some(_) => Ok(()),
            None => edge.enqueue_give(ops, shape, &chunk, hidden),
        }
    }
}

/// Sum a product that is split by inputs over all ranks where there are several, and add it to the hidden rows; else what the
/// next norm adds.
fn sum<'a>(
    ops: &mut Ops,
    exchange: Option<&Exchange>,
    which: Which,
    (matrix, roots): (&'a Weights, &'a CudaSlice<f32>),
    hidden: &mut CudaSlice<f32>,
    (rows, width): (usize, usize),
) -> Result<Option<Added<'a>>, OpError> {
    let scales = matrix.scales.as_ref();
    let Some(exchange) = exchange else {
        return Ok(Some(Added {
            values: roots,
            scales,
        }));
    };
    let n = rows * width;
    exchange.sum(ops, which, roots, n)?;
    ops.join_roots(hidden, exchange.received(which, n, scales), rows, width)?;
    Ok(None)
}
