//! What travels between the leader and its ranks in one step: the plan, the late values and the answers.
//!
//! The leader schedules; every rank (the leader's own included) executes the same [`Plan`] on its shard and answers
//! with [`StepOutput`]. Values not known when the plan is sent follow in [`Late`], so that a plan is sent while the step
//! before it computes: tokens before the step, biases and masks before sampling.

use llamero_checkpoint::Runs;
use serde::{Deserialize, Serialize};

use crate::leaf_tree::Subtree;
use crate::log_sum::LogSum;

/// One membership of a group (`generation`, chosen by the operator) and one attempt to connect it (`epoch`, chosen by
/// the leader). Ordered: a later era makes every frame of an earlier one invalid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Era {
    /// Membership of the group; only grows.
    pub generation: u64,
    /// Connection attempt within the generation; only grows.
    pub epoch: u64,
}

/// A token of a plan row: known when the plan is made, or taken from [`Late::Tokens`] at this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenRef {
    /// A vocabulary id.
    Known(u32),
    /// An index into [`Late::Tokens`].
    Late(u32),
}

/// How positions of a row are sampled. Noise is keyed by (seed, absolute position, token id), never by batch, rank or
/// time, so the same request gives the same text on any sharding and after a resume.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SampleKey {
    /// Seed of the request.
    pub seed: u64,
    /// Logits are divided by this; 0 means greedy (no noise, no scaling).
    pub temperature: f32,
    /// How many of the best logits are reported, at most [`TOP_CANDIDATES`].
    pub top: u16,
    /// Report log-sum-exp of the scaled logits per tile (top-p).
    pub mass: bool,
    /// Report log-sum-exp of the unscaled logits per tile (log-probabilities).
    pub logprobs: bool,
}

/// What a row answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RowOutput {
    /// Nothing: a chunk of prefill that is not the last.
    None,
    /// Candidates of the last `last` positions (1; more to verify drafts).
    Sample {
        /// How many positions, from the end of the row; at least 1.
        last: u16,
        /// How.
        key: SampleKey,
    },
    /// The logit of `ids[i]` at position `i` of the last `ids.len()`, with `top` best and log-sum-exp (prompt
    /// log-probabilities).
    Score {
        /// The ids.
        ids: Vec<u32>,
        /// How many of the best logits are reported beside it.
        top: u16,
    },
    /// The last position's hidden state behind the final norm (embeddings).
    Hidden,
    /// The sum of all positions' hidden states behind the final norm, by [`crate::pooling::add`].
    HiddenSum,
}

/// Consecutive positions of one sequence that are computed in this step (one for decode, a chunk for prefill).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanRow {
    /// The sequence's slot, `0 .. FormLimits::max_sequences`; its block table lives under this number on every rank.
    pub slot: u32,
    /// Absolute position of the first token. A start before what was computed rewinds (speculative rollback).
    pub start: u32,
    /// The tokens at positions `start ..`.
    pub tokens: Vec<TokenRef>,
    /// The adapter, by number; none for the model as it is.
    pub adapter: Option<u32>,
    /// What the row answers.
    pub output: RowOutput,
}

impl PlanRow {
    /// How many of its last positions are answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        match &self.output {
            RowOutput::None => 0,
            RowOutput::Sample { last, .. } => usize::from(*last),
            RowOutput::Score { ids, .. } => ids.len(),
            RowOutput::Hidden => 1,
            RowOutput::HiddenSum => self.tokens.len(),
        }
    }
}

/// An answered position: the row of the plan, and its number among the row's answered positions.
pub type Place = (u32, u32);

/// Changes of the block tables, applied in the order of the fields, before any row is computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDeltas {
    /// Slots whose block table becomes empty.
    pub frees: Vec<u32>,
    /// Slots whose table keeps only its first blocks: (slot, blocks kept).
    pub truncates: Vec<(u32, u32)>,
    /// Blocks appended to a slot's table: (slot, physical block ids).
    pub appends: Vec<(u32, Vec<u32>)>,
    /// Entries of a table exchanged for another block: (slot, index in the table, physical block id).
    pub replaces: Vec<(u32, u32, u32)>,
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
    /// Rows; empty for a heartbeat, which still runs one collective through all ranks.
    pub rows: Vec<PlanRow>,
    /// Block table changes.
    pub blocks: BlockDeltas,
    /// Number of [`TokenRef::Late`] tokens; when not 0, one [`Late::Tokens`] of that length follows.
    pub late_tokens: u32,
    /// Whether one [`Late::Sampling`] follows, without which no row is sampled.
    pub late_sampling: bool,
    /// Hash of all block tables after `blocks`, so that a rank that diverged is found at once.
    pub state_hash: u64,
}

/// What the plan left open, each kind sent at most once a step ([`Late::Cancel`] any number of times).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Late {
    /// Values of [`TokenRef::Late`]; precede the step.
    Tokens(Vec<u32>),
    /// Precede sampling only.
    Sampling {
        /// Added to the logits before sampling: (position, [(token id, bias)]).
        biases: Vec<(Place, Vec<(u32, f32)>)>,
        /// Allowed token ids as a bitmap over the whole vocabulary, little end first: (position, bits).
        masks: Vec<(Place, Vec<u8>)>,
        /// Tokens that came before, whose logits are made worse by a factor before biases are added (see
        /// [`crate::sampling::penalties::repeated`]): (position, factor, token ids without repeats).
        repetitions: Vec<(Place, f32, Vec<u32>)>,
    },
    /// Rows of the plan whose answer nobody wants any more. They still write their KV, which rows of later steps may read; their
    /// entries of [`StepOutput`] may be missing.
    Cancel(Vec<u32>),
}

/// Most candidates that a rank reports for a sampled position (fewer when its vocabulary shard is smaller).
pub const TOP_CANDIDATES: usize = 64;
/// Width of a vocabulary tile in tokens. Tiles are the leaves of the tree in which a row's probability mass is summed,
/// so that it does not depend on the sharding.
pub const VOCAB_TILE: usize = 128;

/// A complete subtree of vocabulary tiles (see [`crate::leaf_tree::is_complete`]) and the sum over its tokens.
pub type MassRoot = (Subtree, LogSum);

/// What one rank knows about one sampled or scored position, over its own vocabulary shard.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RowCandidates {
    /// Index into [`Plan::rows`].
    pub row: u32,
    /// Position among the row's answered ones, from 0.
    pub offset: u32,
    /// Best unscaled logits (biases and masks applied), highest first, ties by lower id: (token id, logit).
    pub top: Vec<(u32, f32)>,
    /// Sums of `e^(logit / temperature)`, one per maximal complete subtree of this shard's vocabulary tiles, ascending;
    /// empty unless [`SampleKey::mass`].
    pub mass: Vec<MassRoot>,
    /// The same of the unscaled logits; empty unless log-probabilities were asked for.
    pub mass_raw: Vec<MassRoot>,
    /// Best `logit / temperature + Gumbel(seed, position, id)`: (token id, perturbed, unscaled logit); none when greedy.
    pub gumbel: Option<(u32, f32, f32)>,
    /// The logit of the scored id, where this shard holds it.
    pub scored: Option<f32>,
}

/// One rank's answer to a step. Ranks of the last stage have the head and answer positions; those of earlier stages leave it
/// empty, and only say with it that they are done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// One entry per answered position, in order of (row, offset).
    pub candidates: Vec<RowCandidates>,
    /// Hidden states of the rows that ask for them, or their sums: (row, `[hidden]`). Only from the first rank of the last
    /// stage.
    pub hidden: Vec<(u32, Vec<f64>)>,
}

/// One rank's part of a full row of logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitShard {
    /// The token ids, ascending runs.
    pub tokens: Runs,
    /// Unscaled logits, biases and masks applied, in the order of `tokens`.
    pub logits: Vec<f32>,
}
