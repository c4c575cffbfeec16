//! Adding up the roots of all ranks, element by element, in the order of the leaf tree.

use llamero_engine::leaf_tree::{self, Subtree};

/// Elements that are joined at a time, so that all roots of a piece stay in the first-level cache.
const PIECE: usize = 1024;

enum Partial<'a> {
    Root(&'a [f32]),
    Sum(Vec<f32>),
}

/// Join each element of `roots`, which are in ascending order of their leaves. False when they do not make up the tree, or have not as
/// many values as `out`.
pub(super) fn join(
    leaves: u32,
    roots: &[(Subtree, &[f32])],
    out: &mut [f32],
    spare: &mut Vec<Vec<f32>>,
) -> bool {
    if roots.iter().any(|(_, values)| values.len() != out.len()) {
        return false;
    }
    for (index, out) in out.chunks_mut(PIECE).enumerate() {
        let from = index * PIECE;
        let mut pieces = roots.iter().map(|(tree, values)| {
            let piece = values.get(from..from + out.len()).unwrap_or_default();
            (tree.clone(), Partial::Root(piece))
        });
        match leaf_tree::join(&(0..leaves), &mut pieces, &mut |left, right| {
            add(left, right, spare)
        }) {
            Some(Partial::Root(values)) => out.copy_from_slice(values),
            Some(Partial::Sum(values)) => {
                out.copy_from_slice(&values);
                spare.push(values);
            }
            None => return false,
        }
    }
    true
}

fn add<'a>(left: Partial<'a>, right: Partial<'a>, spare: &mut Vec<Vec<f32>>) -> Partial<'a> {
    let mut sum = match left {
        Partial::Sum(sum) => sum,
        Partial::Root(values) => {
            let mut sum = spare.pop().unwrap_or_default();
            sum.clear();
            sum.extend_from_slice(values);
            sum
        }
    };
    let values = match &right {
        Partial::Root(values) => values,
        Partial::Sum(values) => values.as_slice(),
    };
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    if let Partial::Sum(values) = right {
        spare.push(values);
    }
    Partial::Sum(sum)
}
