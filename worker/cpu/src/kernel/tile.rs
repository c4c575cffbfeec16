//! The dot-product tile: the one primitive behind matrix products and attention.

use super::pack::{Element, LANES};
use super::{Kernel, Level, portable};

/// Rows of inputs in one tile at most.
pub(crate) const MAX_ROWS: usize = 8;

/// `sums[block][row][lane] += Σ over steps of inputs[row][step] · weights[block][step][lane]`, one sequential f32 chain
/// along the steps per sum.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tile<'a> {
    /// Type of `weights`.
    pub(crate) element: Element,
    /// Packed steps (see [`super::pack`]); block `b` starts at byte `b * block_stride`.
    pub(crate) weights: &'a [u8],
    /// Bytes from one block to the next.
    pub(crate) block_stride: usize,
    /// Blocks of 32 outputs.
    pub(crate) blocks: usize,
    /// Steps of two inputs each.
    pub(crate) steps: usize,
    /// Pairs of bf16 inputs; row `r` starts at `r * input_stride`.
    pub(crate) inputs: &'a [u32],
    /// Pairs from one row to the next.
    pub(crate) input_stride: usize,
    /// Rows, at most [`MAX_ROWS`].
    pub(crate) rows: usize,
}

/// Blocks that a tile of that many rows computes at once: enough independent chains to hide the latency, and no more
/// sums than registers.
pub(crate) const fn blocks_at_once(rows: usize) -> usize {
    match rows {
        0..=2 => 4,
        3..=4 => 2,
        _ => 1,
    }
}

impl Tile<'_> {
    /// Add to `sums` `[blocks][rows][32]`.
    ///
    /// # Panics
    /// When the slices are shorter than the shape says.
    pub(crate) fn run(self, kernel: Kernel, sums: &mut [f32]) {
        if self.blocks == 0 || self.rows == 0 || self.steps == 0 {
            return;
        }
        assert!(self.rows <= MAX_ROWS);
        assert!(
            self.weights.len()
                >= (self.blocks - 1) * self.block_stride + self.steps * self.element.step_bytes()
        );
        assert!(self.inputs.len() >= (self.rows - 1) * self.input_stride + self.steps);
        assert!(sums.len() >= self.blocks * self.rows * LANES);
        match kernel.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                let group = blocks_at_once(self.rows);
                let mut done = 0;
                while done < self.blocks {
                    // Powers of two only, because those are the tiles that are compiled.
                    let now = group.min(1 << (self.blocks - done).ilog2());
                    let part = Tile {
                        weights: &self.weights[done * self.block_stride..],
                        blocks: now,
                        ..self
                    };
                    let sums = &mut sums[done * self.rows * LANES..][..now * self.rows * LANES];
                    // SAFETY: the kernel's level says that the CPU has the instructions; the lengths were checked above.
                    unsafe { super::avx512::run(part, sums) };
                    done += now;
                }
            }
            _ => portable::run(kernel, self, sums),
        }
    }
}

/// Whether the CPU's dot product has the order and rounding that [`super::math::dot_pair`] defines; a CPU where it has not
/// must not join a group with others.
pub(super) fn agrees_with_portable(kernel: Kernel) -> bool {
    let mut state = 1u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.rotate_left(16)
    };
    // Exponents near 1, so that rounding shows, and a few subnormals.
    let mut value = |i: usize| {
        (next() & 0x807f) as u16
            | if i.is_multiple_of(37) {
                0
            } else {
                (120 + (i % 12) as u16) << 7
            }
    };
    let weights: Vec<u8> = (0..64 * 64).flat_map(|i| value(i).to_le_bytes()).collect();
    let inputs: Vec<u32> = (0..64)
        .map(|i| u32::from(value(i)) | u32::from(value(i + 5)) << 16)
        .collect();
    let tile = Tile {
        element: Element::Bf16,
        weights: &weights,
        block_stride: 0,
        blocks: 1,
        steps: 64,
        inputs: &inputs,
        input_stride: 0,
        rows: 1,
    };
    let mut fast = [1e-38; LANES];
    let mut slow = fast;
    tile.run(kernel, &mut fast);
    portable::run(Kernel(Level::Portable), tile, &mut slow);
    fast.map(f32::to_bits) == slow.map(f32::to_bits)
}

#[cfg(test)]
mod tests;
