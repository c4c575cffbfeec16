//! What the members have answered to one step.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::mesh::MeshError;
use crate::step::{LogitShard, StepOutput};

/// A sampled position: row of the plan and offset in it.
pub(super) type Place = (u32, u32);

pub(super) struct StepAnswers {
    pub(super) number: u64,
    /// Whether each rank has answered.
    answered: Vec<bool>,
    /// Outputs of the last stage, with their ranks, that nobody has taken yet.
    outputs: Vec<(u32, StepOutput)>,
    /// The ranks of the last stage, the only ones that have logits.
    heads: Range<u32>,
    /// By rank of the last stage.
    rows: BTreeMap<Place, Vec<Option<LogitShard>>>,
}

impl StepAnswers {
    pub(super) fn new(number: u64, members: usize, heads: Range<u32>) -> Self {
        Self {
            number,
            answered: vec![false; members],
            outputs: Vec::new(),
            heads,
            rows: BTreeMap::new(),
        }
    }

    pub(super) fn output(&mut self, rank: u32, output: StepOutput) -> Result<(), MeshError> {
        let is_empty = output.candidates.is_empty() && output.hidden.is_empty();
        if !is_empty && !self.heads.contains(&rank) {
            let reason = format!(
                "it answered positions of step {}, which only ranks of the last stage can",
                self.number
            );
            return Err(MeshError::Protocol { rank, reason });
        }
        match self.answered.get_mut(rank as usize) {
            Some(answered @ false) => *answered = true,
            _ => return Err(self.twice(rank)),
        }
        if self.heads.contains(&rank) {
            self.outputs.push((rank, output));
        }
        Ok(())
    }

    pub(super) fn expect_row(&mut self, place: Place) {
        self.rows.insert(place, vec![None; self.heads.len()]);
    }

    pub(super) fn row(&mut self, rank: u32, place: Place, shard: LogitShard) -> Result<(), MeshError> {
        let shards = self.rows.get_mut(&place);
        let at = rank.checked_sub(self.heads.start);
        match shards
            .zip(at)
            .and_then(|(shards, at)| shards.get_mut(at as usize))
        {
            Some(place @ None) => {
                *place = Some(shard);
                Ok(())
            }
            _ => Err(self.twice(rank)),
        }
    }

    fn twice(&self, rank: u32) -> MeshError {
        MeshError::Protocol {
            rank,
            reason: format!("it answered something of step {} twice, or unasked", self.number),
        }
    }

    /// The outputs of the last stage that have come since they were taken last, with their ranks. The other stages' only say
    /// that they are done.
    pub(super) fn take_outputs(&mut self) -> Vec<(u32, StepOutput)> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether every rank of every stage has answered.
    pub(super) fn all_answered(&self) -> bool {
        self.answered.iter().all(|answered| *answered)
    }

    pub(super) fn take_row(&mut self, place: Place) -> Option<Vec<LogitShard>> {
        if self.rows.get(&place)?.iter().any(Option::is_none) {
            return None;
        }
        self.rows.remove(&place)?.into_iter().collect()
    }

    /// Ranks that owe an answer.
    pub(super) fn missing(&self) -> Vec<usize> {
        let first = self.heads.start as usize;
        let row = |shards: &Vec<Option<LogitShard>>, rank: usize| {
            let at = rank.checked_sub(first);
            at.and_then(|at| shards.get(at)).is_some_and(Option::is_none)
        };
        let missing =
            |rank: &usize| !self.answered[*rank] || self.rows.values().any(|shards| row(shards, *rank));
        (0..self.answered.len()).filter(missing).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use llamero_checkpoint::Runs;

    use super::*;
    use crate::mesh::Topology;
    use crate::step::RowCandidates;

    fn with_candidates() -> StepOutput {
        StepOutput {
            candidates: vec![RowCandidates::default()],
            hidden: Vec::new(),
        }
    }

    fn shard() -> LogitShard {
        LogitShard {
            tokens: Runs::from(0..1),
            logits: vec![0.5],
        }
    }

    #[test]
    fn only_the_last_stage_answers_positions_and_all_stages_end_the_step() {
        let topology = Topology {
            tensor: 2,
            pipeline: 2,
        };
        let mut answers = StepAnswers::new(7, 4, topology.ranks_of(1));
        assert!(
            answers.output(1, with_candidates()).is_err(),
            "rank 1 has no head"
        );
        answers.output(3, with_candidates()).unwrap();
        assert_eq!(answers.take_outputs(), [(3, with_candidates())]);
        assert!(answers.output(3, with_candidates()).is_err(), "given twice");
        answers.output(0, StepOutput::default()).unwrap();
        answers.output(2, with_candidates()).unwrap();
        assert_eq!(answers.take_outputs(), [(2, with_candidates())]);
        assert!(!answers.all_answered(), "rank 1 may still compute");
        assert_eq!(answers.missing(), [1]);
        answers.output(1, StepOutput::default()).unwrap();
        assert_eq!(answers.take_outputs(), []);
        assert!(answers.all_answered() && answers.is_complete());

        answers.expect_row((0, 0));
        assert_eq!(answers.missing(), [2, 3]);
        assert!(answers.row(1, (0, 0), shard()).is_err(), "rank 1 was not asked");
        answers.row(3, (0, 0), shard()).unwrap();
        assert_eq!(answers.missing(), [2]);
        answers.row(2, (0, 0), shard()).unwrap();
        assert_eq!(answers.take_row((0, 0)), Some(vec![shard(), shard()]));
    }
}
