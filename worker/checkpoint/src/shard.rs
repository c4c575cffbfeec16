//! Which part of every tensor a rank of a group holds.
//!
//! - Layers split by *stage* of the pipeline; the embedding belongs to the first stage, last norm and head to the last.
//! - Attention splits by *q head*, unevenly where it must (9 heads over 2 ranks: 5 + 4). A rank holds every kv head that
//!   its q heads read, so kv heads may be held twice.
//! - The feed-forward layer splits by *leaves*: equal pieces of its width that belong to the model, not to the rank, so
//!   that sums have the same bits for every number of ranks. There are 32 leaves if that makes them a multiple of 64
//!   wide (all Llama 3.1 shapes), else leaves of 64 (24 of them for SmolLM2-135M).
//! - Embedding and head split by tiles of 128 vocabulary rows, both alike, so that a tied table is held once. Norms are
//!   held whole.
//!
//! Shares are sets ([`Runs`]), not ranges: when a rank is lost, the others keep what they have and add a part of what it
//! had ([`ShardPlan::without`]).

mod leaves;
mod plan;

use std::ops::Range;

use crate::layout::{TensorId, TensorKind};
use crate::runs::Runs;
use crate::topology::Topology;

pub use crate::error::ShardError;
pub use leaves::FfnLeaves;
pub use plan::ShardPlan;

/// Vocabulary rows of one tile of the embedding and of the head.
pub const VOCAB_TILE: u32 = 128;

/// What one rank holds. Sets count in the whole model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankShard {
    /// Arrangement of the whole group.
    pub topology: Topology,
    /// This rank in the whole group.
    pub rank: u32,
    /// The layers of its stage.
    pub layers: Range<u32>,
    /// Its q heads.
    pub q_heads: Runs,
    /// The kv heads that its q heads read.
    pub kv_heads: Runs,
    /// Its leaves of the feed-forward layer.
    pub ffn_leaves: Runs,
    /// Number and width of the model's leaves.
    pub leaves: FfnLeaves,
    /// Its tiles of [`VOCAB_TILE`] vocabulary rows.
    pub vocab_tiles: Runs,
    hidden_size: u32,
    head_dim: u32,
    vocab_size: u32,
    q_heads_per_kv: u32,
}

/// The part of a tensor that a rank holds: all columns of some rows, or some columns of all rows. Empty sets where it
/// holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Rows of the whole tensor.
    pub rows: Runs,
    /// Columns of the whole tensor.
    pub cols: Runs,
}

impl RankShard {
    /// The stage of the pipeline.
    #[must_use]
    pub fn stage(&self) -> u32 {
        self.topology.stage(self.rank)
    }

    /// The elements of the feed-forward layer that the rank holds: rows of `gate` and `up`, columns of `down`.
    #[must_use]
    pub fn ffn(&self) -> Runs {
        self.ffn_leaves.scaled(self.leaves.width, u32::MAX)
    }

    /// What it holds beyond what `held` does, a share of the same rank. Tensors that every rank holds whole are of both.
    #[must_use]
    pub fn beyond(&self, held: &Self) -> Self {
        Self {
            q_heads: self.q_heads.without(&held.q_heads),
            kv_heads: self.kv_heads.without(&held.kv_heads),
            ffn_leaves: self.ffn_leaves.without(&held.ffn_leaves),
            vocab_tiles: self.vocab_tiles.without(&held.vocab_tiles),
            ..self.clone()
        }
    }

    /// Whether it holds all that `other` does, a share of the same rank.
    #[must_use]
    pub fn contains_all(&self, other: &Self) -> bool {
        let of = |shard: &Self| {
            let Self {
                q_heads,
                kv_heads,
                ffn_leaves,
                vocab_tiles,
                ..
            } = shard.clone();
            [q_heads, kv_heads, ffn_leaves, vocab_tiles]
        };
        of(self)
            .iter()
            .zip(&of(other))
            .all(|(own, other)| own.contains_all(other))
    }

    /// Its vocabulary rows.
    #[must_use]
    pub fn vocab(&self) -> Runs {
        self.vocab_tiles.scaled(VOCAB_TILE, self.vocab_size)
    }

    /// Whether the rank's stage has that tensor.
    #[must_use]
    pub fn has(&self, id: TensorId) -> bool {
        match (id.layer, id.kind) {
            (Some(layer), _) => self.layers.contains(&layer),
            (None, TensorKind::Embed) => self.stage() == 0,
            (None, _) => self.stage() + 1 == self.topology.pipeline,
        }
    }

    /// The part of a tensor that the rank holds.
    #[must_use]
    pub fn slice(&self, id: TensorId) -> Slice {
        if !self.has(id) {
            return Slice::default();
        }
        let heads = |heads: &Runs| heads.scaled(self.head_dim, u32::MAX);
        let hidden = Runs::from(0..self.hidden_size);
        let (rows, cols) = match id.kind {
            TensorKind::InputNorm | TensorKind::PostAttentionNorm | TensorKind::FinalNorm => {
                (Runs::from(0..1), hidden)
            }
            TensorKind::Embed | TensorKind::Head => (self.vocab(), hidden),
            TensorKind::Q => (heads(&self.q_heads), hidden),
            TensorKind::K | TensorKind::V => (heads(&self.kv_heads), hidden),
            TensorKind::O => (hidden, heads(&self.q_heads)),
            TensorKind::Gate | TensorKind::Up => (self.ffn(), hidden),
            TensorKind::Down => (hidden, self.ffn()),
        };
        Slice { rows, cols }
    }
}

#[cfg(test)]
mod tests;
