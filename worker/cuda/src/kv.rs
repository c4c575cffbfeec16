//! The paged KV cache of one rank on the device.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _, result};
use llamero_engine::BackendError;

use crate::error::refused;
use crate::ops::Cache;
use crate::pinned::Pinned;
use crate::weights::room;

/// Keys and values of every layer, bf16: `[block][kv head][token][dim]` each. One block more than are told of: rows that
/// only fill up a batch write there.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<[CudaSlice<u16>; 2]>,
    /// Elements of a block of keys.
    elements: usize,
    stream: Arc<CudaStream>,
}

impl KvCache {
    pub(crate) fn new(
        stream: &Arc<CudaStream>,
        layers: usize,
        blocks: usize,
        elements: usize,
    ) -> Result<Self, BackendError> {
        let half = || room::<u16>(stream, (blocks + 1) * elements).map_err(refused);
        let layers = (0..layers).map(|_| Ok([half()?, half()?]));
        Ok(Self {
            layers: layers.collect::<Result<_, BackendError>>()?,
            elements,
            stream: Arc::clone(stream),
        })
    }

    pub(crate) fn layer(&self, layer: usize) -> Cache<'_> {
        let [keys, values] = &self.layers[layer];
        Cache { keys, values }
    }

    /// Bytes of a block over all layers.
    pub(crate) fn block_bytes(&self) -> usize {
        2 * 2 * self.layers.len() * self.elements
    }

    /// Addresses of a block's parts, in the order in which it is saved.
    fn parts(&self, block: u32) -> impl Iterator<Item = u64> + '_ {
        let skip = 2 * (block as usize * self.elements) as u64;
        let halves = self.layers.iter().flatten();
        halves.map(move |half| half.device_ptr(&self.stream).0 + skip)
    }

    /// Enqueue the copy of a block.
    pub(crate) fn copy(&self, from: u32, to: u32) -> Result<(), BackendError> {
        for (from, to) in self.parts(from).zip(self.parts(to)) {
            // SAFETY: both blocks were checked to be there.
            unsafe { result::memcpy_dtod_async(to, from, 2 * self.elements, self.stream.cu_stream()) }
                .map_err(refused)?;
        }
        Ok(())
    }

    /// Wait for what is enqueued, and read a block.
    pub(crate) fn save(&self, block: u32, into: &mut Vec<u8>) -> Result<(), BackendError> {
        let part = 2 * self.elements;
        let mut staging = Pinned::<u8>::new(self.stream.context(), self.block_bytes()).map_err(refused)?;
        for (from, to) in self
            .parts(block)
            .zip(staging.as_mut_slice().chunks_exact_mut(part))
        {
            // SAFETY: the block was checked to be there, and the buffer lives until the stream is waited for.
            unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }.map_err(refused)?;
        }
        self.stream.synchronize().map_err(refused)?;
        into.extend_from_slice(staging.as_slice());
        Ok(())
    }

    /// Put back what [`Self::save`] gave; `bytes` has the length of a block.
    pub(crate) fn restore(&self, block: u32, bytes: &[u8]) -> Result<(), BackendError> {
        let part = 2 * self.elements;
        for (to, from) in self.parts(block).zip(bytes.chunks_exact(part)) {
            // SAFETY: the block was checked to be there, and the bytes live until the stream is waited for.
            unsafe { result::memcpy_htod_async(to, from, self.stream.cu_stream()) }.map_err(refused)?;
        }
        self.stream.synchronize().map_err(refused)
    }
}
