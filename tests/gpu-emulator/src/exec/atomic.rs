//! What read-modify-write operations compute.

use crate::ptx::ir::Atomic;
use crate::ptx::types::Type;

/// The value that replaces `old`; `b` and `c` are PTX's operands.
pub(super) fn next(op: Atomic, ty: Type, old: u64, b: u64, c: u64) -> u64 {
    let narrow = |value: u64| if ty.wide() { value } else { value & 0xffff_ffff };
    let signed = |value: u64| {
        if ty.wide() {
            value.cast_signed()
        } else {
            i64::from(value as u32 as i32)
        }
    };
    let result = match (op, ty) {
        (Atomic::Add, Type::F32) => {
            u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits())
        }
        (Atomic::Add, Type::F64) => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Atomic::Add, _) => old.wrapping_add(b),
        (Atomic::Min, ty) if ty.signed() => signed(old).min(signed(b)).cast_unsigned(),
        (Atomic::Max, ty) if ty.signed() => signed(old).max(signed(b)).cast_unsigned(),
        (Atomic::Min, _) => old.min(narrow(b)),
        (Atomic::Max, _) => old.max(narrow(b)),
        (Atomic::And, _) => old & b,
        (Atomic::Or, _) => old | b,
        (Atomic::Xor, _) => old ^ b,
        (Atomic::Exch, _) => b,
        (Atomic::Cas, _) if old == narrow(b) => c,
        (Atomic::Cas, _) => old,
        (Atomic::Inc, _) => {
            if old >= narrow(b) {
                0
            } else {
                old + 1
            }
        }
        (Atomic::Dec, _) => {
            if old == 0 || old > narrow(b) {
                b
            } else {
                old - 1
            }
        }
    };
    narrow(result)
}
