//! Which ranks of a group are there.

use std::fmt;

use crate::error::ShardError;
use crate::narrow::to_u32;
use crate::topology::Topology;

/// The ranks of a whole group but those that it does without. Ranks keep their numbers, so the numbers may have gaps.
///
/// The order of the losses belongs to it: it decides who took over what (see [`crate::ShardPlan::without`]), so that ranks
/// which disagree about it would hold shares that do not make up the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Members {
    topology: Topology,
    lost: Vec<u32>,
    /// Ascending.
    present: Vec<u32>,
}

impl Members {
    /// All ranks of a group.
    #[must_use]
    pub fn whole(topology: Topology) -> Self {
        Self {
            topology,
            lost: Vec::new(),
            present: (0..topology.ranks()).collect(),
        }
    }

    /// All ranks of a group but `lost`, in the order in which they were lost.
    ///
    /// # Errors
    /// As [`Self::without`].
    pub fn new(topology: Topology, lost: &[u32]) -> Result<Self, ShardError> {
        let whole = Self::whole(topology);
        lost.iter()
            .try_fold(whole, |members, rank| members.without(*rank))
    }

    /// The members after `rank` is lost, too.
    ///
    /// # Errors
    /// It is rank 0, which leads, or no member, or the last of its stage.
    pub fn without(mut self, rank: u32) -> Result<Self, ShardError> {
        let Some(index) = self.index(rank) else {
            return Err(ShardError::NoSuchRank {
                rank,
                members: to_u32(self.present.len()),
                ranks: self.topology.ranks(),
            });
        };
        if rank == 0 {
            return Err(ShardError::LeaderLost);
        }
        let stage = self.topology.stage(rank);
        if self.stage(stage).len() < 2 {
            return Err(ShardError::StageLost { rank, stage });
        }
        self.present.remove(index);
        self.lost.push(rank);
        Ok(self)
    }

    /// The arrangement of the whole group.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The ranks that are not there, in the order in which they were lost.
    #[must_use]
    pub fn lost(&self) -> &[u32] {
        &self.lost
    }

    /// The ranks that are there, ascending.
    #[must_use]
    pub fn ranks(&self) -> &[u32] {
        &self.present
    }

    /// The number of `rank` among those that are there; none for one that is not.
    #[must_use]
    pub fn index(&self, rank: u32) -> Option<usize> {
        self.present.binary_search(&rank).ok()
    }

    /// The ranks of a stage that are there, ascending.
    #[must_use]
    pub fn stage(&self, stage: u32) -> &[u32] {
        let of = |rank: &u32| self.topology.stage(*rank);
        let first = self.present.partition_point(|rank| of(rank) < stage);
        let end = self.present.partition_point(|rank| of(rank) <= stage);
        self.present.get(first..end).unwrap_or_default()
    }

    /// The ranks of the last stage, which have the head. They are the last ones of [`Self::ranks`].
    #[must_use]
    pub fn last_stage(&self) -> &[u32] {
        self.stage(self.topology.pipeline.saturating_sub(1))
    }
}

impl From<Topology> for Members {
    fn from(topology: Topology) -> Self {
        Self::whole(topology)
    }
}

/// As people write it: `tensor 8` or `tensor 8 without ranks 5, 3`.
impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.topology)?;
        let lost: Vec<String> = self.lost.iter().map(u32::to_string).collect();
        match lost.as_slice() {
            [] => Ok(()),
            [one] => write!(f, " without rank {one}"),
            _ => write!(f, " without ranks {}", lost.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_keep_their_numbers() {
        let topology = Topology {
            tensor: 3,
            pipeline: 2,
        };
        let members = Members::new(topology, &[4, 1]).unwrap();
        assert_eq!(members.ranks(), [0, 2, 3, 5]);
        assert_eq!(
            (members.stage(0), members.last_stage()),
            (&[0, 2][..], &[3, 5][..])
        );
        assert_eq!((members.index(3), members.index(4)), (Some(2), None));
        assert_eq!(members.to_string(), "tensor 3 x pipeline 2 without ranks 4, 1");
        assert_ne!(
            members,
            Members::new(topology, &[1, 4]).unwrap(),
            "the order of losses counts"
        );
        assert_eq!(Members::whole(topology).ranks(), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_cannot_be_lost_is_named() {
        let of = |lost: &[u32]| Members::new(Topology::tensor(3), lost).unwrap_err().to_string();
        assert!(of(&[0]).contains("rank 0 leads"), "{}", of(&[0]));
        assert!(of(&[3]).contains("rank 3 is not a member"));
        assert!(of(&[1, 1]).contains("has 2 of 3 ranks"));
        let stages = Topology {
            tensor: 1,
            pipeline: 2,
        };
        assert!(
            Members::new(stages, &[1])
                .unwrap_err()
                .to_string()
                .contains("last of stage 1")
        );
    }
}
