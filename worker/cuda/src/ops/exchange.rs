//! Exchanges between the ranks of a tensor group: see `exchange.cu`.

use cudarc::driver::{CudaSlice, DevicePtr};
use llamero_engine::leaf_tree::{self, LeafLayout, Subtree, maximal_subtrees};

use super::launch::{Launch, Push as _};
use super::{ByValue, OpError, Ops, Parameters, at_least, shape, word};
use crate::source::Source;

/// Most ranks of a group, and most roots of a product over all of them: as in the kernels' texts.
pub(crate) const MOST_RANKS: usize = 16;
pub(super) const MOST_ROOTS: usize = 32;
/// Bytes of an area in front of its two slots.
pub(crate) const FLAGS: u64 = (MOST_RANKS * 128) as u64;
/// Words of the state, and of the control block.
pub(crate) const STATE_WORDS: usize = 3;
const FAILED: u64 = 2;
pub(crate) const CONTROL_WORDS: usize = 4;
/// Words of the control block: see `exchange.cu`.
pub(crate) const ABORT: usize = 0;
pub(crate) const LIMIT: usize = 1;
pub(crate) const ENDED: usize = 2;
pub(crate) const AWAITED: usize = 3;
/// What [`ENDED`] says when a wait has lasted too long.
pub(crate) const TOO_LATE: u32 = 2;
/// The kernels.
pub(super) const KERNELS: [&str; 6] = [
    "try_writes",
    "push_roots",
    "push_parts",
    "join_parts",
    "push_rows",
    "take_rows",
];
const THREADS: u32 = 256;
/// Words of the pattern by which writes are tried.
const TRIED: usize = 64;
/// Most blocks of an exchange: as many as fill a device a few times over.
const BLOCKS: usize = 512;

/// `struct Exchange` of `exchange.cu`: where areas, state and control block are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Areas {
    areas: [u64; MOST_RANKS],
    state: u64,
    control: u64,
    slot_bytes: u64,
    world: u32,
    index: u32,
}

// SAFETY: the same members in the same order; pointers are eight bytes.
unsafe impl Parameters for Areas {}

impl Areas {
    /// Of the rank with this index. `areas` are those of all ranks, each of [`area_bytes`] for slots of `slot_bytes`, zero
    /// where flags are; `state` on the device and `control` in memory of the host hold as many zeros as they have words.
    ///
    /// # Errors
    /// [`OpError::Shape`] for more ranks than the kernels know.
    pub(crate) fn new(
        areas: &[u64],
        index: usize,
        slot_bytes: u64,
        (state, control): (u64, u64),
    ) -> Result<Self, OpError> {
        if areas.len() > MOST_RANKS {
            return Err(OpError::Shape(format!(
                "{} ranks; at most {MOST_RANKS} exchange over memory of their GPUs",
                areas.len()
            )));
        }
        let mut all = [0; MOST_RANKS];
        all[..areas.len()].copy_from_slice(areas);
        Ok(Self {
            areas: all,
            state,
            control,
            slot_bytes,
            world: word("ranks", areas.len())?,
            index: word("ranks", index)?,
        })
    }

    /// Where the patterns of all ranks arrive, and how many words they have.
    pub(crate) fn tried(&self) -> (u64, usize) {
        (
            self.areas[self.index as usize] + FLAGS,
            self.world as usize * TRIED,
        )
    }

    /// Whether the pattern that the rank with this index writes for this one is among `words`.
    pub(crate) fn arrived(&self, from: usize, words: &[u32]) -> bool {
        let numbers = TRIED * (from + MOST_RANKS * self.index as usize)..;
        let wanted = numbers
            .take(TRIED)
            .map(|word| 0x9e37_79b9_u32.wrapping_mul(1 + word as u32));
        let found = words.iter().skip(from * TRIED).take(TRIED).copied();
        found.eq(wanted)
    }

    /// Where the exchanges so far are counted, and the first slot of this rank.
    pub(super) fn received(&self) -> (u64, u64) {
        (self.state, self.areas[self.index as usize] + FLAGS)
    }

    /// Where the state says whether an exchange has failed.
    pub(crate) fn failed(&self) -> u64 {
        self.state + 4 * FAILED
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    pub(super) fn fits(&self, what: &str, bytes: usize) -> Result<(), OpError> {
        if bytes as u64 <= self.slot_bytes {
            return Ok(());
        }
        Err(OpError::Shape(format!(
            "{what} take {bytes} bytes, and a slot has {}",
            self.slot_bytes
        )))
    }
}

/// Bytes of a rank's area whose slots have `slot_bytes`.
pub(crate) fn area_bytes(slot_bytes: u64) -> u64 {
    FLAGS + 2 * slot_bytes
}

/// Which roots of a sum a rank has, and how all of them join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SumOrder {
    /// The numbers of this rank's roots among all.
    pub(crate) places: Vec<u8>,
    /// Roots of all ranks.
    pub(crate) roots: usize,
    /// Pairs of roots, `to += from`.
    pub(crate) joins: Vec<u8>,
}

impl SumOrder {
    /// Of the rank with this index among the owners.
    ///
    /// # Errors
    /// [`OpError::Shape`] for owners who do not make up the tree, or more roots than the kernels know.
    pub(crate) fn new(layout: &LeafLayout, index: usize) -> Result<Self, OpError> {
        let wrong = || {
            OpError::Shape(format!(
                "{layout:?} has no sum of at most {MOST_ROOTS} roots for {index}"
            ))
        };
        let mut all: Vec<(Subtree, usize)> = Vec::new();
        for (owner, owned) in layout.owners.iter().enumerate() {
            let trees = maximal_subtrees(layout.leaves, owned);
            all.extend(trees.into_iter().map(|tree| (tree, owner)));
        }
        all.sort_unstable_by_key(|(tree, _)| tree.start);
        if all.len() > MOST_ROOTS {
            return Err(wrong());
        }
        let mut joins = Vec::new();
        let mut numbered = (0u8..)
            .zip(&all)
            .map(|(number, (tree, _))| (tree.clone(), number));
        let root = leaf_tree::join(&(0..layout.leaves), &mut numbered, &mut |to, from| {
            joins.extend([to, from]);
            to
        });
        if root != Some(0) || numbered.next().is_some() {
            return Err(wrong());
        }
        let mine = (0u8..).zip(&all).filter(|(_, (_, owner))| *owner == index);
        Ok(Self {
            places: mine.map(|(number, _)| number).collect(),
            roots: all.len(),
            joins,
        })
    }
}

/// A [`SumOrder`] on the device.
#[derive(Debug)]
pub(crate) struct Sum {
    pub(crate) places: CudaSlice<u8>,
    pub(crate) joins: CudaSlice<u8>,
    pub(crate) order: SumOrder,
}

/// Values of a rank's part of `n`: whole pieces of 16 bytes.
pub(crate) fn part(n: usize, world: usize) -> usize {
    n.div_ceil(4 * world) * 4
}

impl Ops {
    fn blocks(work: usize) -> u32 {
        work.div_ceil(THREADS as usize).clamp(1, BLOCKS) as u32
    }

    /// Write a pattern to every rank's area, its first slot, which nobody may use meanwhile.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn try_writes(&mut self, at: &Areas) -> Result<(), OpError> {
        at.fits("the patterns", 4 * at.tried().1)?;
        let kernel = self.kernel(Source::Exchange, "try_writes")?;
        let parameters = ByValue(*at);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters);
        // SAFETY: the argument is the kernel's, and every area has room for the patterns.
        unsafe { launch.launch(shape((at.world, 1, 1), TRIED as u32, 0)) }?;
        Ok(())
    }

    /// Give everybody `roots[root][n]`, one for each of the sum's places of this rank; they lie as `[root][n]` then.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn push_roots(
        &mut self,
        at: &Areas,
        sum: &Sum,
        roots: &CudaSlice<f32>,
        n: usize,
    ) -> Result<(), OpError> {
        let mine = sum.order.places.len();
        check_values(n)?;
        at_least("the roots", roots, mine * n)?;
        at.fits("the roots of all ranks", 4 * sum.order.roots * n)?;
        self.push(at, Some((&sum.places, roots)), (mine, n))
    }

    /// Give everybody this rank's part of something, `n` values from the start of `parts`; the parts of all ranks follow each
    /// other then. `place` is this rank's index.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn push_part(
        &mut self,
        at: &Areas,
        place: &CudaSlice<u8>,
        parts: &CudaSlice<f32>,
        n: usize,
    ) -> Result<(), OpError> {
        check_values(n)?;
        at_least("the part", parts, n)?;
        at_least("the place", place, 1)?;
        at.fits("the parts of all ranks", 4 * at.world as usize * n)?;
        self.push(at, Some((place, parts)), (1, n))
    }

    /// Wait until every rank has come here.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn meet(&mut self, at: &Areas) -> Result<(), OpError> {
        self.push(at, None, (0, 0))
    }

    fn push(
        &mut self,
        at: &Areas,
        what: Option<(&CudaSlice<u8>, &CudaSlice<f32>)>,
        (mine, n): (usize, usize),
    ) -> Result<(), OpError> {
        let kernel = self.kernel(Source::Exchange, "push_roots")?;
        let (roots, places) = what.map_or((0, 0), |(places, roots)| {
            (self.address(roots), self.address(places))
        });
        let (parameters, mine, blocks) = (ByValue(*at), word("roots", mine)?, Self::blocks(n / 4));
        let n = n as u64;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch
            .arg(&parameters)
            .arg(&roots)
            .arg(&places)
            .arg(&mine)
            .arg(&n);
        // SAFETY: the arguments are the kernel's; buffers and slots hold what their shapes need.
        unsafe { launch.launch(shape((blocks, 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// The same in two exchanges, each of which moves less: every rank gets its part of all roots, and gives everybody
    /// the sums, which lie as `[n]` then.
    ///
    /// # Errors
    /// [`OpError`].
    pub(crate) fn sum_by_parts(
        &mut self,
        at: &Areas,
        sum: &Sum,
        roots: &CudaSlice<f32>,
        n: usize,
    ) -> Result<(), OpError> {
        let mine = sum.order.places.len();
        let part = part(n, at.world as usize);
        check_values(n)?;
        at_least("the roots", roots, mine * n)?;
        at.fits("parts of roots", 4 * sum.order.roots * part)?;
        at.fits("the sums", 4 * n)?;
        let (parameters, mine) = (ByValue(*at), word("roots", mine)?);
        let (from, places) = (self.address(roots), self.address(&sum.places));
        let (values, of_one) = (n as u64, part as u64);
        let kernel = self.kernel(Source::Exchange, "push_parts")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters).arg(&from).arg(&places).arg(&mine);
        launch.arg(&values).arg(&of_one);
        // SAFETY: as above.
        unsafe { launch.launch(shape((Self::blocks(n / 4), 1, 1), THREADS, 0)) }?;
        let joins = self.address(&sum.joins);
        let join_count = word("joins", sum.order.joins.len() / 2)?;
        let all = word("roots", sum.order.roots)?;
        let kernel = self.kernel(Source::Exchange, "join_parts")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters).arg(&joins).arg(&join_count).arg(&all);
        launch.arg(&values).arg(&of_one);
        // SAFETY: as above.
        unsafe { launch.launch(shape((Self::blocks(part), 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// `hidden[row][width]`, in one exchange: every rank gives the rows of `table` (bf16, at this address, which may be in
    /// memory of the host that the device sees) whose number stands in `tokens`, and [`super::NOTHING`] stands there on all
    /// other ranks.
    ///
    /// # Errors
    /// [`OpError`]. The table's rows must be there and ids below their number, which the caller checks.
    pub(crate) fn embed_together(
        &mut self,
        at: &Areas,
        table: u64,
        tokens: &impl DevicePtr<u32>,
        rows: usize,
        hidden: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), OpError> {
        check_values(width / 2)?;
        at_least("the ids", tokens, rows)?;
        at_least("the hidden rows", hidden, rows * width)?;
        at.fits("rows of the embedding", 2 * rows * width)?;
        let (parameters, tokens) = (ByValue(*at), self.address(tokens));
        let (width, rows) = (word("width", width)?, word("rows", rows)?);
        let kernel = self.kernel(Source::Exchange, "push_rows")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters).arg(&table).arg(&tokens).arg(&width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, 0)) }?;
        let kernel = self.kernel(Source::Exchange, "take_rows")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters).arg(hidden).arg(&width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, 0)) }?;
        Ok(())
    }
}

/// Values are moved in pieces of 16 bytes.
fn check_values(n: usize) -> Result<(), OpError> {
    if n > 0 && n.is_multiple_of(4) {
        return Ok(());
    }
    Err(OpError::Shape(format!(
        "{n} values; a multiple of four can be exchanged"
    )))
}

#[cfg(test)]
mod tests {
    use llamero_checkpoint::Runs;

    use super::*;

    fn order(leaves: u32, cuts: &[u32], index: usize) -> SumOrder {
        let starts = [&[0], cuts].concat();
        let ends = [cuts, &[leaves]].concat();
        let owners = starts
            .into_iter()
            .zip(ends)
            .map(|(from, to)| Runs::from(from..to));
        let layout = LeafLayout {
            leaves,
            owners: owners.collect(),
        };
        SumOrder::new(&layout, index).unwrap()
    }

    #[test]
    fn roots_join_as_leaves_do() {
        let alone = order(32, &[], 0);
        assert_eq!((alone.places, alone.roots, alone.joins), (vec![0], 1, vec![]));
        let second = order(9, &[5], 1);
        // 0..4, 4, 5, 6..8, 8: of which the second rank has the last three.
        assert_eq!((second.places, second.roots), (vec![2, 3, 4], 5));
        assert_eq!(second.joins, [1, 2, 1, 3, 0, 1, 0, 4]);
        // Every split gives the sum of the whole tree, named leaf by leaf.
        let named = |leaves: u32, cuts: &[u32]| {
            let mut roots = Vec::new();
            let all: Vec<SumOrder> = (0..=cuts.len()).map(|index| order(leaves, cuts, index)).collect();
            let owned = [&[0], cuts, &[leaves]].concat();
            for (index, order) in all.iter().enumerate() {
                let trees = maximal_subtrees(leaves, &Runs::from(owned[index]..owned[index + 1]));
                roots.extend(
                    order
                        .places
                        .iter()
                        .zip(trees)
                        .map(|(place, tree)| (*place, name(&tree))),
                );
            }
            roots.sort_unstable();
            let mut values: Vec<String> = roots.into_iter().map(|(_, name)| name).collect();
            for pair in all[0].joins.as_chunks::<2>().0 {
                let from = values[usize::from(pair[1])].clone();
                let to = &mut values[usize::from(pair[0])];
                *to = format!("({to} {from})");
            }
            values[0].clone()
        };
        for (leaves, cuts) in [
            (32, &[11, 22][..]),
            (24, &[5, 9, 16, 20]),
            (9, &[1, 2, 3, 4, 5, 6, 7, 8]),
        ] {
            assert_eq!(named(leaves, cuts), named(leaves, &[]), "{leaves} {cuts:?}");
        }
    }

    fn name(tree: &Subtree) -> String {
        let mut leaves = (tree.start..tree.end).map(|leaf| (leaf..leaf + 1, leaf.to_string()));
        leaf_tree::join(tree, &mut leaves, &mut |a, b| format!("({a} {b})")).unwrap()
    }

    #[test]
    fn owners_who_miss_a_leaf_have_no_sum() {
        let layout = LeafLayout {
            leaves: 4,
            owners: vec![Runs::from(0..2), Runs::from(3..4)],
        };
        assert!(SumOrder::new(&layout, 0).is_err());
        assert!(check_values(6).is_err() && check_values(0).is_err() && check_values(8).is_ok());
        assert_eq!([part(1024, 3), part(4, 3), part(4096, 2)], [344, 4, 2048]);
    }
}
