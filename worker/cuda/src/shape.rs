//! The sizes of one rank's part of the model, and its orders of summation.

use llamero_checkpoint::{LlamaConfig, RankShard, Runs, ShardPlan, TensorId, TensorKind};
use llamero_engine::{BackendError, LeafLayout};

use crate::ops::exchange::{MOST_RANKS, SumOrder};
use crate::ops::{Leaves, MAX_GROUP};

/// Leaves of products over the hidden width.
const HIDDEN_LEAVES: u32 = 8;
/// Most leaves of a product: each has a place in a block's shared memory for every row.
const MAX_LEAVES: u32 = 32;

/// What one rank computes. The rank's own heads, columns and rows lie side by side in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Layers of this rank's stage.
    pub(crate) layers: usize,
    /// Whether the stage begins with the embedding; a later one takes over what the one before it has computed.
    pub(crate) has_embedding: bool,
    /// Whether the stage ends with the head; an earlier one passes on what it has computed.
    pub(crate) has_head: bool,
    pub(crate) head_dim: usize,
    /// This rank's query heads.
    pub(crate) q_heads: usize,
    /// This rank's kv heads: every one that its query heads attend to.
    pub(crate) kv_heads: usize,
    /// Query heads of the model that a kv head serves, and those of this rank's first one that are another rank's.
    pub(crate) group: usize,
    pub(crate) skipped: usize,
    /// This rank's columns of the feed-forward layer.
    pub(crate) ffn: usize,
    /// This rank's tiles of the vocabulary.
    pub(crate) vocab_tiles: Runs,
    /// The token ids of these tiles.
    pub(crate) vocab: Runs,
    /// Token ids of the model.
    pub(crate) vocab_size: usize,
    /// The ε of the norms.
    pub(crate) epsilon: f32,
    /// Products over the hidden width.
    pub(crate) hidden_leaves: Leaves,
    /// `o`.
    pub(crate) attention_leaves: Leaves,
    /// `down`.
    pub(crate) ffn_leaves: Leaves,
    /// How the roots of all ranks join in `o` and in `down`.
    pub(crate) attention_sum: SumOrder,
    pub(crate) ffn_sum: SumOrder,
    /// Ranks of the stage, which share its layers, and this one's number among them.
    pub(crate) world: usize,
    pub(crate) index: usize,
}

impl Shape {
    /// Of a shard of `plan`.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] for sizes that no kernel was written for.
    pub(crate) fn new(
        config: &LlamaConfig,
        plan: &ShardPlan,
        shard: &RankShard,
    ) -> Result<Self, BackendError> {
        let head_dim = config.head_dim as usize;
        let (q_heads, kv_heads) = (shard.q_heads.len() as usize, shard.kv_heads.len() as usize);
        let group = config.q_heads / config.kv_heads;
        check_heads(config, shard, group)?;
        if !config.hidden_size.is_multiple_of(2 * HIDDEN_LEAVES) {
            return Err(unusable(format!(
                "a hidden width of {} cannot be computed on GPUs: it must be a multiple of {}",
                config.hidden_size,
                2 * HIDDEN_LEAVES
            )));
        }
        let leaf = config.hidden_size / HIDDEN_LEAVES;
        let hidden_leaves = leaves(HIDDEN_LEAVES, Runs::from(0..HIDDEN_LEAVES), leaf)?;
        let stage: Vec<&RankShard> = plan.stage(shard.stage()).collect();
        if stage.len() > MOST_RANKS {
            return Err(unusable(format!(
                "{} tensor-parallel ranks cannot be computed on GPUs: at most {MOST_RANKS} can",
                stage.len()
            )));
        }
        let index = stage.iter().position(|one| one.rank == shard.rank).unwrap_or(0);
        let attention = attention_layout(config, &stage)?;
        let ffn = LeafLayout {
            leaves: shard.leaves.count,
            owners: stage.iter().map(|one| one.ffn_leaves.clone()).collect(),
        };
        let ffn_leaves = leaves(ffn.leaves, shard.ffn_leaves.clone(), shard.leaves.width)?;
        let attention_width = config.q_heads / attention.leaves * config.head_dim;
        let sum = |layout| SumOrder::new(layout, index).map_err(|error| unusable(error.to_string()));
        Ok(Self {
            hidden: config.hidden_size as usize,
            layers: shard.layers.len(),
            has_embedding: shard.has(global(TensorKind::Embed)),
            has_head: shard.has(global(TensorKind::Head)),
            head_dim,
            q_heads,
            kv_heads,
            group: group as usize,
            skipped: (shard.q_heads.iter().next().unwrap_or(0) % group) as usize,
            ffn: shard.ffn().len() as usize,
            vocab_tiles: shard.vocab_tiles.clone(),
            vocab: shard.vocab(),
            vocab_size: config.vocab_size as usize,
            epsilon: config.rms_norm_eps as f32,
            hidden_leaves,
            attention_leaves: leaves(attention.leaves, attention.owners[index].clone(), attention_width)?,
            ffn_leaves,
            attention_sum: sum(&attention)?,
            ffn_sum: sum(&ffn)?,
            world: stage.len(),
            index,
        })
    }

    /// Rows of the fused product of queries, keys and values.
    pub(crate) fn qkv(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Token ids of this rank: rows of its embedding, and of its head.
    pub(crate) fn vocab_width(&self) -> usize {
        self.vocab.len() as usize
    }

    /// Rows of this rank's head; none before the last stage.
    pub(crate) fn head_width(&self) -> usize {
        if self.has_head { self.vocab_width() } else { 0 }
    }

    /// Leaves of the products over the hidden width, of `o` and of `down`, for the numerics class.
    pub(crate) fn leaf_counts(config: &LlamaConfig, shard: &RankShard) -> (u32, u32, u32) {
        (HIDDEN_LEAVES, attention_leaf_count(config), shard.leaves.count)
    }
}

/// A tensor that belongs to no layer.
fn global(kind: TensorKind) -> TensorId {
    TensorId { layer: None, kind }
}

fn unusable(why: String) -> BackendError {
    BackendError::Unusable(why)
}

fn check_heads(config: &LlamaConfig, shard: &RankShard, group: u32) -> Result<(), BackendError> {
    if !matches!(config.head_dim, 64 | 128) {
        return Err(unusable(format!(
            "heads of {} elements cannot be computed on GPUs: 64 and 128 can",
            config.head_dim
        )));
    }
    // Kernels count on from the rank's first query head.
    if shard.q_heads.as_slice().len() != 1 {
        return Err(unusable(format!(
            "rank {} has query heads {}, and GPUs compute heads that follow each other: a group that lost a rank has to wait for \
             another one",
            shard.rank, shard.q_heads
        )));
    }
    if group as usize > MAX_GROUP {
        return Err(unusable(format!(
            "{group} query heads share a kv head, and GPUs compute at most {MAX_GROUP}"
        )));
    }
    Ok(())
}

fn leaves(total: u32, owned: Runs, width: u32) -> Result<Leaves, BackendError> {
    if total > MAX_LEAVES {
        return Err(unusable(format!(
            "a product of {total} leaves of {width} inputs cannot be computed on GPUs, at most {MAX_LEAVES} leaves can: the \
             width of the feed-forward layer must be a multiple of 2048, or at most 2048"
        )));
    }
    Leaves::tree(total, owned, width as usize).map_err(|error| unusable(error.to_string()))
}

/// 32 where the heads come out even, else one for each query head.
fn attention_leaf_count(config: &LlamaConfig) -> u32 {
    if config.q_heads.is_multiple_of(MAX_LEAVES) {
        MAX_LEAVES
    } else {
        config.q_heads
    }
}

/// Who owns the leaves of `o`.
fn attention_layout(config: &LlamaConfig, stage: &[&RankShard]) -> Result<LeafLayout, BackendError> {
    let leaves = attention_leaf_count(config);
    let heads = config.q_heads / leaves;
    let owned = |shard: &&RankShard| {
        let owned = Runs::new((0..leaves).filter_map(|leaf| {
            let all = Runs::from(leaf * heads..(leaf + 1) * heads);
            shard.q_heads.contains_all(&all).then_some(leaf..leaf + 1)
        }));
        if owned.scaled(heads, config.q_heads) == shard.q_heads {
            return Ok(owned);
        }
        Err(unusable(format!(
            "rank {} has query heads {}, and GPUs sum {heads} heads at a time: choose a number of ranks that divides {leaves}",
            shard.rank, shard.q_heads
        )))
    };
    Ok(LeafLayout {
        leaves,
        owners: stage.iter().map(owned).collect::<Result<_, _>>()?,
    })
}
