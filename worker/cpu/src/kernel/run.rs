//! Runs tiles by the kernel that was chosen, and proves once that it agrees with the portable one.

use super::pack::{Element, LANES};
use super::tile::{MAX_ROWS, Tile, blocks_at_once};
use super::{Kernel, Level, portable};

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
        let needed = (self.blocks - 1) * self.block_stride + self.steps * self.step_bytes();
        assert!(self.weights.len() >= needed);
        if let Some(upper) = self.upper {
            assert!(upper.len() >= needed);
        }
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
                        upper: self.upper.map(|upper| &upper[done * self.block_stride..]),
                        blocks: now,
                        ..self
                    };
                    let sums = &mut sums[done * self.rows * LANES..][..now * self.rows * LANES];
                    // SAFETY: the kernel's level says that the CPU has the instructions; the lengths were checked above.
                    unsafe { super::avx512::run(part, sums) };
                    done += now;
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { super::avx2::run(self, sums) },
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
        upper: None,
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
