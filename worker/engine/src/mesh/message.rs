//! What the leader and the members of a group say to each other. Every message travels with the number of the step it
//! belongs to; 0 outside steps.

use llamero_checkpoint::ContentIdentity;
use serde::{Deserialize, Serialize};

use super::contract::MeshError;
use crate::adapters::AdapterSource;
use crate::form::FormLimits;
use crate::step::{Era, Late, LogitShard, Plan, StepOutput};

/// What travels between the leader and a member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Leader: the links are there, form with these limits; each rank adds its own memory for KV.
    Setup {
        /// The same on all ranks.
        limits: FormLimits,
        /// The adapters that rows may ask for: a rank has these and no others.
        adapters: Vec<AdapterSource>,
    },
    /// Member: it is forming, and this is what it does now.
    Forming(String),
    /// Member: formed, with so many KV blocks.
    Ready {
        /// [`crate::KvCapacity::blocks`].
        blocks: u32,
        /// [`crate::KvCapacity::kept`].
        kept: Option<Era>,
        /// Adapters of the setup that it does not have, by number, and why.
        missing: Vec<(u32, String)>,
    },
    /// Leader: read this adapter. Steps go on meanwhile.
    LoadAdapter(AdapterSource),
    /// Member: it has read the adapter with that number, or why it cannot.
    Adapter {
        /// The leader's number.
        number: u32,
        /// What the adapter is.
        outcome: Result<ContentIdentity, String>,
    },
    /// Leader: forget the adapter with that number; no later step has rows of it.
    UnloadAdapter(u32),
    /// Leader: execute this step.
    Plan(Plan),
    /// Leader: values that the plan of that step left open, or rows of it that nobody wants any more.
    Late(Late),
    /// Member: it computes, and has computed so many layers since it formed.
    Progress {
        /// [`crate::StepProgress::layers`] of this era.
        layers: u64,
    },
    /// Member: the step's answer.
    Output(StepOutput),
    /// Leader: send this rank's part of the logits of a sampled position of that step.
    Fetch {
        /// Index into [`Plan::rows`].
        row: u32,
        /// Position among the row's answered ones.
        offset: u32,
    },
    /// Member: the part.
    Row {
        /// As in the request.
        row: u32,
        /// As in the request.
        offset: u32,
        /// The logits.
        shard: LogitShard,
    },
    /// Leader: nothing of that step will be fetched any more.
    Release,
    /// Leader: it is there and waits for others.
    Alive,
    /// Leader: the group is drained and ends; exit.
    Leave,
    /// Member: it cannot go on; the era ends.
    Failed(Failure),
}

/// Why a member cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// It lost a peer, and says which one.
    Lost(MeshError),
    /// Its process exits, since something must be changed or mended first.
    Exits(String),
}

impl Failure {
    /// What the failure of rank `rank` means for the era.
    #[must_use]
    pub fn blame(self, rank: u32) -> MeshError {
        match self {
            // Its own shutdown, which says nothing about others.
            Self::Lost(MeshError::Aborted) => MeshError::PeerLost {
                rank,
                reason: "it left".into(),
            },
            Self::Lost(error) => error,
            Self::Exits(reason) => MeshError::PeerLost { rank, reason },
        }
    }
}

impl Message {
    /// For error messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Setup { .. } => "Setup",
            Self::Forming(_) => "Forming",
            Self::Ready { .. } => "Ready",
            Self::LoadAdapter(_) => "LoadAdapter",
            Self::Adapter { .. } => "Adapter",
            Self::UnloadAdapter(_) => "UnloadAdapter",
            Self::Plan(_) => "Plan",
            Self::Late(_) => "Late",
            Self::Progress { .. } => "Progress",
            Self::Output(_) => "Output",
            Self::Fetch { .. } => "Fetch",
            Self::Row { .. } => "Row",
            Self::Release => "Release",
            Self::Alive => "Alive",
            Self::Leave => "Leave",
            Self::Failed(_) => "Failed",
        }
    }

    /// The error for a message of rank `rank` that is well formed but out of place.
    #[must_use]
    pub fn out_of_place(&self, rank: u32, step: u64) -> MeshError {
        MeshError::Protocol {
            rank,
            reason: format!("unexpected {} in step {step}", self.name()),
        }
    }
}
