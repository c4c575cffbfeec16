//! The orders of summation of one rank's products.

use llamero_checkpoint::Runs;
use llamero_engine::LeafLayout;

use crate::collective::Reduction;
use crate::leaves::LeafProgram;
use crate::shape::Shape;

/// A product that is split by inputs over all ranks.
#[derive(Debug, Clone)]
pub(crate) struct SplitSum {
    /// The order of summation on this rank.
    pub(crate) leaves: LeafProgram,
    /// Who owns which subtrees.
    pub(crate) reduction: Reduction,
}

/// One order for each kind of product.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Products over the whole hidden width.
    pub(crate) hidden: LeafProgram,
    pub(crate) attention: SplitSum,
    pub(crate) ffn: SplitSum,
}

impl Programs {
    pub(crate) fn new(shape: &Shape) -> Self {
        let nothing = Runs::default();
        let split = |layout: &LeafLayout, width| {
            let owned = layout.owners.get(shape.index).unwrap_or(&nothing);
            SplitSum {
                leaves: LeafProgram::tree(layout.leaves, owned, width),
                reduction: Reduction::new(layout),
            }
        };
        Self {
            hidden: LeafProgram::chain(shape.hidden),
            attention: split(&shape.attention_leaves, shape.head_dim),
            ffn: split(&shape.ffn_leaves, shape.ffn_leaf),
        }
    }
}
