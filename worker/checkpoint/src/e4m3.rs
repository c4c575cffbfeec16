//! The 8-bit float E4M3 in its finite form: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; only `S.1111.111`
//! is NaN; the largest value is 448, the smallest subnormal 2⁻⁹ (OCP 8-bit Floating Point Specification, table 1).
//!
//! Every finite code is exactly a bf16, so weights can be widened in registers without loss.

/// The largest finite value.
pub const MAX: f32 = 448.0;

/// The value of every code.
pub const DECODE: [f32; 256] = decode_table();

/// The bits of the bf16 of every code. The two NaN codes map to a quiet NaN.
pub const DECODE_BF16: [u16; 256] = bf16_table();

/// The value of `code`.
#[must_use]
#[expect(clippy::indexing_slicing, reason = "the table has every code")]
pub fn decode(code: u8) -> f32 {
    DECODE[code as usize]
}

/// The code nearest to `value`, ties to even; magnitudes beyond 448 (infinity too) saturate to 448; NaN stays NaN: the
/// conversion with saturation of the OCP 8-bit Floating Point Specification, section 5.2.2. All cases are computed and one is
/// chosen, so that a loop over it becomes vector instructions.
#[must_use]
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "codes have 7 bits below their sign"
)]
pub fn encode(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    let magnitude = bits & 0x7fff_ffff;
    // Below 2^-6 the code is subnormal: its mantissa counts units of 2^-9. Adding 2^14 puts the last mantissa bit of
    // an f32 at 2^-9, so that the addition itself rounds to nearest even.
    let shifted = f32::from_bits(magnitude) + 16384.0;
    let subnormal = shifted.to_bits().wrapping_sub(16384.0f32.to_bits());
    // Round 23 mantissa bits to 3, ties to even; a carry moves into the exponent, which is what rounding up means.
    let rounded = magnitude.wrapping_add(0x0007_ffff + ((magnitude >> 20) & 1));
    let normal = (rounded >> 20).wrapping_sub((127 - 7) << 3);
    let code = if magnitude < (1.0f32 / 64.0).to_bits() {
        subnormal
    } else {
        normal
    };
    let code = if magnitude >= MAX.to_bits() { 0x7e } else { code };
    let code = if magnitude > 0x7f80_0000 { 0x7f } else { code };
    sign | code as u8
}

#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "computed when this is compiled, where what is out of range is an error"
)]
const fn decode_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = decode_bits(code as u8);
        code += 1;
    }
    table
}

const fn decode_bits(code: u8) -> f32 {
    let exponent = (code >> 3) & 0x0f;
    let mantissa = code & 0x07;
    let magnitude = if code & 0x7f == 0x7f {
        f32::NAN
    } else if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        f32::from_bits(((exponent as u32 + 127 - 7) << 23) | ((mantissa as u32) << 20))
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

#[expect(
    clippy::indexing_slicing,
    reason = "computed when this is compiled, where what is out of range is an error"
)]
const fn bf16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut code = 0;
    while code < 256 {
        table[code] = (DECODE[code].to_bits() >> 16) as u16;
        code += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for code in 0..=255u8 {
            assert_eq!(encode(decode(code)), code, "{code:#04x} = {}", decode(code));
            let widened = f32::from_bits(u32::from(DECODE_BF16[code as usize]) << 16);
            assert!(widened == decode(code) || code & 0x7f == 0x7f);
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(decode(0x7e), 448.0);
        assert_eq!(decode(0x01), 2.0f32.powi(-9));
        assert_eq!(decode(0x08), 2.0f32.powi(-6));
        assert_eq!(decode(0xb8), -1.0);
        assert!(decode(0xff).is_nan());
        assert_eq!(encode(f32::INFINITY), 0x7e);
        assert_eq!(encode(-1e30), 0xfe);
        assert_eq!(encode(f32::NAN) & 0x7f, 0x7f);
    }

    /// Between two neighbouring codes: below the middle goes down, above goes up, the middle to the even code.
    #[test]
    fn rounding_is_to_nearest_even() {
        for low in 0..0x7eu8 {
            let (a, b) = (decode(low), decode(low + 1));
            let middle = (a + b) / 2.0;
            let even = if low % 2 == 0 { low } else { low + 1 };
            assert_eq!(encode(middle), even, "middle of {low:#04x}");
            assert_eq!(encode(middle.next_down()), low);
            assert_eq!(encode(middle.next_up()), low + 1);
            assert_eq!(encode(-middle), even | 0x80);
        }
    }
}
