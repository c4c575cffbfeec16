//! Keys and values as E4M3 with a scale of their own.
//!
//! The scale of a row is a power of two, kept as its biased exponent in a byte: the E8M0 of the OCP Microscaling Formats
//! Specification (version 1.0, section 5.4.1), of which 255 is NaN. Multiplying by it is exact, so a row that comes back is what
//! the codes say, to the bit, in whatever place of a sum the scale is multiplied in. It is the smallest that takes the
//! row's largest magnitude to 448 or less, so nothing saturates.

use super::multiversion;
use llamero_checkpoint::e4m3;

/// The byte of a scale that is NaN.
const NAN: u8 = 0xff;
/// Bits of an infinity; those of a NaN are above.
const INFINITY: u32 = 0x7f80_0000;
/// Added to the bits of a magnitude, it carries into the exponent where the mantissa is above 1.75, that of 448.
const ABOVE_MANTISSA: u32 = 0x001f_ffff;
/// The exponent of 448.
const TOP_EXPONENT: u32 = 8;

/// The value of a scale. The zero of memory that was never written is zero.
#[inline(always)]
pub(crate) fn scale(byte: u8) -> f32 {
    let power = f32::from_bits(u32::from(byte) << 23);
    if byte == NAN { f32::NAN } else { power }
}

multiversion! {
    /// Round a row to `codes` of the same length, each to the nearest of the row's own scale, ties to even; gives the scale. A
    /// row that holds a NaN or an infinity has the scale NaN, so that whoever attends to it sees a NaN, as with bf16.
    pub(crate) fn quantize(values: &[f32], codes: &mut [u8]) -> u8 {
        // Magnitudes order like their bits, with infinity and NaN above all numbers.
        let largest = values.iter().fold(0, |most: u32, value| most.max(value.to_bits() & 0x7fff_ffff));
        if largest >= INFINITY {
            codes.fill(0);
            return NAN;
        }
        let exponent = ((largest + ABOVE_MANTISSA) >> 23).saturating_sub(TOP_EXPONENT).max(1);
        // Between 2^-120 and 2^126: exact, and so is the product, but where it is far below what a code can tell from zero.
        let inverse = f32::from_bits((254 - exponent) << 23);
        for (code, value) in codes.iter_mut().zip(values) {
            *code = e4m3::encode(value * inverse);
        }
        exponent as u8
    }
}

#[cfg(test)]
mod tests;
