//! Which part of every tensor a rank of a tensor-parallel group holds.
//!
//! - Attention splits by *q head*, contiguously and unevenly where it must (9 heads over 2 ranks: 5 + 4). A rank holds
//!   every kv head that its q heads read, so kv heads may be held twice.
//! - The feed-forward layer splits by *leaves*: equal pieces of its width that belong to the model, not to the rank, so
//!   that sums have the same bits for every number of ranks. There are 32 leaves if that makes them a multiple of 64
//!   wide (all Llama 3.1 shapes), else leaves of 64 (24 of them for SmolLM2-135M).
//! - The head splits by tiles of 128 vocabulary rows; embedding and norms are held whole.

use std::ops::Range;

use crate::config::LlamaConfig;
use crate::layout::TensorKind;

/// Vocabulary rows of one tile of the head.
pub const VOCAB_TILE: u32 = 128;
const LEAVES: u32 = 32;
const LEAF_UNIT: u32 = 64;

/// Why a model cannot be split as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// More ranks than pieces.
    #[error("tensor {tensor} is more than {limit} {what}: use tensor {limit} or less{hint}")]
    TooManyRanks {
        /// Ranks asked for.
        tensor: u32,
        /// Pieces there are.
        limit: u32,
        /// What the pieces are.
        what: &'static str,
        /// What else helps.
        hint: &'static str,
    },
    /// No ranks, or a rank outside the group.
    #[error("rank {rank} of a group of {tensor}: tensor must be at least 1 and the rank below it")]
    NoSuchRank {
        /// Ranks asked for.
        tensor: u32,
        /// The rank.
        rank: u32,
    },
    /// The feed-forward width cannot be cut into leaves.
    #[error("intermediate_size {ffn_size} is not a multiple of 64: such a model cannot be served")]
    OddFfn {
        /// Width of the feed-forward layer.
        ffn_size: u32,
    },
}

/// The leaves of the feed-forward layer: a property of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfnLeaves {
    /// How many there are.
    pub count: u32,
    /// Columns of `down` in each.
    pub width: u32,
}

impl FfnLeaves {
    /// 32 leaves if their width is a multiple of 64, else leaves of 64.
    pub fn of(ffn_size: u32) -> Result<Self, ShardError> {
        if ffn_size == 0 || !ffn_size.is_multiple_of(LEAF_UNIT) {
            return Err(ShardError::OddFfn { ffn_size });
        }
        if ffn_size.is_multiple_of(LEAVES * LEAF_UNIT) {
            return Ok(Self {
                count: LEAVES,
                width: ffn_size / LEAVES,
            });
        }
        Ok(Self {
            count: ffn_size / LEAF_UNIT,
            width: LEAF_UNIT,
        })
    }
}

/// How a model is split over a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlan;

impl ShardPlan {
    /// The shard of `rank` in a group of `tensor` ranks.
    ///
    /// # Errors
    /// More ranks than q heads, leaves or vocabulary tiles; a rank outside the group; a width without leaves.
    #[allow(
        clippy::new_ret_no_self,
        reason = "a plan is only ever asked for one rank or for all"
    )]
    pub fn new(config: &LlamaConfig, tensor: u32, rank: u32) -> Result<RankShard, ShardError> {
        let leaves = FfnLeaves::of(config.ffn_size)?;
        if rank >= tensor {
            return Err(ShardError::NoSuchRank { tensor, rank });
        }
        let tiles = config.vocab_size.div_ceil(VOCAB_TILE);
        Self::check_limit(config, leaves, tiles, tensor)?;
        let q_heads = part(config.q_heads, tensor, rank);
        let per_kv = config.q_heads / config.kv_heads;
        let tiles = part(tiles, tensor, rank);
        Ok(RankShard {
            tensor,
            rank,
            kv_heads: q_heads.start / per_kv..q_heads.end.div_ceil(per_kv),
            q_heads,
            ffn_leaves: part(leaves.count, tensor, rank),
            leaves,
            vocab: tiles.start * VOCAB_TILE..(tiles.end * VOCAB_TILE).min(config.vocab_size),
            hidden_size: config.hidden_size,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
        })
    }

    /// The shards of all ranks of a group, in order of rank.
    pub fn all(config: &LlamaConfig, tensor: u32) -> Result<Vec<RankShard>, ShardError> {
        if tensor == 0 {
            return Err(ShardError::NoSuchRank { tensor, rank: 0 });
        }
        // The first rank fails for every reason that a later one could, before anything is collected.
        Self::new(config, tensor, 0)?;
        (0..tensor).map(|rank| Self::new(config, tensor, rank)).collect()
    }

    fn check_limit(
        config: &LlamaConfig,
        leaves: FfnLeaves,
        tiles: u32,
        tensor: u32,
    ) -> Result<(), ShardError> {
        let limits = [
            (
                config.q_heads,
                "q heads",
                ", and more replicas for more throughput",
            ),
            (leaves.count, "leaves of the feed-forward layer", ""),
            (tiles, "tiles of 128 vocabulary rows", ""),
        ];
        match limits.into_iter().find(|(limit, ..)| tensor > *limit) {
            Some((limit, what, hint)) => Err(ShardError::TooManyRanks {
                tensor,
                limit,
                what,
                hint,
            }),
            None => Ok(()),
        }
    }
}

/// Part `index` of `0 .. count` in `parts` contiguous parts; the first `count % parts` are one larger.
fn part(count: u32, parts: u32, index: u32) -> Range<u32> {
    let (base, larger) = (count / parts, count % parts);
    let start = |index: u32| index * base + index.min(larger);
    start(index)..start(index + 1)
}

/// What one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankShard {
    /// Ranks in the group.
    pub tensor: u32,
    /// This rank.
    pub rank: u32,
    /// Its q heads.
    pub q_heads: Range<u32>,
    /// The kv heads that its q heads read.
    pub kv_heads: Range<u32>,
    /// Its leaves of the feed-forward layer.
    pub ffn_leaves: Range<u32>,
    /// Number and width of the model's leaves.
    pub leaves: FfnLeaves,
    /// Its vocabulary rows of the head; starts at a multiple of [`VOCAB_TILE`].
    pub vocab: Range<u32>,
    hidden_size: u32,
    head_dim: u32,
    vocab_size: u32,
}

/// A rectangle of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Rows of the whole tensor.
    pub rows: Range<u64>,
    /// Columns of the whole tensor.
    pub cols: Range<u64>,
}

impl RankShard {
    /// The elements of the feed-forward layer that the rank holds: rows of `gate` and `up`, columns of `down`.
    #[must_use]
    pub fn ffn(&self) -> Range<u32> {
        self.ffn_leaves.start * self.leaves.width..self.ffn_leaves.end * self.leaves.width
    }

    /// The part of a tensor of `kind` that the rank holds.
    #[must_use]
    pub fn slice(&self, kind: TensorKind) -> Slice {
        let scaled = |range: &Range<u32>, by: u32| {
            u64::from(range.start) * u64::from(by)..u64::from(range.end) * u64::from(by)
        };
        let hidden = 0..u64::from(self.hidden_size);
        match kind {
            TensorKind::InputNorm | TensorKind::PostAttentionNorm | TensorKind::FinalNorm => Slice {
                rows: 0..1,
                cols: hidden,
            },
            TensorKind::Embed => Slice {
                rows: 0..u64::from(self.vocab_size),
                cols: hidden,
            },
            TensorKind::Head => Slice {
                rows: scaled(&self.vocab, 1),
                cols: hidden,
            },
            TensorKind::Q => Slice {
                rows: scaled(&self.q_heads, self.head_dim),
                cols: hidden,
            },
            TensorKind::K | TensorKind::V => Slice {
                rows: scaled(&self.kv_heads, self.head_dim),
                cols: hidden,
            },
            TensorKind::O => Slice {
                rows: hidden,
                cols: scaled(&self.q_heads, self.head_dim),
            },
            TensorKind::Gate | TensorKind::Up => Slice {
                rows: scaled(&self.ffn(), 1),
                cols: hidden,
            },
            TensorKind::Down => Slice {
                rows: hidden,
                cols: scaled(&self.ffn(), 1),
            },
        }
    }
}

#[cfg(test)]
mod tests;
