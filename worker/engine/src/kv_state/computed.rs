//! How far each slot is known to be computed, so that a step looks at the blocks that it adds and not at all before them.

use crate::step::BlockDeltas;

/// For each slot, which blocks from its table's start are known to be full.
#[derive(Debug)]
pub(super) struct Computed {
    /// By slot, beginnings of the tables. What is not known is found by looking, once.
    known: Vec<Vec<u32>>,
    /// By physical block, how often it occurs in `known`.
    occurrences: Vec<u32>,
}

impl Computed {
    /// Nothing is known.
    pub(super) fn new(slots: u32, blocks: u32) -> Self {
        Self {
            known: vec![Vec::new(); slots as usize],
            occurrences: vec![0; blocks as usize],
        }
    }

    /// Whether all of `blocks`, the beginning of a slot's table before a row, are full. Asks about those that are not known.
    pub(super) fn reaches(&mut self, slot: u32, blocks: &[u32], is_full: impl Fn(u32) -> bool) -> bool {
        // The row writes to what comes after them.
        self.keep(slot, blocks.len());
        let Some(known) = self.known.get_mut(slot as usize) else {
            return false;
        };
        for block in blocks.iter().skip(known.len()) {
            if !is_full(*block) {
                return false;
            }
            known.push(*block);
            if let Some(times) = self.occurrences.get_mut(*block as usize) {
                *times += 1;
            }
        }
        true
    }

    /// Tables changed.
    pub(super) fn follow(&mut self, deltas: &BlockDeltas) {
        let frees = deltas.frees.iter().map(|slot| (*slot, 0));
        let truncates = deltas.truncates.iter().copied();
        let replaces = deltas.replaces.iter().map(|(slot, index, _)| (*slot, *index));
        for (slot, kept) in frees.chain(truncates).chain(replaces) {
            self.keep(slot, kept as usize);
        }
    }

    /// A block holds fewer positions than before. Whoever plans well does so to blocks that nobody needs any more.
    pub(super) fn shrink(&mut self, block: u32) {
        let times = self.occurrences.get(block as usize);
        if times.is_some_and(|times| *times > 0) {
            self.forget();
        }
    }

    /// Nothing is known any more.
    pub(super) fn forget(&mut self) {
        self.known.iter_mut().for_each(Vec::clear);
        self.occurrences.fill(0);
    }

    fn keep(&mut self, slot: u32, blocks: usize) {
        let Some(known) = self.known.get_mut(slot as usize) else {
            return;
        };
        for block in known.drain(blocks.min(known.len())..) {
            if let Some(times) = self.occurrences.get_mut(block as usize) {
                *times -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_block_is_looked_at_once() {
        let mut computed = Computed::new(1, 8);
        let looks = Cell::new(0);
        let mut reaches = |blocks: &[u32]| {
            looks.set(0);
            let reaches = computed.reaches(0, blocks, |block| {
                looks.set(looks.get() + 1);
                block != 7
            });
            (reaches, looks.get())
        };
        assert_eq!(reaches(&[4, 2, 6]), (true, 3));
        assert_eq!(reaches(&[4, 2, 6]), (true, 0));
        assert_eq!(reaches(&[4, 2, 6, 1, 7]), (false, 2));
        assert_eq!(reaches(&[4, 2]), (true, 0));
        assert_eq!(reaches(&[4, 2, 6]), (true, 1), "it was written to since");
    }
}
