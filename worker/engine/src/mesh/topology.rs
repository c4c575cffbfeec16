//! How the ranks of a group share a model.

use serde::{Deserialize, Serialize};

/// Tensor-parallel ranks of each stage, and pipeline stages. Rank `r` is number `r % tensor` of stage `r / tensor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Topology {
    /// Ranks that share every layer of a stage.
    pub tensor: u32,
    /// Stages.
    pub pipeline: u32,
}

impl Topology {
    /// Ranks in all.
    #[must_use]
    pub fn ranks(self) -> u32 {
        self.tensor.saturating_mul(self.pipeline)
    }
}

impl std::fmt::Display for Topology {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tensor {} × pipeline {}", self.tensor, self.pipeline)
    }
}
