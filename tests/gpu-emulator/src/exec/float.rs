//! Float arithmetic, by lane.
//!
//! IEEE operations are exact and rounded as asked. The approximations of real hardware (`ex2`, `rsqrt`, `div.approx` and
//! the like) are computed more precisely than it does; NaNs carry the host's bits.

use super::lanes::{Registers, Value, map1, map2, map3};
use crate::ptx::ir::{Float1, Float2, FloatMode, Reg, Round, Src};
use crate::ptx::types::Type;

#[inline(always)]
fn flush(x: f32, ftz: bool) -> f32 {
    if ftz && x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

#[inline(always)]
fn finish(x: f32, mode: FloatMode) -> f32 {
    let x = flush(x, mode.ftz);
    match mode.sat {
        // NaN becomes zero.
        true if x.is_nan() => 0.0,
        true => x.clamp(0.0, 1.0),
        false => x,
    }
}

/// `a × b + c` rounded once, in the given direction.
pub(super) fn fma_directed(a: f32, b: f32, c: f32, round: Round) -> f32 {
    // The product of two floats fits a double exactly; the sum's rounding error is found by Knuth's TwoSum.
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let high = sum - product;
    let error = (product - (sum - high)) + (c - high);
    round_to_f32(sum, error, round)
}

/// `sum + error` as an f32, where `error` is below the last place of `sum`.
pub(super) fn round_to_f32(sum: f64, error: f64, round: Round) -> f32 {
    let near = sum as f32;
    if !near.is_finite() && !sum.is_finite() {
        return near;
    }
    let distance = (f64::from(near) - sum) - error;
    let (above, below) = (distance > 0.0, distance < 0.0);
    let negative = sum < 0.0;
    match round {
        Round::Nearest => near,
        Round::Down if above => near.next_down(),
        Round::Up if below => near.next_up(),
        Round::Zero if above && !negative => near.next_down(),
        Round::Zero if below && negative => near.next_up(),
        _ => near,
    }
}

/// `d = a × b + c`.
#[inline(always)]
pub(super) fn fma(regs: &mut Registers, mask: u32, ty: Type, mode: FloatMode, d: Reg, abc: (Src, Src, Src)) {
    if ty == Type::F64 {
        return map3(regs, mask, d, abc, f64::mul_add);
    }
    if mode == FloatMode::default() {
        return map3(regs, mask, d, abc, f32::mul_add);
    }
    map3(regs, mask, d, abc, |a: f32, b: f32, c: f32| {
        let [a, b, c] = [a, b, c].map(|x| flush(x, mode.ftz));
        let exact = match mode.round {
            Round::Nearest => a.mul_add(b, c),
            round => fma_directed(a, b, c, round),
        };
        finish(exact, mode)
    });
}

/// `d = a op b`.
#[inline(always)]
pub(super) fn two(
    regs: &mut Registers,
    mask: u32,
    op: Float2,
    ty: Type,
    mode: FloatMode,
    d: Reg,
    ab: (Src, Src),
) {
    if ty == Type::F64 {
        return map2(regs, mask, d, ab, double(op));
    }
    if mode == FloatMode::default() {
        match op {
            Float2::Add => return map2(regs, mask, d, ab, |a: f32, b: f32| a + b),
            Float2::Sub => return map2(regs, mask, d, ab, |a: f32, b: f32| a - b),
            Float2::Mul => return map2(regs, mask, d, ab, |a: f32, b: f32| a * b),
            _ => {}
        }
    }
    map2(regs, mask, d, ab, |a: f32, b: f32| {
        finish(
            single(op, flush(a, mode.ftz), flush(b, mode.ftz), mode.round),
            mode,
        )
    });
}

fn single(op: Float2, a: f32, b: f32, round: Round) -> f32 {
    match (op, round) {
        (Float2::Add, Round::Nearest) => a + b,
        (Float2::Sub, Round::Nearest) => a - b,
        (Float2::Mul, Round::Nearest) => a * b,
        (Float2::Add, round) => fma_directed(a, 1.0, b, round),
        (Float2::Sub, round) => fma_directed(a, 1.0, -b, round),
        (Float2::Mul, round) => fma_directed(a, b, 0f32.copysign(a * b), round),
        (Float2::Div, _) => a / b,
        (Float2::Min, _) => least(a, b),
        (Float2::Max, _) => -least(-a, -b),
        (Float2::MinNan | Float2::MaxNan, _) if a.is_nan() || b.is_nan() => f32::NAN,
        (Float2::MinNan, _) => least(a, b),
        (Float2::MaxNan, _) => -least(-a, -b),
        // PTX takes the sign of the first operand and the value of the second.
        (Float2::CopySign, _) => b.copysign(a),
    }
}

/// The smaller one; a number wins over NaN, and -0 is smaller than +0.
fn least(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    if a.total_cmp(&b).is_le() { a } else { b }
}

fn double(op: Float2) -> fn(f64, f64) -> f64 {
    match op {
        Float2::Add => |a, b| a + b,
        Float2::Sub => |a, b| a - b,
        Float2::Mul => |a, b| a * b,
        Float2::Div => |a, b| a / b,
        Float2::Min | Float2::MinNan => f64::min,
        Float2::Max | Float2::MaxNan => f64::max,
        Float2::CopySign => |a, b| b.copysign(a),
    }
}

/// `d = op a`.
#[inline(always)]
pub(super) fn one(regs: &mut Registers, mask: u32, op: Float1, ty: Type, mode: FloatMode, d: Reg, a: Src) {
    match (op, ty) {
        // Signs change in the bits, so that NaNs and zeros keep theirs.
        (Float1::Neg, Type::F32) if !mode.ftz => map1(regs, mask, d, a, |a: u32| a ^ 1 << 31),
        (Float1::Abs, Type::F32) if !mode.ftz => map1(regs, mask, d, a, |a: u32| a & !(1 << 31)),
        (_, Type::F32) => map1(regs, mask, d, a, |a: f32| {
            flush(unary(op, flush(a, mode.ftz)), mode.ftz)
        }),
        _ => map1(regs, mask, d, a, unary_double(op)),
    }
}

fn unary(op: Float1, a: f32) -> f32 {
    match op {
        Float1::Abs => a.abs(),
        Float1::Neg => -a,
        Float1::Rcp | Float1::RcpGuess => 1.0 / a,
        Float1::Sqrt => a.sqrt(),
        Float1::Rsqrt => (1.0 / f64::from(a).sqrt()) as f32,
        Float1::Ex2 => a.exp2(),
        Float1::Lg2 => a.log2(),
        Float1::Sin => a.sin(),
        Float1::Cos => a.cos(),
        Float1::Tanh => a.tanh(),
    }
}

fn unary_double(op: Float1) -> fn(f64) -> f64 {
    match op {
        Float1::Abs => f64::abs,
        Float1::Neg => |a| -a,
        Float1::Rcp => |a| 1.0 / a,
        Float1::RcpGuess => |a| f64::from_bits((1.0 / a).to_bits() & !0xffff_ffff),
        Float1::Sqrt => f64::sqrt,
        Float1::Rsqrt => |a| 1.0 / a.sqrt(),
        // The forms table knows the others for f32 only.
        Float1::Ex2 => f64::exp2,
        Float1::Lg2 => f64::log2,
        Float1::Sin => f64::sin,
        Float1::Cos => f64::cos,
        Float1::Tanh => f64::tanh,
    }
}

/// Two bf16 products and sums, each rounded once to nearest.
#[inline(always)]
pub(super) fn fma_bf16x2(regs: &mut Registers, mask: u32, d: Reg, (a, b, c): (Src, Src, Src)) {
    let (a, b, c) = (u32::read(regs, a), u32::read(regs, b), u32::read(regs, c));
    let values = std::array::from_fn(|lane| {
        let part = |shift: u32| {
            let wide = |word: u32| f32::from_bits(word >> shift << 16);
            fma_bf16(wide(a[lane]), wide(b[lane]), wide(c[lane])) << shift
        };
        part(0) | part(16)
    });
    u32::write(regs, d, mask, values);
}

/// The bits of the bf16 nearest to `a × b + c`, whose operands are bf16.
#[inline(always)]
fn fma_bf16(a: f32, b: f32, c: f32) -> u32 {
    let quick = a * b;
    // Exact in f32 unless it is tiny.
    if c == 0.0 && quick.is_normal() {
        return super::convert::bf16_of_f32(quick);
    }
    // The product of two bf16 has 16 bits, so the double sum is exact unless the exponents are far apart; then it is
    // rounded to odd, which a second rounding to 8 bits does not notice (Boldo and Melquiond, 2008).
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    let high = sum - product;
    let error = (product - (sum - high)) + (c - high);
    let mut bits = sum.to_bits();
    if error != 0.0 && bits & 1 == 0 && sum.is_finite() {
        bits = if (error > 0.0) == (sum > 0.0) {
            bits + 1
        } else {
            bits - 1
        };
    }
    u32::from(super::convert::bf16_of_f64(f64::from_bits(bits)))
}
