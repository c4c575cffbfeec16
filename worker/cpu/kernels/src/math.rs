//! Elementary functions with a fixed order of operations, so that they give the same bits on every CPU.

/// Round to bf16, nearest even. A NaN stays a NaN.
#[inline(always)]
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 {
        nan
    } else {
        rounded
    }) as u16
}

/// Widen from bf16, exactly.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Two bf16 as the kernels read them: the even element in the low half.
#[inline(always)]
pub fn pair(even: f32, odd: f32) -> u32 {
    u32::from(to_bf16(even)) | u32::from(to_bf16(odd)) << 16
}

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub fn flush(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 {
        bits & 0x8000_0000
    } else {
        bits
    })
}

/// `sum + odd product, + even product`, as `VDPBF16PS` does one lane. The factors must be flushed already.
#[inline(always)]
pub fn dot_pair(sum: f32, a_even: f32, a_odd: f32, b_even: f32, b_odd: f32) -> f32 {
    let sum = flush(a_odd.mul_add(b_odd, flush(sum)));
    flush(a_even.mul_add(b_even, sum))
}

/// `e^x`, relative error below 2⁻²², for `x` clamped to `-87 ..= 88`.
///
/// Range reduction by multiples of ln 2 in two parts (Cody and Waite), then the Taylor polynomial of degree 7 by Horner.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding 1.5·2²³ leaves the rounded integer in the low bits.
    const SHIFT: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that a NaN stays one.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.0 / 5040.0;
    p = r.mul_add(p, 1.0 / 720.0);
    p = r.mul_add(p, 1.0 / 120.0);
    p = r.mul_add(p, 1.0 / 24.0);
    p = r.mul_add(p, 1.0 / 6.0);
    p = r.mul_add(p, 0.5);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 1.0);
    let power = shifted
        .to_bits()
        .wrapping_sub(SHIFT.to_bits())
        .wrapping_shl(23)
        .wrapping_add(1.0f32.to_bits());
    p * f32::from_bits(power)
}

/// Natural logarithm of a positive finite f32, in f64, from basic operations only (the platform's `ln` may differ in the
/// last bit): `ln m = 2 artanh((m-1)/(m+1))` with the mantissa `m` in `√½ ..= √2`.
pub fn ln(value: f32) -> f64 {
    let bits = f64::from(value).to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 1.0f64.to_bits());
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    // s ≤ 0.172, so s²⁶ is below 2⁻⁶⁵.
    for k in (0..13).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.4e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1.7e-38);
    }

    #[test]
    fn ln_is_close() {
        for i in 1..100_000 {
            let x = i as f32 * 0.37;
            assert!(
                (ln(x) - f64::from(x).ln()).abs() < 1e-14 * (1.0 + f64::from(x).ln().abs()),
                "ln({x})"
            );
        }
    }

    #[test]
    fn bf16_rounding_is_that_of_half() {
        for i in 0..2_000_000u32 {
            let value = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let want = half::bf16::from_f32(value);
            assert!(
                to_bf16(value) == want.to_bits()
                    || want.is_nan() && half::bf16::from_bits(to_bf16(value)).is_nan()
            );
        }
    }
}
