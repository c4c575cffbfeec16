//! Attention of single rows.

use cudarc::driver::{CudaSlice, PushKernelArg};

use super::{ByValue, OpError, Ops, Parameters, at_least, shape, word};
use crate::source::Source;

/// Positions of a chunk, and most query heads of a kv head: as in `attention.cu`.
const CHUNK: usize = 256;
const MAX_GROUP: usize = 16;

/// Sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads of this rank.
    pub q_heads: usize,
    /// Key and value heads that it stores; each serves as many query heads.
    pub kv_heads: usize,
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

    /// Elements of the workspace for `rows` rows.
    #[must_use]
    pub fn parts(&self, rows: usize) -> usize {
        rows * self.q_heads * self.chunks() * (self.dim + 2)
    }

    fn check(&self) -> Result<(), OpError> {
        let group = self.q_heads.checked_div(self.kv_heads).unwrap_or(0);
        let width = self.q_heads * self.dim;
        let fits = matches!(self.dim, 64 | 128)
            && (1..=MAX_GROUP).contains(&group)
            && group * self.kv_heads == self.q_heads
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

/// `struct Attention` of `attention.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attention {
    q: u64,
    keys: u64,
    values: u64,
    positions: u64,
    tables: u64,
    parts: u64,
    table_stride: u32,
    q_heads: u32,
    kv_heads: u32,
    block_tokens: u32,
    chunks: u32,
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
        (positions, tables): (&CudaSlice<u32>, &CudaSlice<u32>),
        parts: &mut CudaSlice<f32>,
        y: &mut CudaSlice<u16>,
        rows: usize,
    ) -> Result<(), OpError> {
        heads.check()?;
        let width = heads.q_heads * heads.dim;
        at_least("the queries", q, rows * width)?;
        at_least("the positions", positions, rows)?;
        at_least("the block tables", tables, rows * heads.table_stride)?;
        at_least("the workspace", parts, heads.parts(rows))?;
        at_least(
            "the outputs",
            y,
            rows * (width / heads.leaf_width) * heads.leaf_width.next_multiple_of(64),
        )?;
        let chunks = word("chunks", heads.chunks())?;
        let (q_heads, kv_heads) = (word("heads", heads.q_heads)?, word("heads", heads.kv_heads)?);
        let rows = word("rows", rows)?;
        let parameters = ByValue(Attention {
            q: self.address(q),
            keys: self.address(cache.keys),
            values: self.address(cache.values),
            positions: self.address(positions),
            tables: self.address(tables),
            parts: self.address(parts),
            table_stride: word("a table", heads.table_stride)?,
            q_heads,
            kv_heads,
            block_tokens: word("a block", heads.block_tokens)?,
            chunks,
            scale: 1.0 / (heads.dim as f32).sqrt(),
        });
        let name = if heads.dim == 64 {
            "attention_64"
        } else {
            "attention_128"
        };
        let function = self.function(Source::Attention, name)?;
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(&parameters);
        // SAFETY: the kernel takes this struct, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((chunks, kv_heads, rows), 256, 0)) }?;
        let merge = self.function(Source::Attention, "attention_merge")?;
        let (dim, leaf_width) = (word("a head", heads.dim)?, word("a leaf", heads.leaf_width)?);
        let mut launch = self.stream.launch_builder(&merge);
        launch
            .arg(&*parts)
            .arg(positions)
            .arg(y)
            .arg(&q_heads)
            .arg(&dim)
            .arg(&chunks)
            .arg(&leaf_width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((q_heads, rows, 1), 128, 0)) }?;
        Ok(())
    }
}
