//! Products with weights.

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaSlice, DevicePtr};
use llamero_checkpoint::Runs;
use llamero_engine::leaf_tree::{Subtree, maximal_subtrees, split};

use super::launch::{Launch, Push as _};
use super::{ByValue, OpError, Ops, Parameters, at_least, shape, word};
use crate::source::Source;

/// Most rows of `x` in one launch.
pub const MAX_ROWS: usize = 64;
/// Output rows of a block, threads of a block, and bytes of copies under way for each thread: as in `product.cu`.
const BLOCK_ROWS: usize = 16;
const THREADS: u32 = 256;
const RING_BYTES: u32 = 4 * 2 * 16;
/// Columns of the smallest tile.
const SMALLEST_TILE: usize = 8;
/// Leaf slots are bytes in a program.
const MAX_LEAVES: usize = 256;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// OCP FP8 E4M3.
    E4m3,
    /// bf16.
    Bf16,
}

impl Element {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::E4m3 => 1,
            Self::Bf16 => 2,
        }
    }
}

/// How the inputs of a product are cut, and how the sums of a rank's leaves join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaves {
    /// Leaves that this rank has.
    pub count: usize,
    /// Inputs of a leaf.
    pub width: usize,
    /// Pairs of leaves, numbered from the rank's first: the sum of the second is added to that of the first.
    pub joins: Vec<(u8, u8)>,
    /// Where the roots are after all joins.
    pub roots: Vec<u8>,
}

/// Where a leaf of the model is among the rank's.
fn slot(owned: &Runs, leaf: u32) -> Option<u8> {
    owned
        .position(leaf)
        .and_then(|position| u8::try_from(position).ok())
}

impl Leaves {
    /// Those of `owned` out of `total` leaves, joined as far as the model's tree allows without the others.
    ///
    /// # Errors
    /// [`OpError::Shape`] for more leaves than a program can name, or none.
    pub fn tree(total: u32, owned: impl Into<Runs>, width: usize) -> Result<Self, OpError> {
        let owned = owned.into();
        let count = owned.len() as usize;
        if count == 0 || count > MAX_LEAVES || !Runs::from(0..total).contains_all(&owned) {
            return Err(OpError::Shape(format!(
                "{owned:?} of {total} leaves; 1 to {MAX_LEAVES} can be had"
            )));
        }
        let mut leaves = Self {
            count,
            width,
            joins: Vec::new(),
            roots: Vec::new(),
        };
        for subtree in maximal_subtrees(total, &owned) {
            leaves.roots.extend(slot(&owned, subtree.start));
            leaves.join(&subtree, &owned);
        }
        Ok(leaves)
    }

    fn join(&mut self, node: &Subtree, owned: &Runs) {
        if node.len() < 2 {
            return;
        }
        let middle = split(node);
        self.join(&(node.start..middle), owned);
        self.join(&(middle..node.end), owned);
        self.joins
            .extend(slot(owned, node.start).zip(slot(owned, middle)));
    }

    /// Inputs of a leaf with the zeros behind it.
    #[must_use]
    pub fn padded(&self) -> usize {
        self.width.next_multiple_of(64)
    }

    /// Elements of a row of weights or inputs.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.count * self.padded()
    }

    /// The program in the form the kernel reads.
    ///
    /// # Errors
    /// [`OpError::Shape`] where it names leaves that are not there, or too many.
    pub fn program(&self) -> Result<Vec<u8>, OpError> {
        let there = |slot: &u8| usize::from(*slot) < self.count;
        let slots: Vec<u8> = self
            .joins
            .iter()
            .flat_map(|(to, from)| [*to, *from])
            .chain(self.roots.clone())
            .collect();
        if self.count == 0 || self.count > MAX_LEAVES || self.roots.is_empty() || !slots.iter().all(there) {
            return Err(OpError::Shape(format!(
                "{} leaves cannot be joined so: {slots:?}",
                self.count
            )));
        }
        if let Some((leaf, _)) = self.joins.iter().find(|(to, from)| to == from) {
            return Err(OpError::Shape(format!("leaf {leaf} is joined with itself")));
        }
        Ok(slots)
    }
}

/// A weight matrix on the device.
#[derive(Debug)]
pub struct Weights {
    /// `[outputs][leaves.stride()]`, leaf by leaf, zeros behind each.
    pub values: CudaSlice<u8>,
    /// How they are stored.
    pub element: Element,
    /// One scale for each output, applied at the root; none: 1.
    pub scales: Option<CudaSlice<f32>>,
    /// Rows.
    pub outputs: usize,
    /// Columns and their order of summation.
    pub leaves: Leaves,
    /// [`Leaves::program`].
    pub program: Arc<CudaSlice<u8>>,
}

/// `struct Product` of `product.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Product {
    weights: u64,
    scales: u64,
    x: u64,
    y: u64,
    program: u64,
    n: u32,
    m: u32,
    leaves: u32,
    padded: u32,
    joins: u32,
    roots: u32,
}

// SAFETY: the same members in the same order; pointers are eight bytes.
unsafe impl Parameters for Product {}

/// The kernels.
pub(super) const VARIANTS: [&str; 8] = [
    "product_fp8_8",
    "product_fp8_16",
    "product_fp8_32",
    "product_fp8_64",
    "product_bf16_8",
    "product_bf16_16",
    "product_bf16_32",
    "product_bf16_64",
];

/// The kernel for so many columns of a tile, and how many it computes.
fn variant(element: Element, columns: usize) -> Result<(&'static str, u32), OpError> {
    Ok(match (element, columns) {
        (Element::E4m3, 1..=8) => ("product_fp8_8", 8),
        (Element::E4m3, 9..=16) => ("product_fp8_16", 16),
        (Element::E4m3, 17..=32) => ("product_fp8_32", 32),
        (Element::E4m3, 33..=64) => ("product_fp8_64", 64),
        (Element::Bf16, 1..=8) => ("product_bf16_8", 8),
        (Element::Bf16, 9..=16) => ("product_bf16_16", 16),
        (Element::Bf16, 17..=32) => ("product_bf16_32", 32),
        (Element::Bf16, 33..=64) => ("product_bf16_64", 64),
        _ => {
            return Err(OpError::Shape(format!(
                "{columns} rows; a product takes 1 to {MAX_ROWS}"
            )));
        }
    })
}

/// Bytes of shared memory of a block: copies of its threads under way, and a slot for each leaf.
fn shared_bytes(leaves: usize, columns: u32) -> Result<u32, OpError> {
    let slots = word("leaves", leaves * BLOCK_ROWS * 4)? * columns;
    Ok(THREADS * RING_BYTES + slots)
}

/// The kernel for `rows` rows where a block may have `most` bytes of shared memory, the columns of its tiles, and what it takes. The largest
/// tile that fits: each tile reads the weights.
fn tile(
    element: Element,
    (rows, leaves): (usize, usize),
    most: u32,
) -> Result<(&'static str, u32, u32), OpError> {
    let mut columns = rows;
    loop {
        let (name, width) = variant(element, columns)?;
        let shared = shared_bytes(leaves, width)?;
        if shared <= most {
            return Ok((name, width, shared));
        }
        columns = (width / 2) as usize;
        if columns < SMALLEST_TILE {
            return Err(OpError::Shape(format!(
                "{leaves} leaves take {shared} bytes of shared memory, and a block of this GPU has {most}"
            )));
        }
    }
}

impl Ops {
    /// `y[root][row][output]` of `rows` rows of `x[row][leaves.stride()]`, bf16.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn product(
        &mut self,
        weights: &Weights,
        x: &impl DevicePtr<u16>,
        rows: usize,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), OpError> {
        self.multiply(weights, weights.scales.as_ref(), x, rows, y)
    }

    /// The same without the scales: those of roots that are to be joined with others come after that.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn unscaled_product(
        &mut self,
        weights: &Weights,
        x: &impl DevicePtr<u16>,
        rows: usize,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), OpError> {
        self.multiply(weights, None, x, rows, y)
    }

    fn multiply(
        &mut self,
        weights: &Weights,
        scales: Option<&CudaSlice<f32>>,
        x: &impl DevicePtr<u16>,
        rows: usize,
        y: &mut CudaSlice<f32>,
    ) -> Result<(), OpError> {
        let leaves = &weights.leaves;
        let (name, columns, shared) =
            tile(weights.element, (rows, leaves.count), self.device().shared_memory)?;
        let (stride, roots) = (leaves.stride(), leaves.roots.len());
        at_least(
            "the weights",
            &weights.values,
            weights.outputs * stride * weights.element.bytes(),
        )?;
        at_least("the inputs", x, rows * stride)?;
        at_least("the outputs", y, roots * rows * weights.outputs)?;
        at_least("the program", &*weights.program, 2 * leaves.joins.len() + roots)?;
        if let Some(scales) = scales {
            at_least("the scales", scales, weights.outputs)?;
        }
        let parameters = ByValue(Product {
            weights: self.address(&weights.values),
            scales: scales.map_or(0, |scales| self.address(scales)),
            x: self.address(x),
            y: self.address(y),
            program: self.address(&*weights.program),
            n: word("outputs", weights.outputs)?,
            m: word("rows", rows)?,
            leaves: word("leaves", leaves.count)?,
            padded: word("a leaf's width", leaves.padded())?,
            joins: word("joins", leaves.joins.len())?,
            roots: word("roots", roots)?,
        });
        let kernel = self.kernel(Source::Product, name)?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.function.set_attribute(attribute, shared.cast_signed())?;
        let blocks = word("outputs", weights.outputs.div_ceil(BLOCK_ROWS))?;
        let tiles = word("rows", rows)?.div_ceil(columns);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters);
        // SAFETY: the kernel takes this struct, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((blocks, tiles, 1), THREADS, shared)) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_name_leaves_that_are_there() {
        let leaves = |joins: &[(u8, u8)], roots: &[u8]| Leaves {
            count: 4,
            width: 72,
            joins: joins.to_vec(),
            roots: roots.to_vec(),
        };
        assert_eq!(
            leaves(&[(0, 1), (2, 3), (0, 2)], &[0]).program().unwrap(),
            [0, 1, 2, 3, 0, 2, 0]
        );
        assert!(leaves(&[(0, 4)], &[0]).program().is_err());
        assert!(leaves(&[(0, 0)], &[0]).program().is_err());
        assert!(leaves(&[], &[]).program().is_err());
        assert_eq!(leaves(&[], &[0]).stride(), 512);
    }

    /// The most that a block may ask for: H100, A100, L4 (CUDA C++ Programming Guide, "Compute Capabilities").
    #[test]
    fn tiles_fit_the_shared_memory_of_every_gpu() {
        let (h100, a100, l4) = (232_448, 166_912, 101_376);
        let of = |rows, leaves, most| tile(Element::E4m3, (rows, leaves), most).unwrap();
        for rows in 1..=MAX_ROWS {
            for leaves in [1, 8, 32] {
                for most in [h100, a100, l4] {
                    let (_, columns, shared) = of(rows, leaves, most);
                    assert!(shared <= most && columns <= 64);
                }
                assert!(of(rows, leaves, h100).1 as usize >= rows, "one tile on an H100");
            }
        }
        assert_eq!(of(64, 32, l4).0, "product_fp8_32");
        let error = tile(Element::E4m3, (1, 32), (48 << 10) - 1).unwrap_err();
        assert!(error.to_string().contains("32 leaves"), "{error}");
    }

    #[test]
    fn a_rank_joins_the_subtrees_it_owns() {
        let leaves = Leaves::tree(9, 3..7, 64).unwrap();
        assert_eq!(leaves.roots, [0, 1, 3]);
        assert_eq!(leaves.joins, [(1, 2)]);
        assert_eq!(Leaves::tree(32, 0..32, 64).unwrap().joins.len(), 31);
        assert!(Leaves::tree(8, 4..4, 64).is_err());
        assert!(Leaves::tree(8, 4..9, 64).is_err());
    }
}
