//! What the members have answered to one step.

use std::collections::BTreeMap;

use crate::mesh::MeshError;
use crate::step::{LogitShard, StepOutput};

/// A sampled position: row of the plan and offset in it.
pub(super) type Place = (u32, u32);

pub(super) struct StepAnswers {
    pub(super) number: u64,
    /// By rank.
    outputs: Vec<Option<StepOutput>>,
    taken: bool,
    rows: BTreeMap<Place, Vec<Option<LogitShard>>>,
}

impl StepAnswers {
    pub(super) fn new(number: u64, members: usize) -> Self {
        Self {
            number,
            outputs: vec![None; members],
            taken: false,
            rows: BTreeMap::new(),
        }
    }

    pub(super) fn output(&mut self, rank: u32, output: StepOutput) -> Result<(), MeshError> {
        match self.outputs.get_mut(rank as usize) {
            Some(place @ None) if !self.taken => {
                *place = Some(output);
                Ok(())
            }
            _ => Err(self.twice(rank)),
        }
    }

    pub(super) fn expect_row(&mut self, place: Place, members: usize) {
        self.rows.insert(place, vec![None; members]);
    }

    pub(super) fn row(&mut self, rank: u32, place: Place, shard: LogitShard) -> Result<(), MeshError> {
        let shards = self.rows.get_mut(&place);
        match shards.and_then(|shards| shards.get_mut(rank as usize)) {
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

    pub(super) fn take_outputs(&mut self) -> Option<Vec<StepOutput>> {
        if self.taken || self.outputs.iter().any(Option::is_none) {
            return None;
        }
        self.taken = true;
        self.outputs.iter_mut().map(Option::take).collect()
    }

    pub(super) fn take_row(&mut self, place: Place) -> Option<Vec<LogitShard>> {
        if self.rows.get(&place)?.iter().any(Option::is_none) {
            return None;
        }
        self.rows.remove(&place)?.into_iter().collect()
    }

    /// Ranks that owe an answer.
    pub(super) fn missing(&self) -> Vec<usize> {
        let missing = |rank: &usize| {
            let output = !self.taken && self.outputs[*rank].is_none();
            output || self.rows.values().any(|shards| shards[*rank].is_none())
        };
        (0..self.outputs.len()).filter(missing).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }
}
