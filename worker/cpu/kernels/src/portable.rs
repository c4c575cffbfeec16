//! The dot-product tile in plain Rust: the definition that the fast kernels must equal bit for bit.

use super::math::{dot_pair, flush, from_bf16};
use super::multiversion;
use super::pack::{Element, LANES};
use super::tile::Tile;

multiversion! {
    /// See [`Tile`].
    pub(super) fn run(tile: Tile<'_>, sums: &mut [f32]) {
        let step_bytes = tile.step_bytes();
        for block in 0..tile.blocks {
            let weights = &tile.weights[block * tile.block_stride..];
            let upper = tile.upper.map(|upper| &upper[block * tile.block_stride..]);
            let sums = &mut sums[block * tile.rows * LANES..][..tile.rows * LANES];
            for (step, bytes) in weights[..tile.steps * step_bytes].chunks_exact(step_bytes).enumerate() {
                let halves = match upper {
                    Some(upper) => (bytes, &upper[step * step_bytes..][..step_bytes]),
                    None => bytes.split_at(step_bytes / 2),
                };
                let (even, odd) = match tile.element {
                    Element::Bf16 => widen(halves),
                    Element::E4m3 if upper.is_some() => widen_e4m3_halves(halves),
                    Element::E4m3 => widen_e4m3(bytes),
                };
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

/// The weights of one step of bf16 as f32: of the even and of the odd input. Lanes 0 to 15, and 16 to 31.
#[inline(always)]
fn widen(halves: (&[u8], &[u8])) -> ([f32; LANES], [f32; LANES]) {
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    for (from, bytes) in [(0, halves.0), (LANES / 2, halves.1)] {
        for (lane, pair) in bytes.as_chunks::<4>().0.iter().take(LANES / 2).enumerate() {
            even[from + lane] = flush(from_bf16(u16::from_le_bytes([pair[0], pair[1]])));
            odd[from + lane] = flush(from_bf16(u16::from_le_bytes([pair[2], pair[3]])));
        }
    }
    (even, odd)
}

/// The same of E4M3.
#[inline(always)]
fn widen_e4m3(bytes: &[u8]) -> ([f32; LANES], [f32; LANES]) {
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        even[lane] = e4m3(bytes[Element::E4m3.index(lane, 0)]);
        odd[lane] = e4m3(bytes[Element::E4m3.index(lane, 1)]);
    }
    (even, odd)
}

/// The same of E4M3 whose lanes 16 to 31 lie elsewhere.
#[inline(always)]
fn widen_e4m3_halves(halves: (&[u8], &[u8])) -> ([f32; LANES], [f32; LANES]) {
    let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
    for (from, bytes) in [(0, halves.0), (LANES / 2, halves.1)] {
        for (lane, pair) in bytes.as_chunks::<2>().0.iter().take(LANES / 2).enumerate() {
            even[from + lane] = e4m3(pair[0]);
            odd[from + lane] = e4m3(pair[1]);
        }
    }
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
