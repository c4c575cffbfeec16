//! Keys and values as E4M3 with a scale of their own.
//!
//! A row's scale is its largest magnitude over 448, so that this element, which in keys is often far above all others, comes back
//! as it was, and nothing saturates: "dynamic per-token quantisation" of PyTorch and vLLM. Elements are rounded as the OCP 8-bit
//! Floating Point Specification says (see [`e4m3::encode`]).

use super::multiversion;
use llamero_checkpoint::e4m3;

/// Bits of an infinity; those of a NaN are above.
const INFINITY: u32 = 0x7f80_0000;
/// What counts as the largest magnitude of a row where all are smaller, 2^-100: far below what keys and values are made of, and
/// 448 over it is a number.
const SMALLEST: f32 = 1.0 / (1u128 << 100) as f32;

multiversion! {
    /// Round a row to `codes` of the same length, each to the nearest of the row's own scale, ties to even; gives the scale. A
    /// row that holds a NaN or an infinity has the scale NaN, so that whoever attends to it sees a NaN, as with bf16.
    pub fn quantize(values: &[f32], codes: &mut [u8]) -> f32 {
        // Magnitudes order like their bits, with infinity and NaN above all numbers.
        let largest = values.iter().fold(0, |most: u32, value| most.max(value.to_bits() & 0x7fff_ffff));
        if largest >= INFINITY {
            codes.fill(0);
            return f32::NAN;
        }
        let largest = f32::from_bits(largest.max(SMALLEST.to_bits()));
        let inverse = e4m3::MAX / largest;
        for (code, value) in codes.iter_mut().zip(values) {
            *code = e4m3::encode(value * inverse);
        }
        largest / e4m3::MAX
    }
}

#[cfg(test)]
mod tests;
