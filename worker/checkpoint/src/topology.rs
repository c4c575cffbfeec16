//! How the ranks of a group are arranged.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// `tensor` ranks compute every layer of a stage together; `pipeline` stages follow one another. Rank `stage · tensor + t` is
/// the `t`-th of its stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Topology {
    /// Ranks of a stage, at least 1.
    pub tensor: u32,
    /// Stages, at least 1.
    pub pipeline: u32,
}

impl Topology {
    /// One stage.
    #[must_use]
    pub fn tensor(tensor: u32) -> Self {
        Self { tensor, pipeline: 1 }
    }

    /// Ranks in all.
    #[must_use]
    pub fn ranks(self) -> u32 {
        self.tensor.saturating_mul(self.pipeline)
    }

    /// The stage of `rank`.
    #[must_use]
    pub fn stage(self, rank: u32) -> u32 {
        rank / self.tensor.max(1)
    }

    /// The ranks of a stage.
    #[must_use]
    pub fn ranks_of(self, stage: u32) -> Range<u32> {
        stage * self.tensor..(stage + 1) * self.tensor
    }

    /// Steps that are under way at once: while the stages compute one each, the next is planned and sent.
    #[must_use]
    pub fn steps_in_flight(self) -> u32 {
        self.pipeline.saturating_add(1).max(2)
    }

    /// Which of `layers` layers a stage computes: contiguous parts, the first stages one layer more where it does not come
    /// out even, because the last one also has the head.
    #[must_use]
    pub fn layers_of(self, stage: u32, layers: u32) -> Range<u32> {
        part(layers, self.pipeline, stage)
    }
}

/// As people write it: `tensor 8` or `tensor 8 x pipeline 2`.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {}", self.tensor)?;
        if self.pipeline != 1 {
            write!(f, " x pipeline {}", self.pipeline)?;
        }
        Ok(())
    }
}

/// Part `index` of `0 .. count` in `parts` contiguous parts; the first `count % parts` are one larger.
pub(crate) fn part(count: u32, parts: u32, index: u32) -> Range<u32> {
    let (base, larger) = (count / parts, count % parts);
    let start = |index: u32| index * base + index.min(larger);
    start(index)..start(index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_stage_by_stage() {
        let topology = Topology {
            tensor: 8,
            pipeline: 4,
        };
        assert_eq!(topology.ranks(), 32);
        assert_eq!(
            (topology.stage(7), topology.stage(8), topology.stage(31)),
            (0, 1, 3)
        );
        assert_eq!(topology.ranks_of(2), 16..24);
        let layers: Vec<_> = (0..4).map(|stage| topology.layers_of(stage, 126)).collect();
        assert_eq!(layers, [0..32, 32..64, 64..95, 95..126]);
        assert_eq!(topology.to_string(), "tensor 8 x pipeline 4");
        assert_eq!(Topology::tensor(3).to_string(), "tensor 3");
    }
}
