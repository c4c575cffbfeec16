//! A rank's weights in memory.
//!
//! The region starts with a header of four little-endian u64: a magic number, the fingerprint of what the region holds, its length, and
//! a flag that is set when the last tensor is in place. A process that finds a complete region with the right fingerprint
//! uses it as it is.

use std::os::fd::OwnedFd;

use crate::kernel::pack::pack_row;
use crate::layout::{Layout, MatrixAt};
use crate::matmul::Matrix;
use crate::region::Region;

const MAGIC: u64 = u64::from_le_bytes(*b"LLAMERO1");
const COMPLETE: u64 = 0x6574_656c_706d_6f63;

/// The region and the layout it is read by.
pub(crate) struct Weights {
    region: Region,
    layout: Layout,
    fingerprint: u64,
    complete: bool,
}

impl Weights {
    /// Map the region: `file` if there is one, else anonymous memory.
    ///
    /// `fingerprint` names the checkpoint, the shard and the layout. Ask [`Self::is_complete`] whether there is anything
    /// to load.
    pub(crate) fn map(layout: Layout, fingerprint: u64, file: Option<&OwnedFd>) -> std::io::Result<Self> {
        let region = match file {
            Some(file) => Region::of_file(file, layout.bytes)?,
            None => Region::anonymous(layout.bytes)?,
        };
        let region = region.prefer_large_pages();
        let mut weights = Self {
            region,
            layout,
            fingerprint,
            complete: false,
        };
        weights.complete = weights.header() == [MAGIC, fingerprint, weights.layout.bytes as u64, COMPLETE];
        if !weights.complete {
            weights.set_header([MAGIC, fingerprint, weights.layout.bytes as u64, 0]);
        }
        Ok(weights)
    }

    /// Whether every tensor is in place.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Say that every tensor is in place.
    pub(crate) fn set_complete(&mut self) {
        // The flag must not be seen before what it vouches for, should the process die right here.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        self.set_header([MAGIC, self.fingerprint, self.layout.bytes as u64, COMPLETE]);
        self.complete = true;
    }

    fn header(&self) -> [u64; 4] {
        let words: &[u64] = bytemuck::cast_slice(&self.region.bytes()[..32]);
        [words[0], words[1], words[2], words[3]]
    }

    fn set_header(&mut self, header: [u64; 4]) {
        self.region.bytes_mut()[..32].copy_from_slice(bytemuck::cast_slice(&header));
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// f32 `[n]` at `at`.
    pub(crate) fn floats(&self, at: usize, n: usize) -> &[f32] {
        bytemuck::cast_slice(&self.region.bytes()[at..at + n * size_of::<f32>()])
    }

    /// f32 `[n]` at `at`, to fill.
    pub(crate) fn floats_mut(&mut self, at: usize, n: usize) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.region.bytes_mut()[at..at + n * size_of::<f32>()])
    }

    /// The embedding of `token`, bf16 `[hidden]`.
    pub(crate) fn embedding(&self, token: usize, hidden: usize) -> &[u16] {
        let at = self.layout.embedding + token * hidden * size_of::<u16>();
        bytemuck::cast_slice(&self.region.bytes()[at..at + hidden * size_of::<u16>()])
    }

    /// The embedding of `token` as bytes, to fill.
    pub(crate) fn embedding_mut(&mut self, token: usize, hidden: usize) -> &mut [u8] {
        let at = self.layout.embedding + token * hidden * size_of::<u16>();
        &mut self.region.bytes_mut()[at..at + hidden * size_of::<u16>()]
    }

    /// A matrix to multiply with.
    pub(crate) fn matrix(&self, at: MatrixAt) -> Matrix<'_> {
        Matrix {
            element: at.element,
            n: at.n,
            k: at.k,
            weights: &self.region.bytes()[at.weights..][..at.element.packed_bytes(at.n, at.k)],
            scale: self.floats(at.scales, at.n),
        }
    }

    /// Fill part of one row of a matrix: the elements from `from_k`, little-endian.
    pub(crate) fn fill_row(&mut self, at: MatrixAt, row: usize, from_k: usize, bytes: &[u8]) {
        let packed = &mut self.region.bytes_mut()[at.weights..][..at.element.packed_bytes(at.n, at.k)];
        pack_row(at.element, packed, at.k, row, from_k, bytes);
    }
}
