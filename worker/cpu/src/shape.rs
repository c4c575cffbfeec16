//! The sizes of one rank's part of the model.

use std::ops::Range;

use llamero_engine::LeafLayout;

/// What one rank computes. Ranges count in the whole model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// Query heads of the model that share one kv head.
    pub(crate) group: usize,
    /// This rank's query heads.
    pub(crate) q_heads: Range<usize>,
    /// Every kv head that they attend to.
    pub(crate) kv_heads: Range<usize>,
    /// This rank's columns of the feed-forward layer.
    pub(crate) ffn: Range<usize>,
    /// Columns of one leaf of `down`.
    pub(crate) ffn_leaf: usize,
    /// This rank's rows of the head.
    pub(crate) vocab: Range<usize>,
    /// Token ids of the model.
    pub(crate) vocab_size: usize,
    /// The ε of the norms.
    pub(crate) epsilon: f32,
    /// Who owns the leaves of `o`: one per query head.
    pub(crate) attention_leaves: LeafLayout,
    /// Who owns the leaves of `down`.
    pub(crate) ffn_leaves: LeafLayout,
    /// This rank.
    pub(crate) rank: usize,
}

impl Shape {
    /// Width of this rank's queries.
    pub(crate) fn q_width(&self) -> usize {
        self.q_heads.len() * self.head_dim
    }

    /// Width of this rank's keys, and of its values.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads.len() * self.head_dim
    }

    /// This rank's kv head (counted from 0) that its query head `q` (counted from 0) attends to.
    pub(crate) fn kv_head_of(&self, q: usize) -> usize {
        (self.q_heads.start + q) / self.group - self.kv_heads.start
    }
}

/// Number of leaves in a layout.
pub(crate) fn leaf_count(layout: &LeafLayout) -> u32 {
    layout.owners.last().map_or(0, |owned| owned.end)
}
