//! The sizes of one rank's part of the model. What would be larger than any memory becomes the largest number, which no plan affords:
//! limits that nobody can afford are refused with a sentence, and end no rank by an overflow.

use llamero_checkpoint::{LlamaConfig, RankShard, Runs, ShardPlan, TensorId, TensorKind};
use llamero_engine::LeafLayout;

/// What one rank computes. Sets count in the whole model; the rank's own heads, columns and rows lie side by side in
/// ascending order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// The first layer of this rank's stage.
    pub(crate) first_layer: usize,
    /// Layers of this rank's stage.
    pub(crate) layers: usize,
    /// Whether the stage begins with the embedding; a later one takes over what the one before it has computed.
    pub(crate) has_embedding: bool,
    /// Whether the stage ends with the head; an earlier one passes on what it has computed.
    pub(crate) has_head: bool,
    /// Width of a head.
    pub(crate) head_dim: usize,
    /// This rank's kv head (counted from 0) that each of its query heads attends to.
    pub(crate) kv_of: Vec<usize>,
    /// This rank's kv heads: every one that its query heads attend to.
    pub(crate) kv_heads: usize,
    /// This rank's columns of the feed-forward layer.
    pub(crate) ffn: usize,
    /// Columns of one leaf of `down`.
    pub(crate) ffn_leaf: usize,
    /// This rank's tiles of the vocabulary.
    pub(crate) vocab_tiles: Runs,
    /// This rank's rows of the head: the token ids of these tiles.
    pub(crate) vocab: Runs,
    /// Token ids of the model.
    pub(crate) vocab_size: usize,
    /// The ε of the norms.
    pub(crate) epsilon: f32,
    /// Who in the stage owns the leaves of `o`: one per query head.
    pub(crate) attention_leaves: LeafLayout,
    /// Who owns the leaves of `down`.
    pub(crate) ffn_leaves: LeafLayout,
    /// Who owns which token ids.
    pub(crate) vocabularies: Vec<Runs>,
    /// This rank's number in its stage.
    pub(crate) index: usize,
}

/// A tensor that belongs to no layer.
fn global(kind: TensorKind) -> TensorId {
    TensorId { layer: None, kind }
}

impl Shape {
    /// Of a shard of `plan`.
    pub(crate) fn new(config: &LlamaConfig, plan: &ShardPlan, shard: &RankShard) -> Self {
        // The configuration was checked: every kv head serves as many query heads.
        let group = config.q_heads.checked_div(config.kv_heads).unwrap_or(0);
        let head_of = |q: u32| shard.kv_heads.position(q.checked_div(group)?);
        let kv_of = |q: u32| head_of(q).unwrap_or(0) as usize;
        let stage: Vec<&RankShard> = plan.stage(shard.stage()).collect();
        let owners = |leaves: u32, share: fn(&RankShard) -> &Runs| LeafLayout {
            leaves,
            owners: stage.iter().map(|shard| share(shard).clone()).collect(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is added to f32 values")]
        let epsilon = config.rms_norm_eps as f32;
        Self {
            hidden: config.hidden_size as usize,
            first_layer: shard.layers.start as usize,
            layers: shard.layers.len(),
            has_embedding: shard.has(global(TensorKind::Embed)),
            has_head: shard.has(global(TensorKind::Head)),
            head_dim: config.head_dim as usize,
            kv_of: shard.q_heads.iter().map(kv_of).collect(),
            kv_heads: shard.kv_heads.len() as usize,
            ffn: shard.ffn().len() as usize,
            ffn_leaf: shard.leaves.width as usize,
            vocab_tiles: shard.vocab_tiles.clone(),
            vocab: shard.vocab(),
            vocab_size: config.vocab_size as usize,
            epsilon,
            attention_leaves: owners(config.q_heads, |shard| &shard.q_heads),
            ffn_leaves: owners(shard.leaves.count, |shard| &shard.ffn_leaves),
            vocabularies: stage.iter().map(|shard| shard.vocab()).collect(),
            index: stage.iter().position(|one| one.rank == shard.rank).unwrap_or(0),
        }
    }

    /// Width of this rank's queries.
    pub(crate) fn q_width(&self) -> usize {
        self.kv_of.len().saturating_mul(self.head_dim)
    }

    /// Width of this rank's keys, and of its values.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads.saturating_mul(self.head_dim)
    }

    /// Rows of this rank's head.
    pub(crate) fn vocab_width(&self) -> usize {
        self.vocab.len() as usize
    }
}
