//! Instructions that only read and write registers of one warp.

use super::lanes::{Registers, Value, WARP, map1};
use super::{convert, float, integer, matrix};
use crate::ptx::ir::{Compare, Logic, Op, Pred, Reg, Src};
use crate::ptx::types::{Space, Type};

/// Execute `op` for the lanes of `mask`; false when it is none of these instructions.
#[inline]
pub(super) fn execute(op: &Op, regs: &mut Registers, mask: u32) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: both features were just detected.
        return unsafe { with_avx2(op, regs, mask) };
    }
    body(op, regs, mask)
}

/// The same code, compiled for wider vectors: results do not differ.
///
/// # Safety
/// The CPU has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2(op: &Op, regs: &mut Registers, mask: u32) -> bool {
    body(op, regs, mask)
}

#[inline(always)]
fn body(op: &Op, regs: &mut Registers, mask: u32) -> bool {
    match *op {
        Op::Int2 { op, ty, d, a, b } => integer::two(regs, mask, op, ty, d, a, b),
        Op::Int1 { op, ty, d, a } => integer::one(regs, mask, op, ty, d, a),
        Op::Count { op, ty, d, a } => integer::count(regs, mask, op, ty, d, a),
        Op::MulWide { ty, d, a, b, c } => integer::mul_wide(regs, mask, ty, d, a, b, c),
        Op::Mad { ty, high, d, a, b, c } => integer::mad(regs, mask, ty, high, d, (a, b, c)),
        Op::Field {
            op,
            ty,
            d,
            a,
            b,
            position,
            length,
        } => {
            integer::field(regs, mask, op, ty, d, (a, b), position, length);
        }
        Op::Funnel {
            left,
            wrap,
            d,
            low,
            high,
            by,
        } => integer::funnel(regs, mask, (left, wrap), d, (low, high, by)),
        Op::Prmt { d, a, b, selector } => integer::permute(regs, mask, d, (a, b, selector)),
        Op::Lop3 { d, a, b, c, table } => integer::lop3(regs, mask, d, (a, b, c), table),
        Op::Float2 {
            op,
            ty,
            mode,
            d,
            a,
            b,
        } => float::two(regs, mask, op, ty, mode, d, (a, b)),
        Op::Float1 { op, ty, mode, d, a } => float::one(regs, mask, op, ty, mode, d, a),
        Op::Fma { ty, mode, d, a, b, c } => float::fma(regs, mask, ty, mode, d, (a, b, c)),
        Op::FmaBf16x2 { d, a, b, c } => float::fma_bf16x2(regs, mask, d, (a, b, c)),
        Op::Convert { how, d, a } => convert::convert(regs, mask, how, d, a),
        Op::PackPair { pair, d, high, low } => convert::pack_pair(regs, mask, pair, d, high, low),
        Op::UnpackE4m3 { d, a } => convert::unpack_e4m3(regs, mask, d, a),
        Op::Mov { ty, d, a } => integer::by_width!(ty, T => map1(regs, mask, d, a, |a: T| a)),
        Op::Mma { half, d, a, b, c } => matrix::mma(regs, half, d, a, b, c),
        _ => return moves(op, regs, mask),
    }
    true
}

#[inline(always)]
fn moves(op: &Op, regs: &mut Registers, mask: u32) -> bool {
    match *op {
        Op::Pack { ty, d, ref parts } => pack(regs, mask, ty, d, parts),
        Op::Unpack { ty, ref parts, a } => unpack(regs, mask, ty, parts, a),
        Op::Setp {
            compare,
            ty,
            ftz,
            d,
            inverse,
            a,
            b,
            join,
        } => {
            let holds = comparison(regs, compare, ty, ftz, a, b);
            let (value, other) = match join {
                None => (holds, !holds),
                Some((logic, with)) => {
                    let with = regs.pred(with);
                    (combine(logic, holds, with), combine(logic, !holds, with))
                }
            };
            regs.set_pred(d, mask, value);
            if let Some(inverse) = inverse {
                regs.set_pred(inverse, mask, other);
            }
        }
        Op::Selp { ty, d, a, b, by } => {
            let by = regs.pred(by);
            integer::by_width!(ty, T => {
                let (a, b) = (T::read(regs, a), T::read(regs, b));
                let values = std::array::from_fn(|lane| if by >> lane & 1 != 0 { a[lane] } else { b[lane] });
                T::write(regs, d, mask, values);
            });
        }
        Op::PredLogic { op, d, a, b } => {
            let value = combine(op, regs.pred(a), regs.pred(b));
            regs.set_pred(d, mask, value);
        }
        Op::PredMov { d, a } => set(regs, mask, d, a),
        Op::Cvta {
            space,
            to_space,
            d,
            a,
        } => {
            let window = super::memory::window(space);
            map1(regs, mask, d, a, |a: u64| {
                if to_space {
                    a.wrapping_sub(window)
                } else {
                    a.wrapping_add(window)
                }
            });
        }
        Op::IsSpace { space, d, a } => {
            let addresses = u64::read(regs, a);
            let value =
                bits(|lane| super::memory::space_of(addresses[lane]) == space || space == Space::Generic);
            regs.set_pred(d, mask, value);
        }
        Op::ActiveMask { d } => u32::write(regs, d, mask, [mask; WARP]),
        Op::Sleep { nanoseconds } => sleep(u32::read(regs, nanoseconds), mask),
        Op::Nothing => {}
        _ => return false,
    }
    true
}

/// A millisecond at most, as PTX says.
const LONGEST_SLEEP: u32 = 1_000_000;

/// The host thread sleeps as long as the lane that sleeps longest: whoever is waited for may need its processor.
fn sleep(nanoseconds: [u32; WARP], mask: u32) {
    let longest = super::lanes::lanes(mask).map(|lane| nanoseconds[lane]).max();
    let longest = longest.unwrap_or(0).min(LONGEST_SLEEP);
    std::thread::park_timeout(std::time::Duration::from_nanos(longest.into()));
}

fn set(regs: &mut Registers, mask: u32, d: Reg, a: Pred) {
    let value = regs.pred(a);
    regs.set_pred(d, mask, value);
}

fn combine(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

#[inline(always)]
fn bits(holds: impl Fn(usize) -> bool) -> u32 {
    (0..WARP).fold(0, |mask, lane| mask | u32::from(holds(lane)) << lane)
}

fn pack(regs: &mut Registers, mask: u32, ty: Type, d: Reg, parts: &[Src]) {
    let width = 8 * ty.bytes() / parts.len();
    let mut whole = [0u64; WARP];
    for (i, part) in parts.iter().enumerate() {
        let values = if width == 32 {
            u32::read(regs, *part)
        } else {
            u16::read(regs, *part).map(u32::from)
        };
        for (whole, value) in whole.iter_mut().zip(values) {
            *whole |= u64::from(value) << (width * i);
        }
    }
    if ty.wide() {
        u64::write(regs, d, mask, whole);
    } else {
        u32::write(regs, d, mask, whole.map(|value| value as u32));
    }
}

fn unpack(regs: &mut Registers, mask: u32, ty: Type, parts: &[Option<Reg>], a: Src) {
    let width = 8 * ty.bytes() / parts.len();
    let whole = if ty.wide() {
        u64::read(regs, a)
    } else {
        u32::read(regs, a).map(u64::from)
    };
    for (i, part) in parts.iter().enumerate() {
        let Some(d) = *part else { continue };
        let values = whole.map(|value| (value >> (width * i)) as u32);
        if width == 32 {
            u32::write(regs, d, mask, values);
        } else {
            u16::write(regs, d, mask, values.map(|value| value as u16));
        }
    }
}

#[inline(always)]
fn comparison(regs: &Registers, compare: Compare, ty: Type, ftz: bool, a: Src, b: Src) -> u32 {
    match ty {
        Type::F32 => {
            let flush = |x: f32| if ftz && x.is_subnormal() { 0.0 } else { x };
            let (a, b) = (f32::read(regs, a).map(flush), f32::read(regs, b).map(flush));
            bits(|lane| floats(compare, a[lane].partial_cmp(&b[lane])))
        }
        Type::F64 => {
            let (a, b) = (f64::read(regs, a), f64::read(regs, b));
            bits(|lane| floats(compare, a[lane].partial_cmp(&b[lane])))
        }
        _ => integers(regs, compare, ty, a, b),
    }
}

#[inline(always)]
fn integers(regs: &Registers, compare: Compare, ty: Type, a: Src, b: Src) -> u32 {
    if ty == Type::S32 || ty == Type::U32 || ty == Type::B32 {
        // Signed words compare as unsigned ones with the sign flipped.
        let flip = if ty == Type::S32 { 1 << 31 } else { 0 };
        let (a, b) = (u32::read(regs, a), u32::read(regs, b));
        return bits(|lane| ordered(compare, (a[lane] ^ flip).cmp(&(b[lane] ^ flip))));
    }
    let flip = if ty.signed() {
        1u64 << (8 * ty.bytes() - 1)
    } else {
        0
    };
    let read = |src| {
        if ty.wide() {
            u64::read(regs, src)
        } else {
            u16::read(regs, src).map(u64::from)
        }
    };
    let (a, b) = (read(a), read(b));
    bits(|lane| ordered(compare, (a[lane] ^ flip).cmp(&(b[lane] ^ flip))))
}

#[inline(always)]
fn ordered(compare: Compare, order: std::cmp::Ordering) -> bool {
    floats(compare, Some(order))
}

#[inline(always)]
fn floats(compare: Compare, order: Option<std::cmp::Ordering>) -> bool {
    let Some(order) = order else {
        return matches!(
            compare,
            Compare::Equ
                | Compare::Neu
                | Compare::Ltu
                | Compare::Leu
                | Compare::Gtu
                | Compare::Geu
                | Compare::Nan
        );
    };
    match compare {
        Compare::Eq | Compare::Equ => order.is_eq(),
        Compare::Ne | Compare::Neu => order.is_ne(),
        Compare::Lt | Compare::Ltu => order.is_lt(),
        Compare::Le | Compare::Leu => order.is_le(),
        Compare::Gt | Compare::Gtu => order.is_gt(),
        Compare::Ge | Compare::Geu => order.is_ge(),
        Compare::Num => true,
        Compare::Nan => false,
    }
}
