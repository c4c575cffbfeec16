//! Integer arithmetic, by lane.

use super::lanes::{Registers, Value, map1, map2, map3};
use crate::ptx::ir::{Count, Field, Int1, Int2, Reg, Src};
use crate::ptx::types::Type;

/// Arithmetic of one width. Signed operations read the same bits as two's complement.
pub(super) trait Int: Value + PartialEq + Eq {
    fn two(op: Int2, signed: bool) -> fn(Self, Self) -> Self;
    fn one(op: Int1) -> fn(Self) -> Self;
    fn mad(self, b: Self, c: Self, signed: bool, high: bool) -> Self;
    fn from_u64(bits: u64) -> Self;
    fn to_u64(self) -> u64;
    fn to_i64(self) -> i64;
}

macro_rules! int {
    ($unsigned:ty, $signed:ty, $double:ty, $signed_double:ty) => {
        impl Int for $unsigned {
            #[inline(always)]
            fn two(op: Int2, signed: bool) -> fn(Self, Self) -> Self {
                // A division by zero gives all ones on NVIDIA's hardware.
                match (op, signed) {
                    (Int2::Add, _) => |a, b| a.wrapping_add(b),
                    (Int2::Sub, _) => |a, b| a.wrapping_sub(b),
                    (Int2::MulLo, _) => |a, b| a.wrapping_mul(b),
                    (Int2::MulHi, false) => |a, b| high(a as $double * b as $double),
                    (Int2::MulHi, true) => |a, b| {
                        high((a as $signed as $signed_double * b as $signed as $signed_double) as $double)
                    },
                    (Int2::Div, false) => |a, b| a.checked_div(b).unwrap_or(!0),
                    (Int2::Div, true) => |a, b| match b {
                        0 => !0,
                        b => (a as $signed).wrapping_div(b as $signed) as $unsigned,
                    },
                    (Int2::Rem, false) => |a, b| a.checked_rem(b).unwrap_or(!0),
                    (Int2::Rem, true) => |a, b| match b {
                        0 => !0,
                        b => (a as $signed).wrapping_rem(b as $signed) as $unsigned,
                    },
                    (Int2::Min, false) => |a, b| a.min(b),
                    (Int2::Min, true) => |a, b| (a as $signed).min(b as $signed) as $unsigned,
                    (Int2::Max, false) => |a, b| a.max(b),
                    (Int2::Max, true) => |a, b| (a as $signed).max(b as $signed) as $unsigned,
                    (Int2::And, _) => |a, b| a & b,
                    (Int2::Or, _) => |a, b| a | b,
                    (Int2::Xor, _) => |a, b| a ^ b,
                    // Shifts go through `shift`, whose amount has 32 bits.
                    (Int2::Shl | Int2::Shr, _) => |a, _| a,
                }
            }

            #[inline(always)]
            fn one(op: Int1) -> fn(Self) -> Self {
                match op {
                    Int1::Abs => |a| (a as $signed).wrapping_abs() as $unsigned,
                    Int1::Neg => |a| a.wrapping_neg(),
                    Int1::Not => |a| !a,
                    Int1::Cnot => |a| <$unsigned>::from(a == 0),
                    Int1::Brev => |a| a.reverse_bits(),
                }
            }

            #[inline(always)]
            fn mad(self, b: Self, c: Self, signed: bool, high: bool) -> Self {
                let op = if high { Int2::MulHi } else { Int2::MulLo };
                Self::two(op, signed)(self, b).wrapping_add(c)
            }

            fn from_u64(bits: u64) -> Self {
                bits as $unsigned
            }

            fn to_u64(self) -> u64 {
                u64::from(self)
            }

            fn to_i64(self) -> i64 {
                i64::from(self as $signed)
            }
        }

        impl High<$unsigned> for $double {
            #[inline(always)]
            fn high(self) -> $unsigned {
                (self >> <$unsigned>::BITS) as $unsigned
            }
        }
    };
}

trait High<T> {
    fn high(self) -> T;
}

#[inline(always)]
fn high<T, D: High<T>>(product: D) -> T {
    product.high()
}

int!(u16, i16, u32, i32);
int!(u32, i32, u64, i64);
int!(u64, i64, u128, i128);

/// Run `$body` with `$t` standing for the unsigned integer as wide as `$ty`.
macro_rules! by_width {
    ($ty:expr, $t:ident => $body:expr) => {
        match $ty.bytes() {
            8 => {
                type $t = u64;
                $body
            }
            4 => {
                type $t = u32;
                $body
            }
            _ => {
                type $t = u16;
                $body
            }
        }
    };
}
pub(super) use by_width;

/// `d = a op b`.
#[inline(always)]
pub(super) fn two(regs: &mut Registers, mask: u32, op: Int2, ty: Type, d: Reg, a: Src, b: Src) {
    if matches!(op, Int2::Shl | Int2::Shr) {
        return shift(regs, mask, op == Int2::Shl, ty, d, a, b);
    }
    // The hottest ones by themselves, so that their loops are vectors.
    match (op, ty.bytes()) {
        (Int2::Add, 4) => map2(regs, mask, d, (a, b), u32::wrapping_add),
        (Int2::Add, 8) => map2(regs, mask, d, (a, b), u64::wrapping_add),
        (Int2::And, 4) => map2(regs, mask, d, (a, b), |a: u32, b: u32| a & b),
        (Int2::Or, 4) => map2(regs, mask, d, (a, b), |a: u32, b: u32| a | b),
        (Int2::Xor, 4) => map2(regs, mask, d, (a, b), |a: u32, b: u32| a ^ b),
        (Int2::MulLo, 4) => map2(regs, mask, d, (a, b), u32::wrapping_mul),
        _ => by_width!(ty, T => map2(regs, mask, d, (a, b), T::two(op, ty.signed()))),
    }
}

/// Amounts at or beyond the width shift everything out.
#[inline(always)]
fn shift(regs: &mut Registers, mask: u32, left: bool, ty: Type, d: Reg, a: Src, b: Src) {
    match (left, ty.signed(), ty.bytes()) {
        (true, _, 4) => map2(
            regs,
            mask,
            d,
            (a, b),
            |a: u32, n: u32| if n < 32 { a << n } else { 0 },
        ),
        (false, false, 4) => map2(
            regs,
            mask,
            d,
            (a, b),
            |a: u32, n: u32| if n < 32 { a >> n } else { 0 },
        ),
        (false, true, 4) => map2(regs, mask, d, (a, b), |a: u32, n: u32| {
            (a.cast_signed() >> n.min(31)) as u32
        }),
        (true, ..) => {
            by_width!(ty, T => map2(regs, mask, d, (a, b), |a: T, n: u32| a.checked_shl(n).unwrap_or(0)))
        }
        (false, false, _) => {
            by_width!(ty, T => map2(regs, mask, d, (a, b), |a: T, n: u32| a.checked_shr(n).unwrap_or(0)))
        }
        (false, true, _) => by_width!(ty, T => map2(regs, mask, d, (a, b), |a: T, n: u32| {
            T::from_u64((a.to_i64() >> n.min(63)).cast_unsigned())
        })),
    }
}

/// `d = op a`.
pub(super) fn one(regs: &mut Registers, mask: u32, op: Int1, ty: Type, d: Reg, a: Src) {
    by_width!(ty, T => map1(regs, mask, d, a, T::one(op)));
}

/// `d = a × b + c` in the width of `ty`.
#[inline(always)]
pub(super) fn mad(regs: &mut Registers, mask: u32, ty: Type, high: bool, d: Reg, abc: (Src, Src, Src)) {
    if ty.bytes() == 4 && !high {
        return map3(regs, mask, d, abc, |a: u32, b: u32, c: u32| {
            a.wrapping_mul(b).wrapping_add(c)
        });
    }
    let signed = ty.signed();
    by_width!(ty, T => map3(regs, mask, d, abc, |a: T, b: T, c: T| a.mad(b, c, signed, high)));
}

/// `d = a × b + c` in twice the width of `ty`.
#[inline(always)]
pub(super) fn mul_wide(regs: &mut Registers, mask: u32, ty: Type, d: Reg, a: Src, b: Src, c: Option<Src>) {
    let c = c.unwrap_or(Src::Imm(0));
    match ty {
        Type::U32 => map3(regs, mask, d, (a, b, c), |a: u32, b: u32, c: u64| {
            (u64::from(a) * u64::from(b)).wrapping_add(c)
        }),
        Type::S32 => map3(regs, mask, d, (a, b, c), |a: u32, b: u32, c: u64| {
            (i64::from(a.cast_signed()) * i64::from(b.cast_signed()))
                .cast_unsigned()
                .wrapping_add(c)
        }),
        Type::U16 => map3(regs, mask, d, (a, b, c), |a: u16, b: u16, c: u32| {
            (u32::from(a) * u32::from(b)).wrapping_add(c)
        }),
        _ => map3(regs, mask, d, (a, b, c), |a: u16, b: u16, c: u32| {
            (i32::from(a.cast_signed()) * i32::from(b.cast_signed()))
                .cast_unsigned()
                .wrapping_add(c)
        }),
    }
}

/// Bits counted or found.
pub(super) fn count(regs: &mut Registers, mask: u32, op: Count, ty: Type, d: Reg, a: Src) {
    let signed = ty.signed();
    by_width!(ty, T => map1(regs, mask, d, a, |a: T| match op {
        Count::Popc => a.count_ones(),
        Count::Clz => a.leading_zeros(),
        Count::Bfind | Count::BfindShift => {
            // Of a negative number the highest zero is looked for.
            let a = if signed && a.to_i64() < 0 { !a } else { a };
            let shift = a.leading_zeros();
            match (shift == T::BITS, op) {
                (true, _) => !0,
                (_, Count::BfindShift) => shift,
                _ => T::BITS - 1 - shift,
            }
        }
    }));
}

/// Extract or insert a field of bits.
#[allow(clippy::too_many_arguments, reason = "PTX gives bfi five operands")]
pub(super) fn field(
    regs: &mut Registers,
    mask: u32,
    op: Field,
    ty: Type,
    d: Reg,
    (a, b): (Src, Src),
    position: Src,
    length: Src,
) {
    let (positions, lengths) = (u32::read(regs, position), u32::read(regs, length));
    let signed = ty.signed();
    by_width!(ty, T => {
        let (a, b) = (T::read(regs, a), T::read(regs, b));
        let values = std::array::from_fn(|lane| {
            let (position, length) = (positions[lane] & 0xff, lengths[lane] & 0xff);
            match op {
                Field::Insert => {
                    let ones = low_ones(length.min(T::BITS));
                    let field = ones.checked_shl(position).unwrap_or(0);
                    let bits = (a[lane].to_u64() & ones).checked_shl(position).unwrap_or(0);
                    T::from_u64((b[lane].to_u64() & !field) | (bits & field))
                }
                Field::Extract => T::from_u64(extract(a[lane].to_u64(), T::BITS, position, length, signed)),
            }
        });
        T::write(regs, d, mask, values);
    });
}

fn low_ones(count: u32) -> u64 {
    1u64.checked_shl(count).unwrap_or(0).wrapping_sub(1)
}

/// `bfe`: the sign is that of the field's last bit that lies inside the word.
fn extract(a: u64, bits: u32, position: u32, length: u32, signed: bool) -> u64 {
    if length == 0 {
        return 0;
    }
    let last = (position + length - 1).min(bits - 1);
    let negative = signed && a >> last & 1 != 0;
    let field = a.checked_shr(position).unwrap_or(0) & low_ones(length);
    if !negative {
        return field;
    }
    let known = (bits - position.min(bits)).min(length);
    field | !low_ones(known)
}

/// `shf`: the upper (left) or lower (right) half of a 64-bit shift.
pub(super) fn funnel(
    regs: &mut Registers,
    mask: u32,
    (left, wrap): (bool, bool),
    d: Reg,
    words: (Src, Src, Src),
) {
    map3(regs, mask, d, words, |low: u32, high: u32, by: u32| {
        let by = if wrap { by & 31 } else { by.min(32) };
        let both = u64::from(high) << 32 | u64::from(low);
        if left {
            (both << by >> 32) as u32
        } else {
            (both >> by) as u32
        }
    });
}

/// `prmt` in its default mode: four bytes chosen out of eight.
#[inline(always)]
pub(super) fn permute(regs: &mut Registers, mask: u32, d: Reg, words: (Src, Src, Src)) {
    map3(regs, mask, d, words, |a: u32, b: u32, selector: u32| {
        let both = u64::from(b) << 32 | u64::from(a);
        let mut result = 0;
        for at in 0..4 {
            let choice = selector >> (4 * at) & 0xf;
            let byte = (both >> (8 * (choice & 7)) & 0xff) as u32;
            // The fourth bit of a choice spreads the byte's sign.
            let sign = 0u32.wrapping_sub(byte >> 7) & 0xff;
            result |= (if choice & 8 != 0 { sign } else { byte }) << (8 * at);
        }
        result
    });
}

/// `lop3`: any function of three bits, by its truth table.
#[inline(always)]
pub(super) fn lop3(regs: &mut Registers, mask: u32, d: Reg, words: (Src, Src, Src), table: u8) {
    map3(regs, mask, d, words, |a: u32, b: u32, c: u32| {
        let mut result = 0;
        for row in 0..8u32 {
            let pick = |word: u32, bit: u32| if row >> bit & 1 != 0 { word } else { !word };
            let rows = 0u32.wrapping_sub(u32::from(table) >> row & 1);
            result |= rows & pick(a, 2) & pick(b, 1) & pick(c, 0);
        }
        result
    });
}
