//! The paged KV cache of one rank, in the layout that the dot-product tile reads.
//!
//! A block holds the keys and values of `block_size` consecutive positions for one layer and kv head, cut into tiles of
//! `T = min(32, block_size)` positions. In a tile of keys every lane is a position and the steps walk along the head (the
//! kernel takes the 32 lanes of a step from two blocks of 16); in a tile of values every lane is an element of the head and
//! the steps walk along the positions. Both are bf16, rounded when written, before anyone attends to them. Nothing is
//! padded: a block costs what its tokens do.

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
    /// [`BackendError::Unusable`] for a block size that does not fill chunks of 256 positions.
    pub(crate) fn new(
        layers: usize,
        heads: usize,
        head_dim: usize,
        block_size: usize,
    ) -> Result<Self, BackendError> {
        if !matches!(block_size, 16 | 32 | 64 | 128 | 256) {
            return Err(BackendError::Unusable(format!(
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
        self.head_dim * self.tile()
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

    /// Bytes of one token over all layers and heads.
    #[cfg(test)]
    pub(crate) fn token_bytes(&self) -> usize {
        self.layers * self.heads * self.head_dim * 2 * size_of::<u16>()
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

    /// Keys of the 32 positions from `position` on, a multiple of 32: in one tile, or in two of 16. Where the sequence
    /// ends before the second, the first stands for it: those positions are not seen.
    pub(crate) fn keys(
        &self,
        layer: usize,
        table: &[u32],
        head: usize,
        position: usize,
    ) -> (&[u16], Option<&[u16]>) {
        let (lower, _) = self.tile(layer, table, head, position);
        if self.shape.tile() == LANES {
            return (lower, None);
        }
        let next = position + self.shape.tile();
        let upper = if next / self.shape.block_size < table.len() {
            self.tile(layer, table, head, next).0
        } else {
            lower
        };
        (lower, Some(upper))
    }

    /// Values of the tile with absolute position `position`.
    pub(crate) fn values(&self, layer: usize, table: &[u32], head: usize, position: usize) -> &[u16] {
        self.tile(layer, table, head, position).1
    }

    /// Keys and values of the tile with absolute position `position`, of the sequence with block table `table`.
    fn tile(&self, layer: usize, table: &[u32], head: usize, position: usize) -> (&[u16], &[u16]) {
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
            keys[(d / 2 * shape.tile() + lane) * 2 + d % 2] = to_bf16(*element);
        }
        for (d, element) in value.iter().enumerate() {
            let group = d / LANES * shape.value_group();
            values[group + (lane / 2 * LANES + d % LANES) * 2 + lane % 2] = to_bf16(*element);
        }
    }

    /// One block of all layers and heads, as bytes.
    pub(crate) fn save(&self, block: u32, into: &mut Vec<u8>) {
        let len = self.shape.per_layer();
        for layer in 0..self.shape.layers {
            let at = self.head_at(layer, block as usize, 0);
            into.extend_from_slice(bytemuck::cast_slice(&self.data()[at..at + len]));
        }
    }

    /// Put back what [`Self::save`] gave; `bytes` has the length of a block.
    pub(crate) fn restore(&mut self, block: u32, bytes: &[u8]) {
        let len = self.shape.per_layer();
        for (layer, bytes) in (0..self.shape.layers).zip(bytes.chunks_exact(len * size_of::<u16>())) {
            let at = self.head_at(layer, block as usize, 0);
            let to: &mut [u8] = bytemuck::cast_slice_mut(&mut self.data_mut()[at..at + len]);
            to.copy_from_slice(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_costs_what_its_tokens_do() {
        for head_dim in [32, 64, 128] {
            for block_size in [16, 32, 64, 128, 256] {
                let shape = KvShape::new(3, 5, head_dim, block_size).unwrap();
                assert_eq!(shape.block_bytes(), block_size * shape.token_bytes());
            }
        }
        assert!(KvShape::new(1, 1, 64, 24).is_err());
    }

    #[test]
    fn a_saved_block_comes_back_in_another_place() {
        let shape = KvShape::new(2, 3, 32, 16).unwrap();
        let mut cache = KvCache::new(shape, 4).unwrap();
        let row: Vec<f32> = (0..32).map(|i| i as f32).collect();
        for (layer, head) in [(0, 0), (1, 2)] {
            cache.write(layer, &[2], head, 5, &row, &row);
        }
        let mut saved = Vec::new();
        cache.save(2, &mut saved);
        assert_eq!(saved.len(), shape.block_bytes());
        cache.restore(1, &saved);
        for (layer, head) in [(0, 0), (0, 1), (1, 2)] {
            assert_eq!(cache.tile(layer, &[1], head, 0), cache.tile(layer, &[2], head, 0));
        }
        assert!(saved.iter().any(|byte| *byte != 0));
    }
}
