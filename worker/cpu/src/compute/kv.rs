//! The paged KV cache of one rank, in the layout that the dot-product tile reads.
//!
//! A block holds the keys and values of `block_size` consecutive positions for one layer and kv head, cut into tiles of
//! `T = min(32, block_size)` positions. In a tile of keys every lane is a position and the steps walk along the head (the
//! kernel takes the 32 lanes of a step from two blocks of 16); in a tile of values every lane is an element of the head and
//! the steps walk along the positions. Both are rounded when written, before anyone attends to them: to bf16, or to E4M3 with a
//! scale for each token and head (see [`quantize`]), which then stands behind all blocks. A token's scale comes from that
//! token alone, so it does not matter who was computed beside it. Nothing is padded: a block costs what its tokens do.

use llamero_engine::{BackendError, KvDtype};

use crate::attention::MAX_HEAD_DIM;
use crate::kernel::Kernel;
use crate::kernel::math::to_bf16;
use crate::kernel::pack::{Element, LANES};
use crate::kernel::quantize::quantize;
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
    /// Type of keys and values.
    pub(crate) element: Element,
}

/// Keys, or values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Keys,
    Values,
}

impl KvShape {
    /// # Errors
    /// [`BackendError::Unusable`] for a block size that does not fill chunks of 256 positions.
    pub(crate) fn new(
        layers: usize,
        heads: usize,
        head_dim: usize,
        block_size: usize,
        dtype: KvDtype,
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
            element: match dtype {
                KvDtype::Bf16 => Element::Bf16,
                KvDtype::Fp8E4m3 => Element::E4m3,
            },
        })
    }

    /// Positions of a tile.
    pub(crate) fn tile(&self) -> usize {
        self.block_size.min(LANES)
    }

    fn key_tile(&self) -> usize {
        self.head_dim
            .saturating_mul(self.tile())
            .saturating_mul(self.element.size())
    }

    /// Bytes of one group of 32 lanes in a tile of values.
    pub(crate) fn value_group(&self) -> usize {
        self.tile() * LANES * self.element.size()
    }

    /// Groups of 32 lanes across a head.
    pub(crate) fn groups(&self) -> usize {
        self.head_dim.div_ceil(LANES)
    }

    fn value_tile(&self) -> usize {
        self.groups().saturating_mul(self.value_group())
    }

    /// Bytes of keys and values of a block for one layer and head.
    fn per_head(&self) -> usize {
        let tile = self.key_tile().saturating_add(self.value_tile());
        (self.block_size / self.tile()).saturating_mul(tile)
    }

    fn per_layer(&self) -> usize {
        self.heads.saturating_mul(self.per_head())
    }

    /// Bytes of the scales of keys, or of values, of a block for one layer and head.
    fn half_scales(&self) -> usize {
        match self.element {
            Element::Bf16 => 0,
            Element::E4m3 => self.block_size * size_of::<f32>(),
        }
    }

    fn layer_scales(&self) -> usize {
        self.heads.saturating_mul(2 * self.half_scales())
    }

    /// Bytes of one token over all layers and heads.
    pub(crate) fn token_bytes(&self) -> usize {
        let scales = match self.element {
            Element::Bf16 => 0,
            Element::E4m3 => 2 * size_of::<f32>(),
        };
        let head = (2 * self.element.size()).saturating_mul(self.head_dim);
        let head = head.saturating_add(scales);
        self.layers.saturating_mul(self.heads).saturating_mul(head)
    }

    /// Bytes of one block over all layers and heads.
    pub(crate) fn block_bytes(&self) -> usize {
        self.layers
            .saturating_mul(self.per_layer().saturating_add(self.layer_scales()))
    }

    /// Where element `d` of the head at position `lane` of a tile is, counted in elements: in the tile's keys, and in its values.
    fn place(&self, d: usize, lane: usize) -> (usize, usize) {
        // Half a step of the kernel has its lanes one after the other.
        let in_step = match self.tile() {
            LANES => self.element.index(lane, d % 2),
            _ => 2 * lane + d % 2,
        };
        let key = d / 2 * 2 * self.tile() + in_step;
        let in_group = lane / 2 * 2 * LANES + self.element.index(d % LANES, lane % 2);
        (key, d / LANES * self.tile() * LANES + in_group)
    }
}

/// The memory of all blocks: `[layer][block][head][tile]`, keys of a tile before its values; behind them the scales,
/// `[layer][block][head]`, those of a block's keys before those of its values.
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

    pub(crate) fn shape(&self) -> KvShape {
        self.shape
    }

    fn head_at(&self, layer: usize, block: usize, head: usize) -> usize {
        (layer * self.blocks + block) * self.shape.per_layer() + head * self.shape.per_head()
    }

    fn scales_at(&self, layer: usize, block: usize, head: usize) -> usize {
        let shape = &self.shape;
        let behind = shape.layers * self.blocks * shape.per_layer();
        behind + (layer * self.blocks + block) * shape.layer_scales() + head * 2 * shape.half_scales()
    }

    /// Keys of the 32 positions from `position` on, a multiple of 32: in one tile, or in two of 16. Where the sequence
    /// ends before the second, the first stands for it: those positions are not seen.
    pub(crate) fn keys(
        &self,
        layer: usize,
        table: &[u32],
        head: usize,
        position: usize,
    ) -> (&[u8], Option<&[u8]>) {
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
    pub(crate) fn values(&self, layer: usize, table: &[u32], head: usize, position: usize) -> &[u8] {
        self.tile(layer, table, head, position).1
    }

    /// Keys and values of the tile with absolute position `position`, of the sequence with block table `table`.
    fn tile(&self, layer: usize, table: &[u32], head: usize, position: usize) -> (&[u8], &[u8]) {
        let shape = &self.shape;
        let block = table[position / shape.block_size] as usize;
        let tile = position % shape.block_size / shape.tile();
        let at = self.head_at(layer, block, head) + tile * (shape.key_tile() + shape.value_tile());
        self.region.bytes()[at..at + shape.key_tile() + shape.value_tile()].split_at(shape.key_tile())
    }

    /// Scales of as many positions as `out` holds, from `position` on, which begins a block. Only of a cache in E4M3.
    pub(crate) fn scales(
        &self,
        layer: usize,
        table: &[u32],
        head: usize,
        position: usize,
        half: Half,
        out: &mut [f32],
    ) {
        let block_size = self.shape.block_size;
        let blocks = &table[position / block_size..];
        for (block, out) in blocks.iter().zip(out.chunks_mut(block_size)) {
            let at = self.scales_at(layer, *block as usize, head)
                + match half {
                    Half::Keys => 0,
                    Half::Values => self.shape.half_scales(),
                };
            let scales = &self.region.bytes()[at..at + size_of_val(out)];
            out.copy_from_slice(bytemuck::cast_slice(scales));
        }
    }

    /// Round and store one position of one head.
    #[allow(clippy::too_many_arguments, reason = "where it goes, what, and who computes")]
    pub(crate) fn write(
        &mut self,
        kernel: Kernel,
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
        let (at, scales) = (
            self.head_at(layer, block, head),
            self.scales_at(layer, block, head),
        );
        let data = self.region.bytes_mut();
        if offset == 0 {
            // What an earlier owner left must not meet a weight of zero: zero times infinity is not zero.
            data[at..at + shape.per_head()].fill(0);
            data[scales..scales + 2 * shape.half_scales()].fill(0);
        }
        let lane = offset % shape.tile();
        let tile = at + offset / shape.tile() * (shape.key_tile() + shape.value_tile());
        let tile = tile..tile + shape.key_tile() + shape.value_tile();
        match shape.element {
            Element::Bf16 => {
                let (keys, values) = data[tile].split_at_mut(shape.key_tile());
                let keys: &mut [u16] = bytemuck::cast_slice_mut(keys);
                let values: &mut [u16] = bytemuck::cast_slice_mut(values);
                for (d, (key, value)) in key.iter().zip(value).enumerate() {
                    let place = shape.place(d, lane);
                    keys[place.0] = to_bf16(*key);
                    values[place.1] = to_bf16(*value);
                }
            }
            Element::E4m3 => {
                let mut codes = [[0; MAX_HEAD_DIM]; 2];
                let [key_codes, value_codes] = &mut codes;
                let of_key = quantize(kernel, key, &mut key_codes[..key.len()]);
                let of_value = quantize(kernel, value, &mut value_codes[..value.len()]);
                let all = &mut data[scales..scales + 2 * shape.half_scales()];
                let all: &mut [f32] = bytemuck::cast_slice_mut(all);
                (all[offset], all[shape.block_size + offset]) = (of_key, of_value);
                let (keys, values) = data[tile].split_at_mut(shape.key_tile());
                for (d, (key, value)) in key_codes.iter().zip(value_codes).enumerate().take(key.len()) {
                    let place = shape.place(d, lane);
                    keys[place.0] = *key;
                    values[place.1] = *value;
                }
            }
        }
    }

    /// The two parts of one block of one layer.
    fn layer_parts(&self, layer: usize, block: u32) -> [std::ops::Range<usize>; 2] {
        let (at, scales) = (
            self.head_at(layer, block as usize, 0),
            self.scales_at(layer, block as usize, 0),
        );
        [
            at..at + self.shape.per_layer(),
            scales..scales + self.shape.layer_scales(),
        ]
    }

    /// One block of all layers and heads, as bytes.
    pub(crate) fn save(&self, block: u32, into: &mut Vec<u8>) {
        for layer in 0..self.shape.layers {
            for part in self.layer_parts(layer, block) {
                into.extend_from_slice(&self.region.bytes()[part]);
            }
        }
    }

    /// Put back what [`Self::save`] gave; `bytes` has the length of a block.
    pub(crate) fn restore(&mut self, block: u32, mut bytes: &[u8]) {
        for layer in 0..self.shape.layers {
            for part in self.layer_parts(layer, block) {
                let (now, rest) = bytes.split_at(part.len());
                self.region.bytes_mut()[part].copy_from_slice(now);
                bytes = rest;
            }
        }
    }

    /// Copy a block of all layers and heads.
    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        for layer in 0..self.shape.layers {
            let parts = self.layer_parts(layer, from).into_iter();
            for (from, to) in parts.zip(self.layer_parts(layer, to)) {
                self.region.bytes_mut().copy_within(from, to.start);
            }
        }
    }
}

#[cfg(test)]
mod tests;
