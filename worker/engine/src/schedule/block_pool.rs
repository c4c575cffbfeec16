//! The physical KV blocks: who uses them, and what those hold that nobody uses.

use std::collections::{BTreeMap, HashMap};

use super::prefix::PrefixHash;

/// Hands out block ids `0 .. total`.
///
/// A block has a number of users, since sequences share blocks of a common prefix; the last one gives it back. A block that
/// has a name keeps what it holds until it is needed for something else: it can be found by that name and taken again. Of
/// those that nobody uses, the one that was given back first goes first.
#[derive(Debug, Clone)]
pub struct BlockPool {
    /// Without users and without a name; taken from the end.
    free: Vec<u32>,
    /// Without users, by the time at which they were given back.
    idle: BTreeMap<u64, u32>,
    blocks: Vec<Block>,
    named: HashMap<PrefixHash, u32>,
    /// Counts what is given back.
    clock: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    users: u32,
    name: Option<PrefixHash>,
    /// Key in `idle` while it is there.
    idle_since: u64,
}

impl BlockPool {
    /// All of `total` blocks free; the lowest id is handed out first.
    #[must_use]
    pub fn new(total: u32) -> Self {
        Self {
            free: (0..total).rev().collect(),
            idle: BTreeMap::new(),
            blocks: vec![Block::default(); total as usize],
            named: HashMap::new(),
            clock: 0,
        }
    }

    /// Number of blocks in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        count(self.blocks.len())
    }

    /// Number of blocks that can be handed out: nobody uses them.
    #[must_use]
    pub fn available(&self) -> u32 {
        count(self.free.len() + self.idle.len())
    }

    /// Number of users of a block.
    #[must_use]
    pub fn users(&self, block: u32) -> u32 {
        self.blocks.get(block as usize).map_or(0, |block| block.users)
    }

    /// `count` blocks with one user each, or `None` (and nothing taken) when there are not as many. Takes those that hold
    /// nothing first.
    pub fn allocate(&mut self, count: u32) -> Option<Vec<u32>> {
        if count > self.available() {
            return None;
        }
        let rest = self.free.len().saturating_sub(count as usize);
        let mut taken = self.free.split_off(rest);
        taken.reverse();
        while taken.len() < count as usize {
            let (_, block) = self.idle.pop_first()?;
            self.forget(block);
            taken.push(block);
        }
        for block in &taken {
            if let Some(of) = self.blocks.get_mut(*block as usize) {
                of.users = 1;
            }
        }
        Some(taken)
    }

    /// `count` blocks with one user each, and one more user for each of `shared`, which are in use or have a name. `None`
    /// (and nothing taken) when there are not as many, or one of `shared` does not exist.
    pub fn allocate_behind(&mut self, shared: &[u32], count: u32) -> Option<Vec<u32>> {
        if shared.iter().any(|block| *block >= self.total()) {
            return None;
        }
        let idle = shared.iter().filter(|block| self.users(**block) == 0).count();
        if count > self.available().saturating_sub(self::count(idle)) {
            return None;
        }
        for block in shared {
            let Some(of) = self.blocks.get_mut(*block as usize) else {
                continue;
            };
            if of.users == 0 {
                self.idle.remove(&of.idle_since);
            }
            of.users += 1;
        }
        self.allocate(count)
    }

    /// One user less. A block that nobody uses stays as it is.
    pub fn release(&mut self, block: u32) {
        let Some(of) = self.blocks.get_mut(block as usize).filter(|of| of.users > 0) else {
            return;
        };
        of.users -= 1;
        if of.users > 0 {
            return;
        }
        if of.name.is_none() {
            self.free.push(block);
            return;
        }
        self.clock += 1;
        of.idle_since = self.clock;
        self.idle.insert(self.clock, block);
    }

    /// A block that is in use holds what `name` stands for, and will hold nothing else while it has users. When another
    /// block has that name already, this one stays without.
    pub fn name(&mut self, block: u32, name: PrefixHash) {
        let Some(of) = self.blocks.get_mut(block as usize) else {
            return;
        };
        if of.users == 0 || of.name.is_some() || self.named.contains_key(&name) {
            return;
        }
        of.name = Some(name);
        self.named.insert(name, block);
    }

    /// The block that holds what `name` stands for.
    #[must_use]
    pub fn find(&self, name: &PrefixHash) -> Option<u32> {
        self.named.get(name).copied()
    }

    /// All names are forgotten: what blocks hold is lost.
    pub fn forget_all(&mut self) {
        self.named.clear();
        for block in &mut self.blocks {
            block.name = None;
        }
        self.free.extend(std::mem::take(&mut self.idle).into_values());
    }

    fn forget(&mut self, block: u32) {
        let of = self.blocks.get_mut(block as usize);
        if let Some(name) = of.and_then(|of| of.name.take()) {
            self.named.remove(&name);
        }
    }

    /// Blocks with their names, for tests.
    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = (u32, PrefixHash)> {
        self.named.iter().map(|(name, block)| (*block, *name))
    }
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u32) -> PrefixHash {
        PrefixHash::of_group("", "", number)
    }

    #[test]
    fn takes_all_or_nothing() {
        let mut pool = BlockPool::new(3);
        assert_eq!(pool.allocate(2), Some(vec![0, 1]));
        assert_eq!(pool.allocate(2), None);
        assert_eq!(pool.available(), 1);
        assert_eq!(pool.allocate(0), Some(vec![]));
    }

    #[test]
    fn the_last_user_gives_back() {
        let mut pool = BlockPool::new(2);
        pool.allocate(1).unwrap();
        pool.name(0, name(7));
        assert_eq!(pool.allocate_behind(&[0], 1), Some(vec![1]));
        assert_eq!((pool.users(0), pool.available()), (2, 0));
        pool.release(0);
        pool.release(0);
        assert_eq!((pool.users(0), pool.available()), (0, 1));
        pool.release(0);
        pool.release(7);
        assert_eq!(pool.available(), 1, "nothing is given back twice");
        assert_eq!(
            pool.allocate_behind(&[0], 1),
            None,
            "the only one left is the shared one"
        );
        assert_eq!(pool.users(0), 0);
        assert_eq!(pool.allocate_behind(&[0, 7], 0), None, "there is no such block");
        assert_eq!(pool.users(0), 0);
        assert_eq!(pool.allocate_behind(&[0], 0), Some(vec![]));
    }

    #[test]
    fn what_was_given_back_first_goes_first() {
        let mut pool = BlockPool::new(4);
        let blocks = pool.allocate(4).unwrap();
        for block in &blocks[..3] {
            pool.name(*block, name(*block));
        }
        for block in [2, 3, 0, 1] {
            pool.release(block);
        }
        // Number 3 holds nothing; then the oldest. Number 2 is used again in between, which makes it the youngest.
        pool.allocate_behind(&[2], 0).unwrap();
        pool.release(2);
        assert_eq!(pool.allocate(3), Some(vec![3, 0, 1]));
        assert_eq!((pool.find(&name(0)), pool.find(&name(2))), (None, Some(2)));
    }

    #[test]
    fn a_name_stands_for_one_block() {
        let mut pool = BlockPool::new(2);
        pool.allocate(2).unwrap();
        pool.name(0, name(5));
        pool.name(1, name(5));
        pool.name(0, name(6));
        assert_eq!((pool.find(&name(5)), pool.find(&name(6))), (Some(0), None));
        pool.release(0);
        pool.forget_all();
        assert_eq!((pool.find(&name(5)), pool.available()), (None, 1));
        pool.release(1);
        assert_eq!(pool.allocate(2).map(|blocks| blocks.len()), Some(2));
    }
}
