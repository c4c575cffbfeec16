//! The block tables of one rank: which physical KV blocks hold the positions of each slot.
//!
//! The leader changes them by [`BlockDeltas`] and sends the hash of the outcome with every plan; every rank applies the
//! same deltas and compares the hash, so that a rank that diverged is found before it computes on wrong blocks.

use crate::step::BlockDeltas;

/// Block tables of all slots. Copies move data and leave the tables alone: the backend carries them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTables {
    tables: Vec<Vec<u32>>,
    blocks: u32,
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
}

impl BlockTables {
    /// Empty tables of `slots` slots over `blocks` physical blocks.
    #[must_use]
    pub fn new(slots: u32, blocks: u32) -> Self {
        Self {
            tables: vec![Vec::new(); slots as usize],
            blocks,
        }
    }

    /// Apply frees, then appends.
    ///
    /// # Errors
    /// [`BlockTableError`] when a slot or block (of a copy too) does not exist, with nothing changed.
    pub fn apply(&mut self, deltas: &BlockDeltas) -> Result<(), BlockTableError> {
        for slot in deltas
            .frees
            .iter()
            .chain(deltas.appends.iter().map(|(slot, _)| slot))
        {
            if *slot as usize >= self.tables.len() {
                return Err(BlockTableError::Slot {
                    slot: *slot,
                    slots: self.tables.len(),
                });
            }
        }
        let appended = deltas.appends.iter().flat_map(|(_, blocks)| blocks.iter());
        let copied = deltas.copies.iter().flat_map(|(from, to)| [from, to]);
        if let Some(block) = appended.chain(copied).find(|block| **block >= self.blocks) {
            return Err(BlockTableError::Block {
                block: *block,
                blocks: self.blocks,
            });
        }
        for slot in &deltas.frees {
            self.tables[*slot as usize].clear();
        }
        for (slot, blocks) in &deltas.appends {
            self.tables[*slot as usize].extend_from_slice(blocks);
        }
        Ok(())
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

    /// Hash of all tables for [`crate::step::Plan::state_hash`]: FNV-1a (64 bit) over slot, length and blocks of each
    /// table that is not empty, as little-endian u32. Its value is part of the protocol between ranks.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = Fnv1a::default();
        for (slot, table) in (0_u32..).zip(&self.tables).filter(|(_, table)| !table.is_empty()) {
            hash.write_u32(slot);
            hash.write_u32(u32::try_from(table.len()).unwrap_or(u32::MAX));
            for block in table {
                hash.write_u32(*block);
            }
        }
        hash.finish()
    }
}

/// FNV-1a, 64 bit (draft-eastlake-fnv §2): stable across builds, which the standard library's hasher is not.
#[derive(Debug, Clone)]
pub(crate) struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn write_u32(&mut self, value: u32) {
        self.write(&value.to_le_bytes());
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frees_come_before_appends() {
        let mut tables = BlockTables::new(2, 8);
        tables
            .apply(&BlockDeltas {
                appends: vec![(0, vec![3, 1]), (1, vec![7])],
                ..BlockDeltas::default()
            })
            .unwrap();
        tables
            .apply(&BlockDeltas {
                frees: vec![0],
                appends: vec![(0, vec![5])],
                copies: vec![(7, 6)],
            })
            .unwrap();
        assert_eq!(tables.table(0), [5]);
        assert_eq!(tables.table(1), [7]);
        assert_eq!(tables.table(9), [0_u32; 0]);
    }

    #[test]
    fn what_does_not_exist_is_refused_and_changes_nothing() {
        let mut tables = BlockTables::new(2, 8);
        tables
            .apply(&BlockDeltas {
                appends: vec![(0, vec![3])],
                ..BlockDeltas::default()
            })
            .unwrap();
        let before = tables.clone();
        for deltas in [
            BlockDeltas {
                frees: vec![0, 2],
                ..BlockDeltas::default()
            },
            BlockDeltas {
                frees: vec![0],
                appends: vec![(1, vec![8])],
                ..BlockDeltas::default()
            },
            BlockDeltas {
                frees: vec![0],
                copies: vec![(0, 8)],
                ..BlockDeltas::default()
            },
        ] {
            tables.apply(&deltas).unwrap_err();
            assert_eq!(tables, before);
        }
    }

    #[test]
    fn the_hash_tells_slots_and_borders_apart() {
        let with = |appends: Vec<(u32, Vec<u32>)>| {
            let mut tables = BlockTables::new(4, 16);
            tables
                .apply(&BlockDeltas {
                    appends,
                    ..BlockDeltas::default()
                })
                .unwrap();
            tables.hash()
        };
        let hashes = [
            with(vec![]),
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

    #[test]
    fn fnv_matches_the_published_vectors() {
        let of = |text: &str| {
            let mut hash = Fnv1a::default();
            hash.write(text.as_bytes());
            hash.finish()
        };
        assert_eq!(of(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(of("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(of("foobar"), 0x8594_4171_f739_67e8);
    }
}
