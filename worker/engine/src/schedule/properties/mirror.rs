//! A group that executes plans literally, and a model of whose answers everything is known.

use std::collections::{BTreeMap, BTreeSet};

use crate::block_tables::BlockTables;
use crate::schedule::{Batch, Limits};
use crate::step::{RowOutput, TokenRef};

/// The token every "model" here says next: a function of the history alone, as greedy decoding is. Those of one family repeat what
/// they said, with mistakes; the others never do.
pub(super) fn next_token(history: &[u32]) -> u32 {
    let hash = history
        .iter()
        .fold(7_u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
    let repeats = history.first() == Some(&REPEATING);
    if repeats && hash % 5 > 0 {
        return history.last().map_or(0, |last| (last + 1) % 4);
    }
    hash % 1000
}

/// The family whose answers repeat what they said.
pub(super) const REPEATING: u32 = 1;

/// A group that executes plans literally: KV is the token written at each physical position.
pub(super) struct Mirror {
    pub(super) limits: Limits,
    pub(super) tables: BlockTables,
    pub(super) kv: BTreeMap<(u32, u32), u32>,
    /// How many slots hold each block.
    pub(super) users: BTreeMap<u32, u32>,
}

impl Mirror {
    pub(super) fn new(limits: Limits) -> Self {
        let tables = BlockTables::new(limits.max_sequences, limits.blocks);
        Self {
            limits,
            tables,
            kv: BTreeMap::new(),
            users: BTreeMap::new(),
        }
    }

    /// Take a batch: its block changes hold from here on, for batches in flight too.
    pub(super) fn submit(&mut self, batch: &Batch) {
        for slot in &batch.blocks.frees {
            for block in self.tables.table(*slot) {
                let users = self.users.get_mut(block).unwrap();
                *users -= 1;
                if *users == 0 {
                    self.users.remove(block);
                }
            }
        }
        for block in batch.blocks.appends.iter().flat_map(|(_, blocks)| blocks) {
            *self.users.entry(*block).or_default() += 1;
        }
        self.tables.apply(&batch.blocks).unwrap();
        // What a row writes, nobody else may hold, now or in a batch that is in flight.
        for row in &batch.rows {
            let end = row.start + u32::try_from(row.tokens.len()).unwrap();
            for position in row.start..end {
                let (block, _) = self.place(row.slot, position);
                assert_eq!(self.users[&block], 1, "block {block} is written and shared");
            }
        }
        assert_eq!(self.tables.hash(), batch.state_hash);
        assert!(batch.tokens() <= self.limits.max_batched_tokens);
        assert!(batch.rows.len() <= self.limits.max_sequences as usize);
        let slots: BTreeSet<u32> = batch.rows.iter().map(|row| row.slot).collect();
        assert_eq!(slots.len(), batch.rows.len(), "a slot has two rows");
    }

    /// Execute a batch with the values of its late tokens; returns the sampled tokens of each row, with those behind right drafts.
    pub(super) fn run(&mut self, batch: &Batch, late: &[u32]) -> Vec<Vec<u32>> {
        for (from, to) in &batch.blocks.copies {
            for offset in 0..self.limits.block_size {
                if let Some(token) = self.kv.get(&(*from, offset)).copied() {
                    self.kv.insert((*to, offset), token);
                }
            }
        }
        batch
            .rows
            .iter()
            .map(|row| {
                for (position, token) in (row.start..).zip(&row.tokens) {
                    let token = match token {
                        TokenRef::Known(token) => *token,
                        TokenRef::Late(index) => late[*index as usize],
                    };
                    self.kv.insert(self.place(row.slot, position), token);
                }
                let end = row.start + u32::try_from(row.tokens.len()).unwrap();
                let RowOutput::Sample { last, .. } = row.output else {
                    return Vec::new();
                };
                let history: Vec<u32> = (0..end).map(|at| self.kv[&self.place(row.slot, at)]).collect();
                let mut sampled = Vec::new();
                for drafts in (0..usize::from(last)).rev() {
                    let (before, drafts) = history.split_at(history.len() - drafts);
                    sampled.push(next_token(before));
                    if drafts.first() != sampled.last() {
                        break;
                    }
                }
                sampled
            })
            .collect()
    }

    pub(super) fn place(&self, slot: u32, position: u32) -> (u32, u32) {
        let block = self.tables.table(slot)[(position / self.limits.block_size) as usize];
        (block, position % self.limits.block_size)
    }
}
