//! What the members have answered to one step.

use std::collections::BTreeMap;

use crate::mesh::MeshError;
use crate::step::{LogitShard, Place, StepOutput};

pub(super) struct StepAnswers {
    pub(super) number: u64,
    /// Whether each member has answered.
    answered: Vec<bool>,
    /// Outputs of the last stage, with their ranks, that nobody has taken yet.
    outputs: Vec<(u32, StepOutput)>,
    /// The first member of the last stage; it and all behind it are the only ones that have logits.
    first_head: usize,
    /// By member of the last stage.
    rows: BTreeMap<Place, Vec<Option<LogitShard>>>,
}

/// A member that answers: its rank, and its number among the members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answering {
    pub(super) rank: u32,
    pub(super) index: usize,
}

impl StepAnswers {
    pub(super) fn new(number: u64, members: usize, first_head: usize) -> Self {
        Self {
            number,
            answered: vec![false; members],
            outputs: Vec::new(),
            first_head,
            rows: BTreeMap::new(),
        }
    }

    pub(super) fn output(&mut self, from: Answering, output: StepOutput) -> Result<(), MeshError> {
        let is_empty = output.candidates.is_empty() && output.hidden.is_empty();
        if !is_empty && from.index < self.first_head {
            let reason = format!(
                "it answered positions of step {}, which only ranks of the last stage can",
                self.number
            );
            let rank = from.rank;
            return Err(MeshError::Protocol { rank, reason });
        }
        match self.answered.get_mut(from.index) {
            Some(answered @ false) => *answered = true,
            _ => return Err(self.twice(from.rank)),
        }
        if from.index >= self.first_head {
            self.outputs.push((from.rank, output));
        }
        Ok(())
    }

    pub(super) fn expect_row(&mut self, place: Place) {
        let heads = self.answered.len().saturating_sub(self.first_head);
        self.rows.insert(place, vec![None; heads]);
    }

    pub(super) fn row(&mut self, from: Answering, place: Place, shard: LogitShard) -> Result<(), MeshError> {
        let shards = self.rows.get_mut(&place);
        let at = from.index.checked_sub(self.first_head);
        match shards.zip(at).and_then(|(shards, at)| shards.get_mut(at)) {
            Some(place @ None) => {
                *place = Some(shard);
                Ok(())
            }
            _ => Err(self.twice(from.rank)),
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

    /// Whether every member of every stage has answered.
    pub(super) fn all_answered(&self) -> bool {
        self.answered.iter().all(|answered| *answered)
    }

    pub(super) fn take_row(&mut self, place: Place) -> Option<Vec<LogitShard>> {
        if self.rows.get(&place)?.iter().any(Option::is_none) {
            return None;
        }
        self.rows.remove(&place)?.into_iter().collect()
    }

    /// Members that owe an answer.
    pub(super) fn missing(&self) -> Vec<usize> {
        let row = |shards: &Vec<Option<LogitShard>>, member: usize| {
            let at = member.checked_sub(self.first_head);
            at.and_then(|at| shards.get(at)).is_some_and(Option::is_none)
        };
        let missing = |(member, answered): &(usize, &bool)| {
            !**answered || self.rows.values().any(|shards| row(shards, *member))
        };
        let members = self.answered.iter().enumerate().filter(missing);
        members.map(|(member, _)| member).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use llamero_checkpoint::Runs;

    use super::*;
    use crate::mesh::{Members, Topology};
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
            tensor: 3,
            pipeline: 2,
        };
        // Rank 1 is lost, and the others keep their numbers.
        let members = Members::new(topology, &[1]).unwrap();
        let from = |rank| Answering {
            rank,
            index: members.index(rank).unwrap(),
        };
        let first_head = from(members.last_stage()[0]).index;
        let mut answers = StepAnswers::new(7, members.ranks().len(), first_head);
        assert!(
            answers.output(from(2), with_candidates()).is_err(),
            "rank 2 has no head"
        );
        answers.output(from(5), with_candidates()).unwrap();
        assert_eq!(answers.take_outputs(), [(5, with_candidates())]);
        assert!(answers.output(from(5), with_candidates()).is_err(), "given twice");
        answers.output(from(3), with_candidates()).unwrap();
        answers.output(from(4), StepOutput::default()).unwrap();
        answers.output(from(0), StepOutput::default()).unwrap();
        let outputs = [(3, with_candidates()), (4, StepOutput::default())];
        assert_eq!(answers.take_outputs(), outputs);
        assert!(!answers.all_answered(), "rank 2 may still compute");
        assert_eq!(answers.missing(), [from(2).index]);
        answers.output(from(2), StepOutput::default()).unwrap();
        assert_eq!(answers.take_outputs(), []);
        assert!(answers.all_answered() && answers.is_complete());

        answers.expect_row((0, 0));
        assert_eq!(answers.missing(), [3, 4, 5].map(|rank| from(rank).index));
        assert!(
            answers.row(from(2), (0, 0), shard()).is_err(),
            "rank 2 was not asked"
        );
        answers.row(from(5), (0, 0), shard()).unwrap();
        answers.row(from(4), (0, 0), shard()).unwrap();
        assert_eq!(answers.missing(), [from(3).index]);
        answers.row(from(3), (0, 0), shard()).unwrap();
        assert_eq!(answers.take_row((0, 0)), Some(vec![shard(); 3]));
    }
}
