//! In which order one rank adds up its part of a product.
//!
//! A product over `k` inputs is cut into leaves that belong to the model. Each leaf is one sequential chain; leaves join in
//! the model's fixed tree (see [`llamero_engine::leaf_tree`]). A rank computes the roots of the maximal complete subtrees it
//! owns, so that the total does not depend on how the leaves are spread over ranks.

use llamero_checkpoint::Runs;
use llamero_engine::leaf_tree::{Subtree, maximal_subtrees, split};

/// One step of a stack machine over partial sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Push the chain over `steps` pairs of inputs from pair `start`.
    Leaf {
        /// First pair, in the rank's own inputs.
        start: usize,
        /// Number of pairs.
        steps: usize,
    },
    /// Pop the right and the left sum and push left + right.
    Join,
}

/// What to compute for each root of a rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeafProgram {
    roots: Vec<Vec<Op>>,
    depth: usize,
}

impl LeafProgram {
    /// One chain over `k` inputs.
    pub(crate) fn chain(k: usize) -> Self {
        Self {
            roots: vec![vec![Op::Leaf {
                start: 0,
                steps: k.div_ceil(2),
            }]],
            depth: 1,
        }
    }

    /// The leaves `owned` of `leaves`, of `width` inputs each (an even number). The rank's own inputs are those of its
    /// leaves in ascending order, without gaps.
    pub(crate) fn tree(leaves: u32, owned: &Runs, width: usize) -> Self {
        let steps = width / 2;
        let mut roots = Vec::new();
        let mut depth = 1;
        for tree in maximal_subtrees(leaves, owned) {
            let mut ops = Vec::new();
            let first = owned.position(tree.start).unwrap_or(0);
            emit(&tree, tree.start - first, steps, &mut ops);
            let mut level = 0usize;
            for op in &ops {
                match op {
                    Op::Leaf { .. } => level += 1,
                    Op::Join => level -= 1,
                }
                depth = depth.max(level);
            }
            roots.push(ops);
        }
        Self { roots, depth }
    }

    /// Operations of each root, in ascending order of its leaves.
    pub(crate) fn roots(&self) -> &[Vec<Op>] {
        &self.roots
    }

    /// Largest number of sums on the stack.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// The same program with two leaves exchanged: for the test that shows that order is seen.
    #[cfg(test)]
    pub(crate) fn with_swapped_leaves(mut self, a: usize, b: usize) -> Self {
        let mut leaves: Vec<&mut Op> = self
            .roots
            .iter_mut()
            .flatten()
            .filter(|op| matches!(op, Op::Leaf { .. }))
            .collect();
        let (first, second) = (*leaves[a], *leaves[b]);
        *leaves[a] = second;
        *leaves[b] = first;
        self
    }
}

/// `first` is what a leaf's number is to be lowered by to get its place among the rank's own.
fn emit(tree: &Subtree, first: u32, steps: usize, ops: &mut Vec<Op>) {
    if tree.end - tree.start == 1 {
        ops.push(Op::Leaf {
            start: (tree.start - first) as usize * steps,
            steps,
        });
        return;
    }
    let middle = split(tree);
    emit(&(tree.start..middle), first, steps, ops);
    emit(&(middle..tree.end), first, steps, ops);
    ops.push(Op::Join);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_computes_the_roots_it_owns() {
        let program = LeafProgram::tree(9, &Runs::from(3..6), 4);
        // Of the tree over 0..9 a rank with 3..6 owns 3..4 and 4..6.
        let leaf = |start| Op::Leaf { start, steps: 2 };
        assert_eq!(program.roots(), [vec![leaf(0)], vec![leaf(2), leaf(4), Op::Join]]);
        assert_eq!(program.depth(), 2);
        assert_eq!(LeafProgram::tree(32, &Runs::from(0..32), 2).depth(), 6);
        assert!(LeafProgram::tree(32, &Runs::default(), 2).roots().is_empty());
        // With gaps: leaves 1, 4, 5 and 8 lie side by side in the rank's memory.
        let program = LeafProgram::tree(9, &Runs::new([1..2, 4..6, 8..9]), 4);
        assert_eq!(
            program.roots(),
            [vec![leaf(0)], vec![leaf(2), leaf(4), Op::Join], vec![leaf(6)]]
        );
    }
}
