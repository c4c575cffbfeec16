//! Why a model cannot be split.

use crate::topology::Topology;

/// Why a model cannot be split as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// More ranks than pieces.
    #[error("tensor {tensor} is more than {limit} {what}: use tensor {limit} or less{hint}")]
    TooManyRanks {
        /// Ranks of a stage that were asked for.
        tensor: u32,
        /// Pieces there are.
        limit: u32,
        /// What the pieces are.
        what: &'static str,
        /// What else helps.
        hint: &'static str,
    },
    /// More stages than layers.
    #[error(
        "pipeline {pipeline} is more than the {layers} layers of the model: use pipeline {layers} or less"
    )]
    TooManyStages {
        /// Stages asked for.
        pipeline: u32,
        /// Layers of the model.
        layers: u32,
    },
    /// The files hold the parts of the ranks of another group.
    #[error(
        "the files were made for {made_for}, not for {asked}: use {made_for}, or make files for {asked} from the whole \
         checkpoint with `llamero-worker shard --tensor {} --pipeline {}`", asked.tensor, asked.pipeline
    )]
    MadeForOthers {
        /// For which group they were made.
        made_for: Topology,
        /// The group that was asked for.
        asked: Topology,
    },
    /// The files hold the parts of the ranks of a whole group, and some are lost.
    #[error(
        "the files were made for the whole group of {made_for}, and this one has lost ranks: replace them, or serve the whole \
         checkpoint, of which any rank can read any part"
    )]
    MadeForAll {
        /// For which group they were made.
        made_for: Topology,
    },
    /// No ranks at all.
    #[error("a group of tensor {tensor} x pipeline {pipeline}: both must be at least 1")]
    NoRanks {
        /// Ranks of a stage that were asked for.
        tensor: u32,
        /// Stages asked for.
        pipeline: u32,
    },
    /// A rank outside the group, or one that was lost before.
    #[error("rank {rank} is not a member of the group, which has {members} of {ranks} ranks")]
    NoSuchRank {
        /// The rank.
        rank: u32,
        /// Ranks that are there.
        members: u32,
        /// Ranks of the full group.
        ranks: u32,
    },
    /// The last rank of a stage was lost.
    #[error("rank {rank} is the last of stage {stage}: without it the layers of that stage are nowhere")]
    StageLost {
        /// The rank.
        rank: u32,
        /// Its stage.
        stage: u32,
    },
    /// Rank 0 was lost.
    #[error("rank 0 leads the group, which cannot form without it: replace it")]
    LeaderLost,
    /// The feed-forward width cannot be cut into leaves.
    #[error("intermediate_size {ffn_size} is not a multiple of 64: such a model cannot be served")]
    OddFfn {
        /// Width of the feed-forward layer.
        ffn_size: u32,
    },
}
