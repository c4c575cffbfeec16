//! What measuring needs beside the kernels that serve.

use cudarc::driver::CudaSlice;

use super::launch::{Launch, Push as _};
use super::{Element, OpError, Ops, Weights, at_least, shape};
use crate::source::Source;
use crate::weights::ModelWeights;

/// Bits of random E4M3 codes: none of them is NaN.
const E4M3_BITS: u32 = 0xb7b7_b7b7;
/// Bits of random bf16 between 2⁻⁷ and 2⁻⁶, of both signs.
const BF16_KEEP: u32 = 0x807f_807f;
const BF16_SET: u32 = 0x3c00_3c00;
/// Scales that keep rows of random codes near 1.
const SCALE: f32 = 0.0002;
/// Most blocks of a launch that touches much memory.
const BLOCKS: u64 = 4096;

/// Blocks for so many threads' work.
fn blocks(work: u64, threads: u64) -> u32 {
    work.div_ceil(threads).clamp(1, BLOCKS) as u32
}

impl Ops {
    /// `words` words at `to`, random where `keep` says so.
    fn fill_random(
        &mut self,
        to: u64,
        words: u64,
        seed: u32,
        (keep, set): (u32, u32),
    ) -> Result<(), OpError> {
        let kernel = self.kernel(Source::Measure, "fill_random")?;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(&to).arg(&words).arg(&seed).arg(&keep).arg(&set);
        // SAFETY: the arguments are the kernel's; callers give buffers of whole words.
        unsafe { launch.launch(shape((blocks(words, 256), 1, 1), 256, 0)) }?;
        Ok(())
    }

    fn fill_floats(&mut self, to: &CudaSlice<f32>, value: f32) -> Result<(), OpError> {
        self.fill_random(self.address(to), to.len() as u64, 0, (0, value.to_bits()))
    }

    /// Random values of a matrix, with small scales.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn fill_values(&mut self, matrix: &Weights, seed: u32) -> Result<(), OpError> {
        let bits = match matrix.element {
            Element::E4m3 => (E4M3_BITS, 0),
            Element::Bf16 => (BF16_KEEP, BF16_SET),
        };
        let words = matrix.values.len() as u64 / 4;
        self.fill_random(self.address(&matrix.values), words, seed, bits)?;
        match &matrix.scales {
            Some(scales) => self.fill_floats(scales, SCALE),
            None => Ok(()),
        }
    }

    /// Random weights, whose activations stay finite.
    pub(crate) fn fill_weights(&mut self, weights: &ModelWeights) -> Result<(), OpError> {
        for (seed, matrix) in (1u32..).zip(weights.matrices()) {
            self.fill_values(matrix, seed)?;
        }
        if let Some(embedding) = &weights.embedding {
            let words = embedding.as_slice().len() as u64 / 2;
            self.fill_random(embedding.address(), words, 0, (BF16_KEEP, BF16_SET))?;
        }
        weights.norms().try_for_each(|norm| self.fill_floats(norm, 1.0))
    }

    /// Read a buffer once, as fast as the memory gives it. `sum` is a word that nobody reads.
    ///
    /// # Errors
    /// [`OpError`].
    pub fn read_all(&mut self, from: &CudaSlice<u8>, sum: &mut CudaSlice<u32>) -> Result<(), OpError> {
        at_least("the sum", sum, 1)?;
        let kernel = self.kernel(Source::Measure, "read_all")?;
        let count = from.len() as u64 / 16;
        let mut launch = Launch::new(&kernel, &self.stream);
        launch.arg(from).arg(&count).arg(sum);
        // SAFETY: the arguments are the kernel's, and whole pieces of 16 bytes are read.
        unsafe { launch.launch(shape((blocks(count.div_ceil(4), 512), 1, 1), 512, 0)) }?;
        Ok(())
    }
}
