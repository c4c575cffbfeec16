//! The forward pass of Llama on one device (Touvron et al., 2023; Grattafiori et al., 2024): nothing but launches, so that
//! it can be captured.
//!
//! The residual stream is f32; what enters a matrix product is rounded to bf16; what leaves it is f32.

use crate::kv::KvCache;
use crate::ops::{LayerCount, OpError, Ops, Places, Roots};
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
    /// Run a chunk through every layer, writing its keys and values to the cache; the final norms are in `normed` then.
    pub(crate) fn run(
        &self,
        ops: &mut Ops,
        work: &mut Workspace,
        (cache, sizes): (&KvCache, &Sizes),
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
        let (after_o, after_down) = (shape.attention_leaves.roots.len(), shape.ffn_leaves.roots.len());
        ops.embed_from(weights.embedding.address(), &tokens, rows, hidden, shape.hidden)?;
        for (number, layer) in weights.layers.iter().enumerate() {
            let before = (number > 0).then_some(Roots {
                values: &work.roots,
                count: after_down,
                joins: None,
            });
            let counted = before.map(|_| layers);
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
            ops.product(&layer.o, &work.attended, rows, &mut work.roots)?;
            let attended = Roots {
                values: &work.roots,
                count: after_o,
                joins: None,
            };
            ops.add_norm(hidden, Some(attended), &layer.post_norm, normed, rows, norm, None)?;
            ops.product(&layer.gate_up, normed, rows, &mut work.gate_up)?;
            let width = shape.ffn_leaves.width;
            ops.silu_mul(&work.gate_up, &mut work.gated, rows, shape.ffn, width)?;
            ops.product(&layer.down, &work.gated, rows, &mut work.roots)?;
        }
        let last = Roots {
            values: &work.roots,
            count: after_down,
            joins: None,
        };
        ops.add_norm(
            hidden,
            Some(last),
            &weights.final_norm,
            normed,
            rows,
            norm,
            Some(layers),
        )
    }
}
