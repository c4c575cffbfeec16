//! The free list of physical KV blocks.

/// Hands out block ids `0 .. total`. A block has a reference count, so that a shared prefix is freed by its last user.
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    free: Vec<u32>,
    references: Vec<u32>,
}

impl BlockAllocator {
    /// All of `total` blocks free; the lowest id is handed out first.
    #[must_use]
    pub fn new(total: u32) -> Self {
        Self {
            free: (0..total).rev().collect(),
            references: vec![0; total as usize],
        }
    }

    /// Number of blocks in all.
    #[must_use]
    pub fn total(&self) -> u32 {
        u32::try_from(self.references.len()).unwrap_or(u32::MAX)
    }

    /// Number of free blocks.
    #[must_use]
    pub fn free(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(u32::MAX)
    }

    /// `count` blocks with one reference each, or `None` (and nothing taken) when there are not as many.
    pub fn allocate(&mut self, count: u32) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(count as usize)?;
        let mut taken = self.free.split_off(rest);
        taken.reverse();
        for block in &taken {
            self.references[*block as usize] = 1;
        }
        Some(taken)
    }

    /// One more user of a block that is in use. False when it is not in use.
    pub fn retain(&mut self, block: u32) -> bool {
        match self.references.get_mut(block as usize) {
            Some(count) if *count > 0 => {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    /// One user less; the last one frees the block. A block that is not in use stays as it is.
    pub fn release(&mut self, block: u32) {
        if let Some(count @ 1..) = self.references.get_mut(block as usize) {
            *count -= 1;
            if *count == 0 {
                self.free.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_all_or_nothing() {
        let mut blocks = BlockAllocator::new(3);
        assert_eq!(blocks.allocate(2), Some(vec![0, 1]));
        assert_eq!(blocks.allocate(2), None);
        assert_eq!(blocks.free(), 1);
        assert_eq!(blocks.allocate(0), Some(vec![]));
    }

    #[test]
    fn the_last_user_frees() {
        let mut blocks = BlockAllocator::new(1);
        blocks.allocate(1).unwrap();
        assert!(blocks.retain(0));
        blocks.release(0);
        assert_eq!(blocks.free(), 0);
        blocks.release(0);
        assert_eq!(blocks.free(), 1);
        blocks.release(0);
        blocks.release(7);
        assert_eq!(blocks.free(), 1, "a free block cannot be freed twice");
        assert!(!blocks.retain(0));
    }
}
