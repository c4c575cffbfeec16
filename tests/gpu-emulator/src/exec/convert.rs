//! `cvt`, one lane at a time.

use super::float::round_to_f32;
use super::lanes::{Lanes, Registers, Value};
use crate::ptx::ir::{AnyReg, AnySrc, Convert, FloatMode, Pair, Reg, Round, Src};
use crate::ptx::types::Type;

/// `d = a` in another type.
pub(super) fn convert(regs: &mut Registers, mask: u32, how: Convert, d: AnyReg, a: AnySrc) {
    let a = regs.any(a);
    if let Some(values) = quick(&a, how) {
        return regs.set_any(d, mask, &values);
    }
    let values: Lanes<u64> = match (how.from.float(), how.to.float()) {
        (false, false) => a.map(|bits| integer(bits, how)),
        (false, true) => a.map(|bits| from_integer(bits, how)),
        (true, false) => a.map(|bits| to_integer(bits, how)),
        (true, true) => a.map(|bits| between_floats(bits, how)),
    };
    regs.set_any(d, mask, &values);
}

/// The conversions that kernels use most, as loops that become vectors.
#[inline(always)]
fn quick(a: &Lanes<u64>, how: Convert) -> Option<Lanes<u64>> {
    if how.mode.sat || how.mode.ftz {
        return None;
    }
    Some(match (how.from, how.to) {
        (Type::U8, _) if !how.to.float() => a.map(|bits| bits & 0xff),
        (Type::U16, Type::U32 | Type::U64) => a.map(|bits| bits & 0xffff),
        (Type::U32, Type::U64 | Type::S64 | Type::U32) | (Type::U64 | Type::S64, Type::U32 | Type::S32) => {
            a.map(|bits| bits & 0xffff_ffff)
        }
        (Type::S32, Type::S64 | Type::U64) => a.map(|bits| i64::from(bits as i32).cast_unsigned()),
        (_, Type::U16) if !how.from.float() && how.from.bytes() > 2 => a.map(|bits| bits & 0xffff),
        (Type::F32, Type::Bf16) => a.map(|bits| u64::from(bf16_of_f32(f32::from_bits(bits as u32)))),
        (Type::Bf16, Type::F32) => a.map(|bits| (bits & 0xffff) << 16),
        (Type::S32, Type::F32) => a.map(|bits| u64::from((bits as i32 as f32).to_bits())),
        (Type::U32, Type::F32) => a.map(|bits| u64::from((bits as u32 as f32).to_bits())),
        _ => return None,
    })
}

/// The value of an integer's bits, sign- or zero-extended.
fn extended(bits: u64, ty: Type) -> i128 {
    let unused = 64 - 8 * ty.bytes();
    if ty.signed() {
        i128::from((bits << unused).cast_signed() >> unused)
    } else {
        i128::from(bits << unused >> unused)
    }
}

/// Smallest and largest value of an integer type.
fn limits(ty: Type) -> (i128, i128) {
    let bits = 8 * ty.bytes();
    if ty.signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

#[inline(always)]
fn integer(bits: u64, how: Convert) -> u64 {
    let value = extended(bits, how.from);
    let value = if how.mode.sat {
        let (low, high) = limits(how.to);
        value.clamp(low, high)
    } else {
        extended(value as u64, how.to)
    };
    value as u64
}

fn from_integer(bits: u64, how: Convert) -> u64 {
    let value = extended(bits, how.from);
    match how.to {
        Type::F32 => {
            let value = value as f32;
            let value = if how.mode.sat {
                value.clamp(0.0, 1.0)
            } else {
                value
            };
            u64::from(value.to_bits())
        }
        _ => (value as f64).to_bits(),
    }
}

/// Out of range gives the nearest limit; NaN gives zero, or the highest bit alone in 64 bits.
fn to_integer(bits: u64, how: Convert) -> u64 {
    let value = number(bits, how.from, how.mode.ftz);
    let whole = integral(value, how.mode.round);
    if whole.is_nan() {
        return if how.to.wide() { 1 << 63 } else { 0 };
    }
    let (low, high) = limits(how.to);
    (whole as i128).clamp(low, high) as u64
}

fn integral(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
    }
}

fn number(bits: u64, ty: Type, ftz: bool) -> f64 {
    match ty {
        Type::F32 => {
            let value = f32::from_bits(bits as u32);
            f64::from(if ftz && value.is_subnormal() {
                0f32.copysign(value)
            } else {
                value
            })
        }
        Type::Bf16 => f64::from(f32::from_bits((bits as u32) << 16)),
        Type::F16 => f64::from(f32_of_f16(bits as u16)),
        _ => f64::from_bits(bits),
    }
}

fn between_floats(bits: u64, how: Convert) -> u64 {
    let mut value = number(bits, how.from, how.mode.ftz);
    if how.integral {
        value = integral(value, how.mode.round);
    }
    if how.mode.sat {
        value = if value.is_nan() {
            0.0
        } else {
            value.clamp(0.0, 1.0)
        };
    }
    match how.to {
        Type::F32 => u64::from(single(value, how.mode).to_bits()),
        Type::Bf16 => u64::from(bf16_of_f64(value)),
        Type::F16 => u64::from(f16_of_f64(value)),
        _ => value.to_bits(),
    }
}

fn single(value: f64, mode: FloatMode) -> f32 {
    let value = round_to_f32(value, 0.0, mode.round);
    if mode.ftz && value.is_subnormal() {
        0f32.copysign(value)
    } else {
        value
    }
}

/// Two floats into one register, the first of PTX's operands in the upper half.
pub(super) fn pack_pair(regs: &mut Registers, mask: u32, pair: Pair, d: Reg, high: Src, low: Src) {
    let (high, low) = (f32::read(regs, high), f32::read(regs, low));
    let values = std::array::from_fn(|lane| {
        if pair == Pair::Bf16 {
            return bf16_of_f32(high[lane]) << 16 | bf16_of_f32(low[lane]);
        }
        let (high, low) = (f64::from(high[lane]), f64::from(low[lane]));
        match pair {
            Pair::Bf16 | Pair::F16 => u32::from(f16_of_f64(high)) << 16 | u32::from(f16_of_f64(low)),
            Pair::E4m3 => u32::from(e4m3_of_f64(high)) << 8 | u32::from(e4m3_of_f64(low)),
        }
    });
    u32::write(regs, d, mask, values);
}

/// Two e4m3 to two f16, exactly.
pub(super) fn unpack_e4m3(regs: &mut Registers, mask: u32, d: Reg, a: Src) {
    let a = u16::read(regs, a);
    let values = a.map(|pair| {
        let part = |code: u16| u32::from(f16_of_f64(f64_of_e4m3(code as u8)));
        part(pair >> 8) << 16 | part(pair)
    });
    u32::write(regs, d, mask, values);
}

/// A float format of 16 bits or fewer.
struct Small {
    mantissa: i32,
    /// Exponent of the smallest normal number.
    smallest: i32,
}

/// `|value|` in units of the format's last place at its magnitude, rounded to even, and the exponent of that unit.
fn quantise(value: f64, format: &Small) -> (f64, i32) {
    let exponent = (((value.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(format.smallest);
    let unit = exponent - format.mantissa;
    ((value.abs() * 2f64.powi(-unit)).round_ties_even(), unit)
}

/// The bits of a value rounded to even. A mantissa that overflows carries into the exponent by addition.
fn encode(value: f64, format: &Small) -> u32 {
    let (units, unit) = quantise(value, format);
    let exponent = (unit + format.mantissa - format.smallest) as u32;
    // A normal number's hidden bit raises the exponent by one, which a subnormal one, without it, does not have.
    (exponent << format.mantissa) + units as u32
}

fn sign(value: f64, at: u32) -> u32 {
    u32::from(value.is_sign_negative()) << at
}

/// The bits of the bf16 nearest to `value`, ties to even.
#[inline(always)]
pub(super) fn bf16_of_f32(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { 0x7fff } else { rounded }
}

/// The bf16 nearest to `value`, ties to even.
pub(super) fn bf16_of_f64(value: f64) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = if value.is_infinite() {
        0x7f80
    } else {
        encode(
            value,
            &Small {
                mantissa: 7,
                smallest: -126,
            },
        )
        .min(0x7f80)
    };
    (bits | sign(value, 15)) as u16
}

/// The f16 nearest to `value`, ties to even.
pub(super) fn f16_of_f64(value: f64) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = if value.is_infinite() {
        0x7c00
    } else {
        encode(
            value,
            &Small {
                mantissa: 10,
                smallest: -14,
            },
        )
        .min(0x7c00)
    };
    (bits | sign(value, 15)) as u16
}

/// The e4m3 nearest to `value`, at most ±448; NaN stays NaN.
fn e4m3_of_f64(value: f64) -> u8 {
    if value.is_nan() {
        return 0x7f;
    }
    let bits = encode(
        value.clamp(-448.0, 448.0),
        &Small {
            mantissa: 3,
            smallest: -6,
        },
    );
    (bits | sign(value, 7)) as u8
}

fn f64_of_e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-9),
        _ => (8.0 + mantissa) * 2f64.powi(exponent - 10),
    };
    if code & 0x80 != 0 { -size } else { size }
}

pub(super) fn f32_of_f16(bits: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    let size = match exponent {
        0 => mantissa * 2f32.powi(-24),
        31 if mantissa > 0.0 => f32::NAN,
        31 => f32::INFINITY,
        _ => (1024.0 + mantissa) * 2f32.powi(exponent - 25),
    };
    if bits & 0x8000 != 0 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_formats_hold_their_own_values() {
        for code in 0..=u16::MAX {
            let bf16 = f64::from(f32::from_bits(u32::from(code) << 16));
            if !bf16.is_nan() {
                assert_eq!(bf16_of_f64(bf16), code);
            }
            let f16 = f64::from(f32_of_f16(code));
            if !f16.is_nan() {
                assert_eq!(f16_of_f64(f16), code);
            }
        }
        for code in 0..=u8::MAX {
            let value = f64_of_e4m3(code);
            if !value.is_nan() {
                assert_eq!(e4m3_of_f64(value), code, "{value}");
            }
        }
    }

    #[test]
    fn halves_go_to_even() {
        assert_eq!(bf16_of_f64(1.0 + 1.0 / 256.0), 0x3f80);
        assert_eq!(bf16_of_f64(1.0 + 3.0 / 256.0), 0x3f82);
        assert_eq!(bf16_of_f64(3.4e38), 0x7f80);
        for value in [
            1.0f32 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            3.4e38,
            1e-45,
            -1e-40,
            0.1,
            -0.0,
        ] {
            assert_eq!(
                bf16_of_f32(value) as u16,
                bf16_of_f64(f64::from(value)),
                "{value}"
            );
        }
        assert_eq!(f16_of_f64(65_520.0), 0x7c00);
        assert_eq!(e4m3_of_f64(1000.0), 0x7e);
        assert_eq!(e4m3_of_f64(2f64.powi(-10)), 0);
    }

    #[test]
    fn integers_saturate_only_when_asked() {
        let how = |from, to, sat| Convert {
            to,
            from,
            mode: FloatMode {
                sat,
                ..FloatMode::default()
            },
            integral: false,
        };
        assert_eq!(integer(300, how(Type::U32, Type::U8, false)), 44);
        assert_eq!(integer(300, how(Type::U32, Type::U8, true)), 255);
        assert_eq!(integer(0xff, how(Type::S8, Type::S32, false)) as u32, u32::MAX);
        let minus_three = u64::from((-2.5f32).to_bits());
        let whole = Convert {
            integral: true,
            ..how(Type::F32, Type::S32, false)
        };
        assert_eq!(to_integer(minus_three, whole) as i32, -2);
    }
}
