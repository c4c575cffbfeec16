//! What a layer computes between its products.

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaSlice, DevicePtr};

use super::attention::{Cache, Places};
use super::exchange::{self, MOST_ROOTS};
use super::launch::{Launch, Push as _};
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

/// The kernels.
pub(super) const KERNELS: [&str; 7] = [
    "embed",
    "join_roots",
    "add_norm",
    "rope_kv",
    "silu_mul",
    "update_tables",
    "gather_rows",
];
const THREADS: u32 = 256;
/// Threads of a block that joins roots: the one row of a large model then fills the device.
const JOIN_THREADS: u32 = 128;
/// A row lies in shared memory while it is normed, of which every device has 96 KiB for a block that asks for it.
const MAX_WIDTH: usize = 24_000;

/// What a product gave, one root, as it is added to the hidden rows.
#[derive(Debug, Clone, Copy)]
pub struct Added<'a> {
    /// `[row][output]`.
    pub values: &'a CudaSlice<f32>,
    /// One for each output; none: 1.
    pub scales: Option<&'a CudaSlice<f32>>,
}

/// The roots of a product over all ranks, as they are added to the hidden rows.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    /// Where they are.
    pub values: RootValues<'a>,
    /// How many roots.
    pub count: usize,
    /// Pairs of roots, `to += from`; none where there is but one.
    pub joins: Option<&'a CudaSlice<u8>>,
    /// One for each output, applied to the joined roots; none: 1.
    pub scales: Option<&'a CudaSlice<f32>>,
}

/// Where roots are, `[root][row][output]`.
#[derive(Debug, Clone, Copy)]
pub enum RootValues<'a> {
    /// In a buffer.
    Here(&'a CudaSlice<f32>),
    /// In the slot of the last exchange.
    Received(Received<'a>),
}

/// What an exchange has brought.
#[derive(Debug, Clone, Copy)]
pub struct Received<'a>(pub(crate) &'a exchange::Areas);

/// Addresses from which a kernel finds roots.
struct RootPlace {
    /// The first of them, or the first slot of exchanges.
    roots: u64,
    /// The number of exchanges so far; 0 where the roots do not come by one.
    exchanges: u64,
    /// Values between the two slots.
    slot: u64,
}

/// Counts layers while the device computes: addresses of a number on the device and of one that the host sees.
#[derive(Debug, Clone, Copy)]
pub struct LayerCount {
    /// The number.
    pub count: u64,
    /// Where it is shown.
    pub seen: u64,
}

impl Ops {
    /// `hidden[row][width]` from a table of bf16 rows.
    ///
    /// # Errors
    /// [`OpError`]. Ids must be below the table's rows, which the caller checks: the device cannot say so.
    pub fn embed(
        &mut self,
        table: &CudaSlice<u16>,
        tokens: &impl DevicePtr<u32>,
        rows: usize,
        hidden: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), OpError> {
        let table = self.address(table);
        self.embed_from(table, tokens, rows, hidden, width)
    }

    /// The same from a table at this address, which may be in memory of the host that the device sees.
    ///
    /// # Errors
    /// [`OpError`]. The table's rows must be there and ids below their number, which the caller checks.
    pub(crate) fn embed_from(
        &mut self,
        table: u64,
        tokens: &impl DevicePtr<u32>,
        rows: usize,
        hidden: &mut CudaSlice<f32>,
        width: usize,
    ) -> Result<(), OpError> {
        at_least("the ids", tokens, rows)?;
        at_least("the hidden rows", hidden, rows * width)?;
        let kernel = self.kernel(Source::Layer, "embed")?;
        let (width, rows) = (word("width", width)?, word("rows", rows)?);
        let tokens = self.address(tokens);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&table).arg(&tokens).arg(hidden).arg(&width);
        // SAFETY: the arguments are the kernel's, and the buffers hold what their shapes need.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// `hidden[row][width] += roots`, joined in the order of their tree.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn join_roots(
        &mut self,
        hidden: &mut CudaSlice<f32>,
        roots: Roots<'_>,
        rows: usize,
        width: usize,
    ) -> Result<(), OpError> {
        let n = rows * width;
        at_least("the hidden rows", hidden, n)?;
        if let Some(scales) = roots.scales {
            at_least("the scales", scales, width)?;
        }
        let place = self.root_place(&roots, n)?;
        let joins = roots.joins.map_or(0, |joins| self.address(joins));
        let join_count = word("joins", roots.joins.map_or(0, |joins| joins.len() / 2))?;
        let scales = roots.scales.map_or(0, |scales| self.address(scales));
        let root_count = word("roots", roots.count)?;
        let (n, width) = (word("values", n)?, word("width", width)?);
        let kernel = self.kernel(Source::Layer, "join_roots")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(hidden).arg(&place.roots);
        launch.arg(&joins).arg(&join_count).arg(&root_count).arg(&scales);
        launch.arg(&place.exchanges).arg(&place.slot);
        launch.arg(&n).arg(&width);
        // SAFETY: the arguments are the kernel's, and the buffers hold what their shapes need; pointers of 0 are not read.
        unsafe { launch.launch(shape((n.div_ceil(JOIN_THREADS), 1, 1), JOIN_THREADS, 0)) }?;
        Ok(())
    }

    /// Where roots of `n` values lie.
    fn root_place(&self, roots: &Roots<'_>, n: usize) -> Result<RootPlace, OpError> {
        if roots.count == 0 || roots.count > MOST_ROOTS {
            return Err(OpError::Shape(format!(
                "{} roots; 1 to {MOST_ROOTS} can be joined",
                roots.count
            )));
        }
        match roots.values {
            RootValues::Here(values) => {
                at_least("the roots", values, roots.count * n)?;
                Ok(RootPlace {
                    roots: self.address(values),
                    exchanges: 0,
                    slot: 0,
                })
            }
            RootValues::Received(Received(areas)) => {
                areas.fits("the roots", 4 * roots.count * n)?;
                let (exchanges, roots) = areas.received();
                Ok(RootPlace {
                    roots,
                    exchanges,
                    slot: areas.slot_bytes() / 4,
                })
            }
        }
    }

    /// `hidden += added`; then the normed rows, bf16, padded for leaves of `leaf_width` inputs. Where `layers` is given, one
    /// more is counted.
    ///
    /// # Errors
    /// [`OpError`].
    #[allow(clippy::too_many_arguments, reason = "what is read, and where it goes")]
    pub fn add_norm(
        &mut self,
        hidden: &mut CudaSlice<f32>,
        added: Option<Added<'_>>,
        weight: &CudaSlice<f32>,
        y: &mut CudaSlice<u16>,
        rows: usize,
        (leaf_width, epsilon): (usize, f32),
        layers: Option<LayerCount>,
    ) -> Result<(), OpError> {
        let width = weight.len();
        if leaf_width == 0 || !width.is_multiple_of(leaf_width) || width > MAX_WIDTH {
            let reason = format!(
                "a width of {width} with leaves of {leaf_width}; at most {MAX_WIDTH}, in whole leaves"
            );
            return Err(OpError::Shape(reason));
        }
        let padded = width / leaf_width * leaf_width.next_multiple_of(64);
        at_least("the hidden rows", hidden, rows * width)?;
        at_least("the normed rows", y, rows * padded)?;
        let scales = added.and_then(|added| added.scales);
        if let Some(added) = added {
            at_least("what is added", added.values, rows * width)?;
        }
        if let Some(scales) = scales {
            at_least("the scales", scales, width)?;
        }
        let added = added.map_or(0, |added| self.address(added.values));
        let scales = scales.map_or(0, |scales| self.address(scales));
        let (count, seen) = layers.map_or((0, 0), |layers| (layers.count, layers.seen));
        let kernel = self.kernel(Source::Layer, "add_norm")?;
        let shared = word("width", 4 * width)?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        kernel.function.set_attribute(attribute, shared.cast_signed())?;
        let (width, rows) = (word("width", width)?, word("rows", rows)?);
        let leaf_width = word("leaf", leaf_width)?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(hidden).arg(&added).arg(&scales);
        launch.arg(weight).arg(y).arg(&width).arg(&leaf_width);
        launch.arg(&epsilon).arg(&count).arg(&seen);
        // SAFETY: as above.
        unsafe { launch.launch(shape((rows, 1, 1), THREADS, shared)) }?;
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
        places: &Places<'_, impl DevicePtr<u32>>,
        q: &mut CudaSlice<f32>,
        cache: &Cache<'_>,
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
        at_least("the positions", places.positions, rows)?;
        at_least("the slots", places.slots, rows)?;
        at_least("the queries", q, rows * q_heads * dim)?;
        let kernel = self.kernel(Source::Layer, "rope_kv")?;
        let numbers = [q_heads, kv_heads, dim, block_tokens, table_stride, rows];
        let mut words = [0; 6];
        for (to, number) in words.iter_mut().zip(numbers) {
            *to = word("a head's shape", number)?;
        }
        let [q_heads, kv_heads, dim, block_tokens, table_stride, rows] = words;
        let (positions, slots) = (self.address(places.positions), self.address(places.slots));
        let (keys, values) = (self.address(cache.keys), self.address(cache.values));
        let mut launch = Launch::new(&kernel, &self.stream);
        launch
            .arg(qkv)
            .arg(cos)
            .arg(sin)
            .arg(&positions)
            .arg(&slots)
            .arg(places.tables)
            .arg(&table_stride);
        launch
            .arg(q)
            .arg(&keys)
            .arg(&values)
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
        let kernel = self.kernel(Source::Layer, "silu_mul")?;
        let (width, leaf_width, rows) = (
            word("width", width)?,
            word("leaf", leaf_width)?,
            word("rows", rows)?,
        );
        let blocks = word("width", padded)?.div_ceil(THREADS);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(gate_up).arg(y).arg(&width).arg(&leaf_width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((blocks, rows, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// Change block tables of `stride` entries: `count` entries of (slot, index, block).
    ///
    /// # Errors
    /// [`OpError`]. Slots and indices must be in the tables, which the caller checks.
    pub fn update_tables(
        &mut self,
        entries: &CudaSlice<u32>,
        count: usize,
        tables: &mut CudaSlice<u32>,
        stride: usize,
    ) -> Result<(), OpError> {
        at_least("the entries", entries, 3 * count)?;
        let kernel = self.kernel(Source::Layer, "update_tables")?;
        let (count, stride) = (word("entries", count)?, word("a table", stride)?);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(entries).arg(&count).arg(tables).arg(&stride);
        // SAFETY: as above.
        unsafe { launch.launch(shape((count.div_ceil(THREADS), 1, 1), THREADS, 0)) }?;
        Ok(())
    }

    /// `to[first + i] = from[rows[i]]`, rows of `width` bf16, an even number.
    ///
    /// # Errors
    /// [`OpError`]. The rows must be there, which the caller checks.
    pub fn gather_rows(
        &mut self,
        from: &CudaSlice<u16>,
        rows: (&impl DevicePtr<u32>, usize),
        (to, first): (&mut CudaSlice<u16>, usize),
        width: usize,
    ) -> Result<(), OpError> {
        let (rows, count) = rows;
        at_least("the rows' numbers", rows, count)?;
        at_least("the gathered rows", to, (first + count) * width)?;
        if !width.is_multiple_of(2) {
            return Err(OpError::Shape(format!(
                "rows of {width} elements; an even number can be gathered"
            )));
        }
        let kernel = self.kernel(Source::Layer, "gather_rows")?;
        let rows = self.address(rows);
        let to = self.address(to) + 2 * (first * width) as u64;
        let (width, count) = (word("width", width)?, word("rows", count)?);
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(from).arg(&rows).arg(&to).arg(&width);
        // SAFETY: as above.
        unsafe { launch.launch(shape((count, 1, 1), THREADS, 0)) }?;
        Ok(())
    }
}
