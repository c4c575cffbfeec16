//! The dot-product tile: the one primitive behind matrix products and attention.

use super::pack::Element;

/// Rows of inputs in one tile at most.
pub const MAX_ROWS: usize = 8;

/// `sums[block][row][lane] += Σ over steps of inputs[row][step] · weights[block][step][lane]`, one sequential f32 chain
/// along the steps per sum.
#[derive(Debug, Clone, Copy)]
pub struct Tile<'a> {
    /// Type of `weights`.
    pub element: Element,
    /// Packed steps (see [`super::pack`]); block `b` starts at byte `b * block_stride`.
    pub weights: &'a [u8],
    /// Where lanes 16 to 31 of every step lie when they are not among lanes 0 to 15; a step of either is then half as
    /// long, its lanes one after the other.
    pub upper: Option<&'a [u8]>,
    /// Bytes from one block to the next.
    pub block_stride: usize,
    /// Blocks of 32 outputs.
    pub blocks: usize,
    /// Steps of two inputs each.
    pub steps: usize,
    /// Pairs of bf16 inputs; row `r` starts at `r * input_stride`.
    pub inputs: &'a [u32],
    /// Pairs from one row to the next.
    pub input_stride: usize,
    /// Rows, at most [`MAX_ROWS`].
    pub rows: usize,
}

impl Tile<'_> {
    /// Bytes from one step to the next.
    pub fn step_bytes(&self) -> usize {
        match self.upper {
            Some(_) => self.element.step_bytes() / 2,
            None => self.element.step_bytes(),
        }
    }
}

/// Blocks that a tile of that many rows computes at once: enough independent chains to hide the latency, and no more
/// sums than registers.
pub const fn blocks_at_once(rows: usize) -> usize {
    match rows {
        0..=2 => 4,
        3..=4 => 2,
        _ => 1,
    }
}
