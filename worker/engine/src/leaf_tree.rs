//! The fixed binary tree in which the leaves of a reduction are joined.
//!
//! The tree over leaves `a .. b` splits after the largest power of two smaller than `b - a` leaves, as the Merkle tree
//! of RFC 6962 §2.1 does. A rank joins the maximal complete subtrees inside the set of leaves that it owns and sends only
//! their roots; everybody joins the roots in the same order, so the sum has the same bits for every split.

use std::ops::Range;

use llamero_checkpoint::Runs;

/// Where the leaves of a reduction live: `owners[r]` are the leaves of rank `r`; together they cover `0 .. leaves`, each
/// once. Leaves belong to the model, so the sum does not depend on who owns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafLayout {
    /// How many leaves there are.
    pub leaves: u32,
    /// Leaves of each rank.
    pub owners: Vec<Runs>,
}

/// A subtree as the range of leaves below it.
pub type Subtree = Range<u32>;

/// Where the tree over `node` splits: the first leaf of the right half. `node` must have at least two leaves.
#[must_use]
pub fn split(node: &Subtree) -> u32 {
    let leaves = node.end - node.start;
    let half = 1 << (u32::BITS - 1 - (leaves - 1).leading_zeros());
    node.start + half
}

/// The maximal subtrees of the tree over `0 .. leaves` whose leaves are all in `owned`, in ascending order.
#[must_use]
pub fn maximal_subtrees(leaves: u32, owned: &Runs) -> Vec<Subtree> {
    let mut found = Vec::new();
    if leaves > 0 {
        collect(&(0..leaves), owned, &mut found);
    }
    found
}

fn collect(node: &Subtree, owned: &Runs, found: &mut Vec<Subtree>) {
    let mut runs = owned
        .as_slice()
        .iter()
        .filter(|run| run.start < node.end && node.start < run.end);
    let Some(first) = runs.next() else { return };
    // Runs do not touch each other, so a node inside the set is inside one of them.
    if first.start <= node.start && node.end <= first.end {
        found.push(node.clone());
    } else {
        let middle = split(node);
        collect(&(node.start..middle), owned, found);
        collect(&(middle..node.end), owned, found);
    }
}

/// Join `values` (one per subtree of `parts`, in ascending order, together covering `node`) into the value of `node`.
/// `join(left, right)` is called in the tree's order; `node` must be a node of the tree.
pub fn join<T>(
    node: &Subtree,
    parts: &mut impl Iterator<Item = (Subtree, T)>,
    join_two: &mut impl FnMut(T, T) -> T,
) -> Option<T> {
    fn go<T, I: Iterator<Item = (Subtree, T)>>(
        node: &Subtree,
        parts: &mut std::iter::Peekable<&mut I>,
        join_two: &mut impl FnMut(T, T) -> T,
    ) -> Option<T> {
        if parts.peek()?.0 == *node {
            return parts.next().map(|(_, value)| value);
        }
        if node.end - node.start < 2 {
            return None;
        }
        let middle = split(node);
        let left = go(&(node.start..middle), parts, join_two)?;
        let right = go(&(middle..node.end), parts, join_two)?;
        Some(join_two(left, right))
    }
    go(node, &mut parts.peekable(), join_two)
}

/// Whether `node` has a power of two of leaves and starts at a multiple of it. Such a subtree is a node of the tree over
/// any number of leaves that reaches past it.
#[inline]
#[must_use]
pub fn is_complete(node: &Subtree) -> bool {
    let leaves = node.end.saturating_sub(node.start);
    leaves.is_power_of_two() && node.start.is_multiple_of(leaves)
}

/// Add a complete subtree to `roots`, the maximal complete subtrees of what was added before, all left of it. Siblings are
/// joined at once, so `roots` stays short: how many leaves there are in all need not be known.
#[inline]
pub fn append<T>(
    roots: &mut Vec<(Subtree, T)>,
    (mut node, mut value): (Subtree, T),
    mut join_two: impl FnMut(T, T) -> T,
) {
    let is_sibling = |left: &Subtree, node: &Subtree| {
        let leaves = node.end - node.start;
        left.end == node.start && node.start - left.start == leaves && left.start & leaves == 0
    };
    while let Some((left, left_value)) = roots.pop_if(|(left, _)| is_sibling(left, &node)) {
        node.start = left.start;
        value = join_two(left_value, value);
    }
    roots.push((node, value));
}

/// The value of the whole tree from those of the maximal complete subtrees that [`append`] left, which cover `0 .. leaves`. None
/// without any.
pub fn crown<T>(
    values: impl DoubleEndedIterator<Item = T>,
    mut join_two: impl FnMut(T, T) -> T,
) -> Option<T> {
    // Each is larger than all right of it together, so the tree splits after it.
    values.rev().reduce(|right, left| join_two(left, right))
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "sets of leaves are written as lists of ranges"
)]
mod tests {
    use super::*;

    #[test]
    fn splits_after_the_largest_smaller_power_of_two() {
        assert_eq!(split(&(0..2)), 1);
        assert_eq!(split(&(0..9)), 8);
        assert_eq!(split(&(0..24)), 16);
        assert_eq!(split(&(16..24)), 20);
        assert_eq!(split(&(0..32)), 16);
    }

    fn owned(runs: &[Range<u32>]) -> Runs {
        Runs::new(runs.iter().cloned())
    }

    #[test]
    fn a_rank_owns_maximal_subtrees() {
        let trees = |leaves, runs: &[Range<u32>]| maximal_subtrees(leaves, &owned(runs));
        assert_eq!(trees(9, &[0..9]), vec![0..9]);
        assert_eq!(trees(9, &[0..5]), vec![0..4, 4..5]);
        assert_eq!(trees(9, &[5..9]), vec![5..6, 6..8, 8..9]);
        assert_eq!(trees(9, &[0..2, 3..4, 8..9]), vec![0..2, 3..4, 8..9]);
        assert_eq!(trees(24, &[]), Vec::<Subtree>::new());
    }

    #[test]
    fn any_split_gives_the_same_bits() {
        let leaves: Vec<f32> = (0..24)
            .map(|i| 1.1_f32.powi(i) * if i % 3 == 0 { -1e6 } else { 1.0 })
            .collect();
        let whole = sum(&leaves, &[owned(&[0..24])]);
        for cut in 1..24 {
            let two = [owned(&[0..cut]), owned(&[cut..24])];
            assert_eq!(sum(&leaves, &two).to_bits(), whole.to_bits(), "cut at {cut}");
            let ends = [owned(&[0..cut / 2, cut..24]), owned(&[cut / 2..cut])];
            assert_eq!(sum(&leaves, &ends).to_bits(), whole.to_bits(), "ends at {cut}");
        }
    }

    #[test]
    fn appending_gives_the_same_tree_without_its_size() {
        let named = |a: String, b: String| format!("({a} {b})");
        let leaf = |i: u32| (i..i + 1, i.to_string());
        for leaves in 1..70 {
            let expected = join(&(0..leaves), &mut (0..leaves).map(leaf), &mut |a, b| named(a, b));
            for every in 1..6 {
                // Leaves go round `every` ranks in runs of 3.
                let owned = |rank| Runs::new((0..leaves).filter(|i| i / 3 % every == rank).map(|i| i..i + 1));
                let mut all = Vec::new();
                for rank in 0..every {
                    let mut roots = Vec::new();
                    owned(rank)
                        .iter()
                        .for_each(|i| append(&mut roots, leaf(i), named));
                    assert!(roots.iter().all(|(tree, _)| is_complete(tree)));
                    all.extend(roots);
                }
                all.sort_unstable_by_key(|(tree, _)| tree.start);
                let mut roots = Vec::new();
                all.into_iter().for_each(|root| append(&mut roots, root, named));
                let values = roots.into_iter().map(|(_, value)| value);
                assert_eq!(crown(values, named), expected, "{leaves} leaves, {every} ranks");
            }
        }
        assert_eq!(crown(std::iter::empty(), named), None);
        assert!(
            !is_complete(&(4..4)) && !is_complete(&(2..6)) && !is_complete(&(4..7)) && is_complete(&(4..8))
        );
    }

    #[test]
    fn the_order_is_the_trees_and_not_the_chains() {
        // (2^24 + 1) + (1 + -2^24) in f32: 2^24 + 1 rounds to 2^24, 1 - 2^24 is exact.
        let leaves = [16_777_216.0, 1.0, 1.0, -16_777_216.0];
        assert_eq!(sum(&leaves, &[owned(&[0..4])]), 1.0);
        assert_eq!(leaves.iter().sum::<f32>(), 0.0);
    }

    fn sum(leaves: &[f32], ranks: &[Runs]) -> f32 {
        let all = 0..u32::try_from(leaves.len()).unwrap();
        let value = |tree: &Subtree| {
            let mut each = (tree.start..tree.end).map(|i| (i..i + 1, leaves[i as usize]));
            join(tree, &mut each, &mut |a, b| a + b).unwrap()
        };
        let mut trees: Vec<Subtree> = ranks
            .iter()
            .flat_map(|owned| maximal_subtrees(all.end, owned))
            .collect();
        trees.sort_unstable_by_key(|tree| tree.start);
        let mut roots = trees.into_iter().map(|tree| (tree.clone(), value(&tree)));
        join(&all, &mut roots, &mut |a, b| a + b).unwrap()
    }
}
