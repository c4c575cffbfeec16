//! What travels between the leader and its ranks in one step: the plan, the late values and the answers.
//!
//! The leader schedules; every rank (the leader's own included) executes the same [`Plan`] on its shard and answers
//! with [`StepOutput`]. Values not known when the plan is sent (the token sampled by the step before, sparse biases,
//! masks) follow in [`Late`], so that a plan may be sent one step ahead.

use serde::{Deserialize, Serialize};

/// One membership of a group (`generation`, chosen by the operator) and one attempt to connect it (`epoch`, chosen by
/// the leader). Ordered: a later era makes every frame of an earlier one invalid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Era {
    /// Membership of the group; only grows.
    pub generation: u64,
    /// Connection attempt within the generation; only grows.
    pub epoch: u64,
}

/// A token of a plan row: known when the plan is made, or taken from [`Late::tokens`] at this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenRef {
    /// A vocabulary id.
    Known(u32),
    /// An index into [`Late::tokens`].
    Late(u32),
}

/// How the last position of a row is sampled. Noise is keyed by (seed, absolute position, token id), never by batch,
/// rank or time, so the same request gives the same text on any sharding and after a resume.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleKey {
    /// Seed of the request.
    pub seed: u64,
    /// Logits are divided by this; 0 means greedy (no noise, no scaling).
    pub temperature: f32,
    /// Also return log-sum-exp of the unscaled logits, for log-probabilities.
    pub logprobs: bool,
}

/// Consecutive positions of one sequence that are computed in this step (one for decode, a chunk for prefill).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// The sequence's slot, `0 .. FormSpec::max_sequences`; its block table lives under this number on every rank.
    pub slot: u32,
    /// Absolute position of the first token. A start before what was computed rewinds (speculative rollback).
    pub start: u32,
    /// The tokens at positions `start ..`.
    pub tokens: Vec<TokenRef>,
    /// How many of the last tokens are drafts, whose positions are sampled too.
    pub drafts: u16,
    /// Set when the last position is to be sampled; absent for a prefill chunk that is not the last.
    pub sample: Option<SampleKey>,
}

/// Changes of the block tables, applied in the order frees, appends, copies, before any row is computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeltas {
    /// Slots whose block table becomes empty.
    pub frees: Vec<u32>,
    /// Blocks appended to a slot's table: (slot, physical block ids).
    pub appends: Vec<(u32, Vec<u32>)>,
    /// Physical blocks copied whole: (source, destination).
    pub copies: Vec<(u32, u32)>,
}

/// One step of the whole group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Membership and connection this plan belongs to.
    pub era: Era,
    /// Number of the step within the epoch, from 1, without gaps.
    pub step: u64,
    /// Micro-batch of a pipeline; 0 without pipeline parallelism.
    pub micro_batch: u16,
    /// Rows; empty for a heartbeat, which still runs one collective through all ranks.
    pub rows: Vec<PlanRow>,
    /// Block table changes.
    pub blocks: BlockDeltas,
    /// Hash of all block tables after `blocks`, so that a rank that diverged is found at once.
    pub state_hash: u64,
}

/// What the plan left open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// Values of [`TokenRef::Late`].
    pub tokens: Vec<u32>,
    /// Added to the logits before sampling: (row of the plan, [(token id, bias)]).
    pub biases: Vec<(u32, Vec<(u32, f32)>)>,
    /// Allowed token ids as a bitmap over the whole vocabulary, little end first: (row of the plan, bits).
    pub masks: Vec<(u32, Vec<u8>)>,
}

/// Number of candidates a rank reports for a sampled position (fewer when its vocabulary shard is smaller).
pub const TOP_CANDIDATES: usize = 64;
/// Width of a vocabulary tile in tokens; log-sum-exp is reported per tile so that it does not depend on sharding.
pub const VOCAB_TILE: usize = 128;

/// What one rank knows about one sampled position, over its own vocabulary shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowCandidates {
    /// Index into [`Plan::rows`].
    pub row: u32,
    /// Best unscaled logits (biases and masks applied), highest first, ties by lower id: (token id, logit).
    pub top: Vec<(u32, f32)>,
    /// First vocabulary tile of this shard.
    pub first_tile: u32,
    /// Per tile, log-sum-exp of `logit / temperature` (of the logits when greedy).
    pub tile_lse: Vec<f32>,
    /// Per tile, log-sum-exp of the unscaled logits; empty unless log-probabilities were asked for.
    pub tile_lse_raw: Vec<f32>,
    /// Best `logit / temperature + Gumbel(seed, position, id)`: (token id, perturbed, unscaled logit); none when greedy.
    pub gumbel: Option<(u32, f32, f32)>,
}

/// One rank's answer to a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// One entry per row with a [`SampleKey`], in plan order.
    pub candidates: Vec<RowCandidates>,
}

/// One rank's slice of a full row of logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitShard {
    /// Token id of the first value.
    pub first_token: u32,
    /// Unscaled logits, biases and masks applied.
    pub logits: Vec<f32>,
}
