//! Attention of single rows.

use cudarc::driver::{CudaSlice, DevicePtr};

use super::launch::{Launch, Push as _};
use super::{ByValue, OpError, Ops, Parameters, at_least, shape, word};
use crate::source::Source;

/// Positions of a chunk, and most query heads of a kv head: as in `attention.cu`.
const CHUNK: usize = 256;
pub(crate) const MAX_GROUP: usize = 16;
/// Pairs of a row and a chunk that one launch works on: bounds its workspace.
const ROW_CHUNKS: usize = 4096;
/// The kernels.
pub(super) const KERNELS: [&str; 3] = ["attention_64", "attention_128", "attention_merge"];

/// Sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads of this rank.
    pub q_heads: usize,
    /// Key and value heads that it stores.
    pub kv_heads: usize,
    /// Query heads of the model that a kv head serves.
    pub group: usize,
    /// Those of the first kv head that are another rank's. The last one may be another rank's in part, too.
    pub skipped: usize,
    /// Elements of a head: 64 or 128.
    pub dim: usize,
    /// Tokens of a cache block.
    pub block_tokens: usize,
    /// Blocks of a row's table.
    pub table_stride: usize,
    /// Tokens that the longest row of the batch sees.
    pub longest: usize,
    /// Inputs of a leaf of the product that follows.
    pub leaf_width: usize,
}

impl AttentionShape {
    fn chunks(&self) -> usize {
        self.longest.div_ceil(CHUNK)
    }

    /// Rows of one launch.
    fn at_once(&self) -> usize {
        (ROW_CHUNKS / self.chunks().max(1)).max(1)
    }

    /// Elements of the workspace for `rows` rows.
    #[must_use]
    pub fn parts(&self, rows: usize) -> usize {
        rows.min(self.at_once()) * self.q_heads * self.chunks() * (self.dim + 2)
    }

    fn check(&self) -> Result<(), OpError> {
        let Self { group, skipped, .. } = *self;
        let width = self.q_heads * self.dim;
        let fits = matches!(self.dim, 64 | 128)
            && (1..=MAX_GROUP).contains(&group)
            && skipped < group
            && (skipped + self.q_heads).div_ceil(group) == self.kv_heads
            && self.q_heads > 0
            && self.leaf_width > 0
            && width.is_multiple_of(self.leaf_width)
            && (1..=self.table_stride * self.block_tokens).contains(&self.longest);
        if fits {
            return Ok(());
        }
        Err(OpError::Shape(format!("no attention kernel for {self:?}")))
    }
}

/// The paged cache of one layer: `[block][kv head][token][dim]`, bf16.
#[derive(Debug)]
pub struct Cache<'a> {
    /// Keys.
    pub keys: &'a CudaSlice<u16>,
    /// Values.
    pub values: &'a CudaSlice<u16>,
}

/// Where the rows of a batch are.
#[derive(Debug)]
pub struct Places<'a, P> {
    /// `[row]`: absolute positions.
    pub positions: &'a P,
    /// `[row]`: rows of `tables`.
    pub slots: &'a P,
    /// `[slot][blocks]`: block tables.
    pub tables: &'a CudaSlice<u32>,
}

/// `struct Attention` of `attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attention {
    q: u64,
    keys: u64,
    values: u64,
    positions: u64,
    slots: u64,
    tables: u64,
    parts: u64,
    table_stride: u32,
    q_heads: u32,
    kv_heads: u32,
    block_tokens: u32,
    chunks: u32,
    group: u32,
    skipped: u32,
    scale: f32,
}

// SAFETY: the same members in the same order; pointers are eight bytes.
unsafe impl Parameters for Attention {}

impl Ops {
    /// `y[row]` (bf16, padded leaf by leaf) of rotated queries `q[row][head][dim]`. A row sees its position and all
    /// before. `parts` is workspace of [`AttentionShape::parts`] elements.
    ///
    /// # Errors
    /// [`OpError`]. Positions must be below `longest`, and tables in the cache, which the caller checks.
    #[allow(
        clippy::too_many_arguments,
        reason = "what is read, the workspace, and where it goes"
    )]
    pub fn attention(
        &mut self,
        heads: AttentionShape,
        q: &CudaSlice<f32>,
        cache: &Cache<'_>,
        places: &Places<'_, impl DevicePtr<u32>>,
        parts: &mut CudaSlice<f32>,
        y: &mut CudaSlice<u16>,
        rows: usize,
    ) -> Result<(), OpError> {
        heads.check()?;
        let width = heads.q_heads * heads.dim;
        let padded = width / heads.leaf_width * heads.leaf_width.next_multiple_of(64);
        at_least("the queries", q, rows * width)?;
        at_least("the positions", places.positions, rows)?;
        at_least("the slots", places.slots, rows)?;
        at_least("the workspace", parts, heads.parts(rows))?;
        at_least("the outputs", y, rows * padded)?;
        let mut first = 0;
        while first < rows {
            let count = (rows - first).min(heads.at_once());
            let skip = |address: u64, bytes: usize| address + (first * bytes) as u64;
            let parameters = Attention {
                q: skip(self.address(q), 4 * width),
                keys: self.address(cache.keys),
                values: self.address(cache.values),
                positions: skip(self.address(places.positions), 4),
                slots: skip(self.address(places.slots), 4),
                tables: self.address(places.tables),
                parts: self.address(parts),
                table_stride: word("a table", heads.table_stride)?,
                q_heads: word("heads", heads.q_heads)?,
                kv_heads: word("heads", heads.kv_heads)?,
                block_tokens: word("a block", heads.block_tokens)?,
                chunks: word("chunks", heads.chunks())?,
                group: word("a group", heads.group)?,
                skipped: word("a group", heads.skipped)?,
                scale: 1.0 / (heads.dim as f32).sqrt(),
            };
            let y = skip(self.address(y), 2 * padded);
            self.attend(heads, parameters, y, word("rows", count)?)?;
            first += count;
        }
        Ok(())
    }

    fn attend(
        &mut self,
        heads: AttentionShape,
        parameters: Attention,
        y: u64,
        rows: u32,
    ) -> Result<(), OpError> {
        let Attention {
            parts,
            positions,
            q_heads,
            kv_heads,
            chunks,
            ..
        } = parameters;
        let name = if heads.dim == 64 {
            "attention_64"
        } else {
            "attention_128"
        };
        let parameters = ByValue(parameters);
        let kernel = self.kernel(Source::Attention, name)?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&parameters);
        // SAFETY: the kernel takes this struct, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((chunks, kv_heads, rows), 256, 0)) }?;
        let merge = self.kernel(Source::Attention, "attention_merge")?;
        let (dim, leaf_width) = (word("a head", heads.dim)?, word("a leaf", heads.leaf_width)?);
        let mut launch = Launch::new(&merge, &self.stream);
        launch
            .arg(&parts)
            .arg(&positions)
            .arg(&y)
            .arg(&q_heads)
            .arg(&dim)
            .arg(&chunks)
            .arg(&leaf_width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((q_heads, rows, 1), 128, 0)) }?;
        Ok(())
    }
}
