//! Runs tiles by the kernel that was chosen, and proves once that it agrees with the portable one.

use super::pack::{Element, LANES};
use super::tile::{MAX_ROWS, Tile, blocks_at_once};
use super::{Kernel, Level, portable};

impl Tile<'_> {
    /// Add to `sums` `[blocks][rows][32]`.
    ///
    /// # Panics
    /// When the slices are shorter than the shape says.
    pub fn run(self, kernel: Kernel, sums: &mut [f32]) {
        if self.blocks == 0 || self.rows == 0 || self.steps == 0 {
            return;
        }
        assert!(self.rows <= MAX_ROWS);
        // This crate is compiled without overflow checks, and what follows trusts in these lengths.
        let covers = |length: usize, count: usize, stride: usize, last: usize| {
            let start = (count - 1).checked_mul(stride);
            start
                .and_then(|start| start.checked_add(last))
                .is_some_and(|needed| length >= needed)
        };
        let bytes = self.steps.saturating_mul(self.step_bytes());
        assert!(covers(self.weights.len(), self.blocks, self.block_stride, bytes));
        if let Some(upper) = self.upper {
            assert!(covers(upper.len(), self.blocks, self.block_stride, bytes));
        }
        assert!(covers(
            self.inputs.len(),
            self.rows,
            self.input_stride,
            self.steps
        ));
        assert!(covers(
            sums.len(),
            self.blocks,
            self.rows * LANES,
            self.rows * LANES
        ));
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

/// Whether the CPU's dot products have the order and rounding that [`super::math::dot_pair`] defines, for every way in which weights
/// lie and every number of rows; a CPU where they have not must not join a group with others.
pub(super) fn agrees_with_portable(kernel: Kernel) -> bool {
    const STEPS: usize = 24;
    const BLOCKS: usize = 2;
    let mut state = 1u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.rotate_left(16)
    };
    // Exponents near 1, so that rounding shows, and a few subnormals.
    let mut value = |i: usize| {
        let exponent = if i.is_multiple_of(37) {
            0
        } else {
            120 + (i % 12) as u16
        };
        (next() & 0x807f) as u16 | exponent << 7
    };
    let weights: Vec<u8> = (0..BLOCKS * STEPS * 2 * LANES)
        .flat_map(|i| value(i).to_le_bytes())
        .collect();
    let inputs: Vec<u32> = (0..MAX_ROWS * STEPS)
        .map(|i| u32::from(value(i)) | u32::from(value(i + 5)) << 16)
        .collect();
    let agrees = |element: Element, apart: bool, rows: usize| {
        let tile = Tile {
            element,
            weights: &weights,
            upper: apart.then_some(&weights[64..]),
            block_stride: STEPS * element.step_bytes() / if apart { 2 } else { 1 },
            blocks: BLOCKS,
            steps: STEPS,
            inputs: &inputs,
            input_stride: STEPS,
            rows,
        };
        let mut fast = [1e-38; BLOCKS * MAX_ROWS * LANES];
        let mut slow = fast;
        tile.run(kernel, &mut fast);
        portable::run(Kernel(Level::Portable), tile, &mut slow);
        fast.map(f32::to_bits) == slow.map(f32::to_bits)
    };
    [Element::Bf16, Element::E4m3].into_iter().all(|element| {
        [false, true]
            .into_iter()
            .all(|apart| (1..=MAX_ROWS).all(|rows| agrees(element, apart, rows)))
    })
}

#[cfg(test)]
mod tests;
