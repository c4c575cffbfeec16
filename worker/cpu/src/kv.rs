//! The paged KV cache of one rank, in the layout that the dot-product tile reads.
//!
//! A block holds the keys and values of `block_size` consecutive positions for one layer and kv head, cut into tiles of
//! `T = min(32, block_size)` positions. In a tile of keys every lane is a position and the steps walk along the head;
//! in a tile of values every lane is an element of the head and the steps walk along the positions. Both are bf16,
//! rounded when written, before anyone attends to them.

use llamero_engine::BackendError;

use crate::kernel::math::to_bf16;
use crate::kernel::pack::LANES;
use crate::region::Region;

/// Attention works on chunks of that many absolute positions, whatever the batch.
pub(crate) const CHUNK: usize = 256;

/// Sizes of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
}

impl KvShape {
    /// # Errors
    /// [`BackendError::Memory`] for a block size that does not fill chunks of 256 positions.
    pub(crate) fn new(
        layers: usize,
        heads: usize,
        head_dim: usize,
        block_size: usize,
    ) -> Result<Self, BackendError> {
        if !matches!(block_size, 16 | 32 | 64 | 128 | 256) {
            return Err(BackendError::Memory(format!(
                "a KV block of {block_size} tokens cannot be used: choose 16, 32, 64, 128 or 256"
            )));
        }
        Ok(Self {
            layers,
            heads,
            head_dim,
            block_size,
        })
    }

    /// Positions of a tile.
    pub(crate) fn tile(&self) -> usize {
        self.block_size.min(LANES)
    }

    fn key_tile(&self) -> usize {
        self.head_dim * LANES
    }

    /// Elements of one group of 32 lanes in a tile of values.
    pub(crate) fn value_group(&self) -> usize {
        self.tile() * LANES
    }

    /// Groups of 32 lanes across a head.
    pub(crate) fn groups(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    fn value_tile(&self) -> usize {
        self.groups() * self.value_group()
    }

    fn per_head(&self) -> usize {
        self.block_size / self.tile() * (self.key_tile() + self.value_tile())
    }

    fn per_layer(&self) -> usize {
        self.heads * self.per_head()
    }

    /// Bytes of one block over all layers and heads.
    pub(crate) fn block_bytes(&self) -> usize {
        self.layers * self.per_layer() * size_of::<u16>()
    }
}

/// The memory of all blocks: `[layer][block][head][tile]`, keys of a tile before its values.
pub(crate) struct KvCache {
    shape: KvShape,
    blocks: usize,
    region: Region,
}

impl KvCache {
    /// `blocks` zeroed blocks; memory is taken from the system as blocks are first written.
    pub(crate) fn new(shape: KvShape, blocks: usize) -> std::io::Result<Self> {
        Ok(Self {
            shape,
            blocks,
            region: Region::anonymous(blocks * shape.block_bytes())?,
        })
    }

    fn data(&self) -> &[u16] {
        bytemuck::cast_slice(self.region.bytes())
    }

    fn data_mut(&mut self) -> &mut [u16] {
        bytemuck::cast_slice_mut(self.region.bytes_mut())
    }

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    fn head_at(&self, layer: usize, block: usize, head: usize) -> usize {
        (layer * self.blocks + block) * self.shape.per_layer() + head * self.shape.per_head()
    }

    /// Keys and values of the tile with absolute position `position`, of the sequence with block table `table`.
    pub(crate) fn tile(&self, layer: usize, table: &[u32], head: usize, position: usize) -> (&[u16], &[u16]) {
        let shape = &self.shape;
        let block = table[position / shape.block_size] as usize;
        let tile = position % shape.block_size / shape.tile();
        let at = self.head_at(layer, block, head) + tile * (shape.key_tile() + shape.value_tile());
        self.data()[at..at + shape.key_tile() + shape.value_tile()].split_at(shape.key_tile())
    }

    /// Round and store one position of one head.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        table: &[u32],
        head: usize,
        position: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let shape = self.shape;
        let block = table[position / shape.block_size] as usize;
        let offset = position % shape.block_size;
        let at = self.head_at(layer, block, head);
        let data = self.data_mut();
        if offset == 0 {
            // What an earlier owner left must not meet a weight of zero: zero times infinity is not zero.
            data[at..at + shape.per_head()].fill(0);
        }
        let lane = offset % shape.tile();
        let at = at + offset / shape.tile() * (shape.key_tile() + shape.value_tile());
        let (keys, values) =
            data[at..at + shape.key_tile() + shape.value_tile()].split_at_mut(shape.key_tile());
        for (d, element) in key.iter().enumerate() {
            keys[(d / 2 * LANES + lane) * 2 + d % 2] = to_bf16(*element);
        }
        for (d, element) in value.iter().enumerate() {
            let group = d / LANES * shape.value_group();
            values[group + (lane / 2 * LANES + d % LANES) * 2 + lane % 2] = to_bf16(*element);
        }
    }

    /// Copy a block of all layers and heads.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        let len = self.shape.per_layer();
        for layer in 0..self.shape.layers {
            let (from, to) = (
                self.head_at(layer, from as usize, 0),
                self.head_at(layer, to as usize, 0),
            );
            self.data_mut().copy_within(from..from + len, to);
        }
    }
}
