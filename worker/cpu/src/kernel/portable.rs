//! The dot-product tile in plain Rust: the definition that the fast kernels must equal bit for bit.

use super::math::{dot_pair, flush, from_bf16};
use super::multiversion;
use super::pack::{Element, LANES};
use super::tile::Tile;

multiversion! {
    /// See [`Tile`].
    pub(super) fn run(tile: Tile<'_>, sums: &mut [f32]) {
        let step_bytes = tile.element.step_bytes();
        for block in 0..tile.blocks {
            let weights = &tile.weights[block * tile.block_stride..];
            let sums = &mut sums[block * tile.rows * LANES..][..tile.rows * LANES];
            for (step, bytes) in weights[..tile.steps * step_bytes].chunks_exact(step_bytes).enumerate() {
                let (even, odd) = widen(tile.element, bytes);
                for (row, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                    let input = tile.inputs[row * tile.input_stride + step];
                    let a_even = flush(from_bf16(input as u16));
                    let a_odd = flush(from_bf16((input >> 16) as u16));
                    for lane in 0..LANES {
                        sums[lane] = dot_pair(sums[lane], a_even, a_odd, even[lane], odd[lane]);
                    }
                }
            }
        }
    }
}

/// The weights of one step as f32: of the even and of the odd input.
#[inline(always)]
fn widen(element: Element, bytes: &[u8]) -> ([f32; LANES], [f32; LANES]) {
    let mut parts = [[0.0; LANES]; 2];
    for (e, part) in parts.iter_mut().enumerate() {
        for (o, value) in part.iter_mut().enumerate() {
            let index = element.index(o, e);
            *value = match element {
                Element::Bf16 => flush(from_bf16(u16::from_le_bytes([
                    bytes[2 * index],
                    bytes[2 * index + 1],
                ]))),
                Element::E4m3 => e4m3(bytes[index]),
            };
        }
    }
    let [even, odd] = parts;
    (even, odd)
}

/// The value of an E4M3 code. Codes of NaN give ±480, what the next step of the format's grid would be: loading refuses them.
#[inline(always)]
pub(super) const fn e4m3(code: u8) -> f32 {
    let exponent = (code >> 3) & 0x0f;
    let mantissa = code & 7;
    let magnitude = if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        f32::from_bits(((exponent as u32 + 120) << 23) | ((mantissa as u32) << 20))
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}
