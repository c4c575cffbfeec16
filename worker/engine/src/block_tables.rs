//! The block tables of one rank: which physical KV blocks hold the positions of each slot.
//!
//! The leader changes them by [`BlockDeltas`] and sends the hash of the outcome with every plan; every rank applies the
//! same deltas and compares the hash, so that a rank that diverged is found before it computes on wrong blocks.

use std::collections::BTreeMap;

use crate::step::BlockDeltas;
use llamero_settings::hash::{GOLDEN, mix};

/// Block tables of all slots. Copies move data and leave the tables alone: the backend carries them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTables {
    tables: Vec<Vec<u32>>,
    blocks: u32,
    hash: u64,
}

/// Why deltas cannot be applied; the tables are unchanged then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockTableError {
    /// A slot at or past the number of slots.
    #[error("slot {slot} does not exist: there are {slots}")]
    Slot {
        /// The slot.
        slot: u32,
        /// Number of slots.
        slots: usize,
    },
    /// A physical block at or past the number of blocks.
    #[error("KV block {block} does not exist: there are {blocks}")]
    Block {
        /// The block.
        block: u32,
        /// Number of blocks.
        blocks: u32,
    },
    /// A place of a table that holds no block.
    #[error("the block table of slot {slot} has {length} blocks, and number {index} was meant")]
    Index {
        /// The slot.
        slot: u32,
        /// Index into the table.
        index: u32,
        /// Length of the table at that moment.
        length: usize,
    },
}

impl BlockTables {
    /// Empty tables of `slots` slots over `blocks` physical blocks.
    #[must_use]
    pub fn new(slots: u32, blocks: u32) -> Self {
        Self {
            tables: vec![Vec::new(); slots as usize],
            blocks,
            hash: 0,
        }
    }

    /// Apply frees, truncates, appends and replaces, in this order. Costs as much as the entries that change.
    ///
    /// # Errors
    /// [`BlockTableError`] when a slot, a block (of a copy too) or an entry does not exist, with nothing changed.
    pub fn apply(&mut self, deltas: &BlockDeltas) -> Result<(), BlockTableError> {
        self.check(deltas)?;
        for slot in &deltas.frees {
            self.truncate(*slot, 0);
        }
        for (slot, kept) in &deltas.truncates {
            self.truncate(*slot, *kept as usize);
        }
        for (slot, blocks) in &deltas.appends {
            // What is named was checked to be there, here and below.
            let Some(table) = self.tables.get_mut(*slot as usize) else {
                continue;
            };
            for block in blocks {
                self.hash = self.hash.wrapping_add(entry(*slot, table.len(), *block));
                table.push(*block);
            }
        }
        for (slot, index, block) in &deltas.replaces {
            let (slot, index) = (*slot, *index as usize);
            let table = self.tables.get_mut(slot as usize);
            let Some(place) = table.and_then(|table| table.get_mut(index)) else {
                continue;
            };
            let old = std::mem::replace(place, *block);
            let change = entry(slot, index, *block).wrapping_sub(entry(slot, index, old));
            self.hash = self.hash.wrapping_add(change);
        }
        Ok(())
    }

    fn truncate(&mut self, slot: u32, kept: usize) {
        let Some(table) = self.tables.get_mut(slot as usize) else {
            return;
        };
        for (index, block) in table.drain(kept.min(table.len())..).enumerate() {
            self.hash = self.hash.wrapping_sub(entry(slot, kept + index, block));
        }
    }

    fn check(&self, deltas: &BlockDeltas) -> Result<(), BlockTableError> {
        let appended = deltas.appends.iter().flat_map(|(_, blocks)| blocks);
        let copied = deltas.copies.iter().flat_map(|(from, to)| [from, to]);
        let replaced = deltas.replaces.iter().map(|(_, _, block)| block);
        let mut named = appended.chain(copied).chain(replaced);
        if let Some(block) = named.find(|block| **block >= self.blocks) {
            return Err(BlockTableError::Block {
                block: *block,
                blocks: self.blocks,
            });
        }
        // Lengths as they will be when each change is made.
        let mut lengths = BTreeMap::new();
        for slot in &deltas.frees {
            *self.length(&mut lengths, *slot)? = 0;
        }
        for (slot, kept) in &deltas.truncates {
            let length = self.length(&mut lengths, *slot)?;
            if *kept as usize > *length {
                let (slot, index, length) = (*slot, *kept - 1, *length);
                return Err(BlockTableError::Index { slot, index, length });
            }
            *length = *kept as usize;
        }
        for (slot, blocks) in &deltas.appends {
            *self.length(&mut lengths, *slot)? += blocks.len();
        }
        for (slot, index, _) in &deltas.replaces {
            let length = *self.length(&mut lengths, *slot)?;
            if *index as usize >= length {
                let (slot, index) = (*slot, *index);
                return Err(BlockTableError::Index { slot, index, length });
            }
        }
        Ok(())
    }

    fn length<'a>(
        &self,
        lengths: &'a mut BTreeMap<u32, usize>,
        slot: u32,
    ) -> Result<&'a mut usize, BlockTableError> {
        match self.tables.get(slot as usize) {
            Some(table) => Ok(lengths.entry(slot).or_insert(table.len())),
            None => Err(BlockTableError::Slot {
                slot,
                slots: self.tables.len(),
            }),
        }
    }

    /// Physical blocks of `slot` in the order of the positions they hold; empty for a slot that does not exist.
    #[must_use]
    pub fn table(&self, slot: u32) -> &[u32] {
        self.tables.get(slot as usize).map_or(&[], Vec::as_slice)
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        u32::try_from(self.tables.len()).unwrap_or(u32::MAX)
    }

    /// Number of physical blocks.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Hash of all tables for [`crate::step::Plan::state_hash`]: the sum, modulo 2⁶⁴, of a mixed number for each entry
    /// (slot, index, block), so that it changes with the entries that change (incremental hashing by a sum: Bellare and
    /// Micciancio 1997). Its value is part of the protocol between ranks.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// The part of one table entry in the hash.
fn entry(slot: u32, index: usize, block: u32) -> u64 {
    let place = u64::from(slot) << 32 | index as u64 & 0xffff_ffff;
    mix(mix(place.wrapping_add(GOLDEN)) ^ u64::from(block).wrapping_add(1).wrapping_mul(GOLDEN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn appends(appends: Vec<(u32, Vec<u32>)>) -> BlockDeltas {
        BlockDeltas {
            appends,
            ..BlockDeltas::default()
        }
    }

    fn filled() -> BlockTables {
        let mut tables = BlockTables::new(2, 8);
        tables
            .apply(&appends(vec![(0, vec![3, 1]), (1, vec![7])]))
            .unwrap();
        tables
    }

    #[test]
    fn changes_are_applied_in_the_order_of_the_fields() {
        let mut tables = filled();
        tables
            .apply(&BlockDeltas {
                frees: vec![1],
                truncates: vec![(0, 1)],
                appends: vec![(0, vec![5, 6]), (1, vec![2])],
                replaces: vec![(0, 2, 4), (1, 0, 0)],
                copies: vec![(7, 6)],
            })
            .unwrap();
        assert_eq!(tables.table(0), [3, 5, 4]);
        assert_eq!(tables.table(1), [0]);
        assert_eq!(tables.table(9), [0_u32; 0]);
    }

    #[test]
    fn what_does_not_exist_is_refused_and_changes_nothing() {
        let frees = |slots: &[u32]| BlockDeltas {
            frees: slots.to_vec(),
            ..BlockDeltas::default()
        };
        for deltas in [
            frees(&[0, 2]),
            BlockDeltas {
                appends: vec![(1, vec![8])],
                ..frees(&[0])
            },
            BlockDeltas {
                copies: vec![(0, 8)],
                ..frees(&[0])
            },
            BlockDeltas {
                truncates: vec![(0, 3)],
                ..frees(&[1])
            },
            BlockDeltas {
                truncates: vec![(1, 1)],
                ..frees(&[1])
            },
            BlockDeltas {
                replaces: vec![(0, 0, 1)],
                ..frees(&[0])
            },
            BlockDeltas {
                replaces: vec![(1, 0, 8)],
                ..frees(&[0])
            },
        ] {
            let (mut tables, before) = (filled(), filled());
            tables.apply(&deltas).unwrap_err();
            assert_eq!(tables, before, "{deltas:?}");
        }
    }

    #[test]
    fn the_hash_tells_slots_and_borders_apart() {
        let with = |changes: Vec<(u32, Vec<u32>)>| {
            let mut tables = BlockTables::new(4, 16);
            tables.apply(&appends(changes)).unwrap();
            tables.hash()
        };
        let hashes = [
            with(vec![]),
            with(vec![(0, vec![0])]),
            with(vec![(0, vec![1, 2])]),
            with(vec![(0, vec![2, 1])]),
            with(vec![(1, vec![1, 2])]),
            with(vec![(0, vec![1]), (1, vec![2])]),
        ];
        for (i, a) in hashes.iter().enumerate() {
            assert!(hashes[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(
            with(vec![(0, vec![1]), (0, vec![2])]),
            with(vec![(0, vec![1, 2])])
        );
    }

    fn any_deltas() -> impl Strategy<Value = BlockDeltas> {
        let list = |longest| prop::collection::vec(0_u32..9, 0..longest);
        (
            list(3),
            prop::collection::vec((0_u32..4, 0_u32..4), 0..3),
            prop::collection::vec((0_u32..4, list(5)), 0..4),
            prop::collection::vec((0_u32..4, 0_u32..6, 0_u32..9), 0..3),
        )
            .prop_map(|(frees, truncates, appends, replaces)| BlockDeltas {
                frees,
                truncates,
                appends,
                replaces,
                copies: Vec::new(),
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        #[test]
        fn the_hash_depends_on_the_tables_alone(changes in prop::collection::vec(any_deltas(), 0..20)) {
            let mut tables = BlockTables::new(4, 9);
            for deltas in changes {
                let before = tables.clone();
                if tables.apply(&deltas).is_err() {
                    prop_assert_eq!(&tables, &before);
                }
                let mut fresh = BlockTables::new(4, 9);
                fresh.apply(&appends((0..4).map(|slot| (slot, tables.table(slot).to_vec())).collect())).unwrap();
                prop_assert_eq!(&fresh, &tables);
            }
        }
    }
}
