//! What a layer computes between its products.

use cudarc::driver::{CudaSlice, PushKernelArg};

use super::{OpError, Ops, at_least, shape, word};
use crate::source::Source;

/// Heads and their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Query heads of this rank.
    pub q_heads: usize,
    /// Key and value heads that it stores.
    pub kv_heads: usize,
    /// Elements of a head.
    pub dim: usize,
    /// Tokens of a cache block.
    pub block_tokens: usize,
    /// Blocks of a row's table.
    pub table_stride: usize,
}

const THREADS: u32 = 256;
/// A row lies in shared memory while it is normed; without asking for more, 48 KiB are there.
const MAX_WIDTH: usize = 12_000;

impl Ops {
    /// `hidden[row][width]` from a table of bf16 rows.
    ///
    /// # Errors
    /// [`OpError`]. Ids must be below the table's rows, which the caller checks: the device cannot say so.
    pub fn embed(
        &mut self,
        table: &CudaSlice<u16>,
        tokens: &CudaSlice<u32>,
        rows: usize,
        hidden: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), OpError> {
        at_least("the ids", tokens, rows)?;
        at_least("the hidden rows", hidden, rows * width)?;
        let function = self.function(Source::Layer, "embed")?;
        let (width, rows) = (word("width", width)?, word("rows", rows)?);
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(table).arg(tokens).arg(hidden).arg(&width);
        // SAFETY: the arguments are the kernel's, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// `hidden += roots`, joined as `joins` says; then the normed rows, bf16, padded for leaves of `leaf_width` inputs.
    ///
    /// # Errors
    /// [`OpError`].
    #[allow(
        clippy::too_many_arguments,
        reason = "what is read, how it joins, and where it goes"
    )]
    pub fn add_norm(
        &mut self,
        hidden: &mut CudaSlice<f32>,
        roots: Option<(&CudaSlice<f32>, usize, &CudaSlice<u8>)>,
        weight: &CudaSlice<u16>,
        y: &mut CudaSlice<u16>,
        rows: usize,
        leaf_width: usize,
        epsilon: f32,
    ) -> Result<(), OpError> {
        let width = weight.len();
        if leaf_width == 0 || !width.is_multiple_of(leaf_width) || width > MAX_WIDTH {
            let reason = format!(
                "a width of {width} with leaves of {leaf_width}; at most {MAX_WIDTH}, in whole leaves"
            );
            return Err(OpError::Shape(reason));
        }
        at_least("the hidden rows", hidden, rows * width)?;
        at_least(
            "the normed rows",
            y,
            rows * (width / leaf_width) * leaf_width.next_multiple_of(64),
        )?;
        let (joins, count) = match roots {
            Some((roots, count, joins)) => {
                at_least("the roots", roots, count * rows * width)?;
                if count == 0 || count > 8 {
                    return Err(OpError::Shape(format!("{count} roots; 1 to 8 can be added")));
                }
                (joins.len() / 2, count)
            }
            None => (0, 0),
        };
        let added = roots.map_or(0, |roots| self.address(roots.0));
        let program = roots.map_or(0, |roots| self.address(roots.2));
        let function = self.function(Source::Layer, "add_norm")?;
        let (joins, count) = (word("joins", joins)?, word("roots", count)?);
        let (width, leaf_width, rows) = (
            word("width", width)?,
            word("leaf", leaf_width)?,
            word("rows", rows)?,
        );
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(hidden).arg(&added).arg(&program);
        launch
            .arg(&joins)
            .arg(&count)
            .arg(weight)
            .arg(y)
            .arg(&width)
            .arg(&leaf_width)
            .arg(&epsilon);
        // SAFETY: as above; without roots their pointers are not read.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, 4 * width)) }?;
        Ok(())
    }

    /// Rotate the rows of `qkv` to their positions: `q` as f32, keys and values as bf16 into their cache.
    ///
    /// # Errors
    /// [`OpError`]. Positions must lie in the tables, and tables in the cache, which the caller checks.
    #[allow(clippy::too_many_arguments, reason = "what is read and where it goes")]
    pub fn rope_kv(
        &mut self,
        heads: RopeShape,
        qkv: &CudaSlice<f32>,
        (cos, sin): (&CudaSlice<f32>, &CudaSlice<f32>),
        (positions, tables): (&CudaSlice<u32>, &CudaSlice<u32>),
        q: &mut CudaSlice<f32>,
        (keys, values): (&mut CudaSlice<u16>, &mut CudaSlice<u16>),
        rows: usize,
    ) -> Result<(), OpError> {
        let RopeShape {
            q_heads,
            kv_heads,
            dim,
            block_tokens,
            table_stride,
        } = heads;
        at_least("the projections", qkv, rows * (q_heads + 2 * kv_heads) * dim)?;
        at_least("the positions", positions, rows)?;
        at_least("the block tables", tables, rows * table_stride)?;
        at_least("the queries", q, rows * q_heads * dim)?;
        let function = self.function(Source::Layer, "rope_kv")?;
        let numbers = [q_heads, kv_heads, dim, block_tokens, table_stride, rows];
        let mut words = [0; 6];
        for (to, number) in words.iter_mut().zip(numbers) {
            *to = word("a head's shape", number)?;
        }
        let [q_heads, kv_heads, dim, block_tokens, table_stride, rows] = words;
        let mut launch = self.stream.launch_builder(&function);
        launch
            .arg(qkv)
            .arg(cos)
            .arg(sin)
            .arg(positions)
            .arg(tables)
            .arg(&table_stride);
        launch
            .arg(q)
            .arg(keys)
            .arg(values)
            .arg(&q_heads)
            .arg(&kv_heads)
            .arg(&dim)
            .arg(&block_tokens);
        // SAFETY: as above.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// `silu(gate) × up` of `gate_up[row][2 × width]`, bf16, padded for leaves of `leaf_width` inputs.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn silu_mul(
        &mut self,
        gate_up: &CudaSlice<f32>,
        y: &mut CudaSlice<u16>,
        rows: usize,
        width: usize,
        leaf_width: usize,
    ) -> Result<(), OpError> {
        if leaf_width == 0 || !width.is_multiple_of(leaf_width) {
            return Err(OpError::Shape(format!(
                "a width of {width} is not made of leaves of {leaf_width}"
            )));
        }
        let padded = width / leaf_width * leaf_width.next_multiple_of(64);
        at_least("gates and ups", gate_up, rows * 2 * width)?;
        at_least("the outputs", y, rows * padded)?;
        let function = self.function(Source::Layer, "silu_mul")?;
        let (width, leaf_width, rows) = (
            word("width", width)?,
            word("leaf", leaf_width)?,
            word("rows", rows)?,
        );
        let blocks = word("width", padded)?.div_ceil(THREADS);
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(gate_up).arg(y).arg(&width).arg(&leaf_width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((blocks, rows, 1), THREADS, 0)) }?;
        Ok(())
    }
}
