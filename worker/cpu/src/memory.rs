//! What a rank takes of memory, before anything of it is loaded.

use llamero_checkpoint::{LlamaConfig, ModelLayout, RankShard, ShardPlan, piece};
use llamero_engine::{BackendError, FormLimits, KvDtype, MemoryPlan};

use crate::kv::KvShape;
use crate::load;
use crate::lora::LoraLimits;
use crate::programs::Programs;
use crate::rope::Rope;
use crate::shape::Shape;
use crate::workspace::{LOGIT_ROWS, Workspace};

/// Tokens in a step between which the need is drawn as a straight line: from the first on, the logits' buffer grows no more.
#[expect(clippy::cast_possible_truncation, reason = "a small constant")]
const SAMPLES: [u32; 2] = [LOGIT_ROWS as u32, 1 << 16];

/// What a rank needs beside the tensors that it holds and its KV cache: packing, activations, buffers for exchanges, logits,
/// rotary angles. `fixed + tokens · per_token` bytes where a step may have `tokens` tokens; the most of all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkspaceNeed {
    /// Bytes whatever the size of a step.
    pub fixed: u64,
    /// Bytes for each token that a step may have.
    pub per_token: u64,
}

impl WorkspaceNeed {
    /// Of the ranks of `plan`.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when the heads cannot be computed.
    pub fn of(config: &LlamaConfig, model: &ModelLayout, plan: &ShardPlan) -> Result<Self, BackendError> {
        let mut most = Self::default();
        for shard in plan.shards() {
            let shape = Shape::new(config, plan, shard);
            let of_rank = Self::of_rank(&shape, model, shard)?;
            most.fixed = most.fixed.max(of_rank.fixed);
            most.per_token = most.per_token.max(of_rank.per_token);
        }
        Ok(most)
    }

    fn of_rank(shape: &Shape, model: &ModelLayout, shard: &RankShard) -> Result<Self, BackendError> {
        let programs = Programs::new(shape);
        let tensors = piece::rank_bytes(model, shard);
        let need = |tokens| -> Result<u64, BackendError> {
            let limits = FormLimits {
                max_sequences: 1,
                max_batched_tokens: tokens,
                max_context: 1,
                block_size: 16,
                steps_in_flight: shard.topology.steps_in_flight(),
                kv_dtype: KvDtype::Bf16,
                max_adapters: 0,
                max_adapter_rank: 0,
            };
            Ok(plan(shape, &programs, model, &limits)?
                .fixed()
                .saturating_sub(tensors))
        };
        let [few, many] = SAMPLES;
        let (at_few, at_many) = (need(few)?, need(many)?);
        let per_token = at_many
            .saturating_sub(at_few)
            .div_ceil(u64::from(many.abs_diff(few)));
        Ok(Self {
            fixed: at_few.saturating_sub(per_token.saturating_mul(u64::from(few))),
            per_token,
        })
    }

    /// Bytes where a step may have `tokens` tokens.
    #[must_use]
    pub fn bytes(&self, tokens: u32) -> u64 {
        self.fixed
            .saturating_add(self.per_token.saturating_mul(u64::from(tokens)))
    }
}

/// The parts, by which forming allocates.
pub(crate) fn plan(
    shape: &Shape,
    programs: &Programs,
    model: &ModelLayout,
    limits: &FormLimits,
) -> Result<MemoryPlan, BackendError> {
    let tokens = limits.max_batched_tokens as usize;
    let lora = LoraLimits::of(limits);
    let kv = KvShape::new(
        shape.layers,
        shape.kv_heads,
        shape.head_dim,
        limits.block_size as usize,
        limits.kv_dtype,
    )?;
    Ok(MemoryPlan {
        weights: load::layout(shape, model).bytes as u64,
        workspace: Workspace::bytes(shape, programs, tokens, lora) as u64,
        logits: Workspace::logit_bytes(shape, limits) as u64,
        rope: Rope::bytes(shape.head_dim, tokens) as u64,
        adapters: lora.bytes(shape),
        kv_block: kv.block_bytes() as u64,
    })
}
