//! Integer arithmetic and bits.

use super::Result;
use crate::ptx::ir::{Count, Field, Int1, Int2, Op};
use crate::ptx::operand::Operands;
use crate::ptx::types::Type;

fn int(name: &str) -> Option<Type> {
    Type::named(name).filter(|ty| {
        matches!(
            ty,
            Type::U16 | Type::S16 | Type::U32 | Type::S32 | Type::U64 | Type::S64
        )
    })
}

fn bits(name: &str) -> Option<Type> {
    Type::named(name).filter(|ty| matches!(ty, Type::B16 | Type::B32 | Type::B64))
}

pub(super) fn decode(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    Ok(Some(match *parts {
        [name, ty] if int2(name).is_some() && int(ty).is_some() => two(int2(name), int(ty), operands)?,
        [name, ty] if logic(name).is_some() && bits(ty).is_some() => two(logic(name), bits(ty), operands)?,
        ["mul", "lo", ty] if int(ty).is_some() => two(Some(Int2::MulLo), int(ty), operands)?,
        ["mul", "hi", ty] if int(ty).is_some() => two(Some(Int2::MulHi), int(ty), operands)?,
        ["shl", ty] if bits(ty).is_some() => shift(Int2::Shl, bits(ty), operands)?,
        ["shr", ty] if bits(ty).or(int(ty)).is_some() => shift(Int2::Shr, bits(ty).or(int(ty)), operands)?,
        [name, ty] if int1(name, ty).is_some() => one(int1(name, ty), operands)?,
        _ => return wide(parts, operands),
    }))
}

fn int2(name: &str) -> Option<Int2> {
    Some(match name {
        "add" => Int2::Add,
        "sub" => Int2::Sub,
        "div" => Int2::Div,
        "rem" => Int2::Rem,
        "min" => Int2::Min,
        "max" => Int2::Max,
        _ => return None,
    })
}

fn logic(name: &str) -> Option<Int2> {
    Some(match name {
        "and" => Int2::And,
        "or" => Int2::Or,
        "xor" => Int2::Xor,
        _ => return None,
    })
}

fn int1(name: &str, ty: &str) -> Option<(Int1, Type)> {
    Some(match name {
        "abs" => (Int1::Abs, int(ty).filter(|ty| ty.signed())?),
        "neg" => (Int1::Neg, int(ty).filter(|ty| ty.signed())?),
        "not" => (Int1::Not, bits(ty)?),
        "cnot" => (Int1::Cnot, bits(ty)?),
        "brev" => (Int1::Brev, bits(ty).filter(|ty| *ty != Type::B16)?),
        _ => return None,
    })
}

fn two(op: Option<Int2>, ty: Option<Type>, operands: &mut Operands) -> Result<Op> {
    let (Some(op), Some(ty)) = (op, ty) else {
        return Err(operands.wrong("not an integer form"));
    };
    let (d, a, b) = (operands.dst(ty)?, operands.src(ty)?, operands.src(ty)?);
    Ok(Op::Int2 { op, ty, d, a, b })
}

/// The amount of a shift has 32 bits, whatever is shifted.
fn shift(op: Int2, ty: Option<Type>, operands: &mut Operands) -> Result<Op> {
    let Some(ty) = ty else {
        return Err(operands.wrong("not a shift"));
    };
    let (d, a, b) = (operands.dst(ty)?, operands.src(ty)?, operands.src(Type::U32)?);
    Ok(Op::Int2 { op, ty, d, a, b })
}

fn one(op: Option<(Int1, Type)>, operands: &mut Operands) -> Result<Op> {
    let Some((op, ty)) = op else {
        return Err(operands.wrong("not an integer form"));
    };
    let (d, a) = (operands.dst(ty)?, operands.src(ty)?);
    Ok(Op::Int1 { op, ty, d, a })
}

fn wide(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    Ok(Some(match *parts {
        ["mul", "wide", ty] if widened(ty).is_some() => multiply(ty, false, operands)?,
        ["mad", "wide", ty] if widened(ty).is_some() => multiply(ty, true, operands)?,
        ["mad", half @ ("lo" | "hi"), name] => {
            let Some(ty) = int(name) else { return Ok(None) };
            Op::Mad {
                ty,
                high: half == "hi",
                d: operands.dst(ty)?,
                a: operands.src(ty)?,
                b: operands.src(ty)?,
                c: operands.src(ty)?,
            }
        }
        ["popc", ty @ ("b32" | "b64")] => count(Count::Popc, ty, operands)?,
        ["clz", ty @ ("b32" | "b64")] => count(Count::Clz, ty, operands)?,
        ["bfind", ty @ ("u32" | "s32" | "u64" | "s64")] => count(Count::Bfind, ty, operands)?,
        ["bfind", "shiftamt", ty @ ("u32" | "s32" | "u64" | "s64")] => {
            count(Count::BfindShift, ty, operands)?
        }
        ["bfe", ty @ ("u32" | "s32" | "u64" | "s64")] => field(Field::Extract, ty, operands)?,
        ["bfi", ty @ ("b32" | "b64")] => field(Field::Insert, ty, operands)?,
        ["shf", side @ ("l" | "r"), mode @ ("wrap" | "clamp"), "b32"] => Op::Funnel {
            left: side == "l",
            wrap: mode == "wrap",
            d: operands.dst(Type::B32)?,
            low: operands.src(Type::B32)?,
            high: operands.src(Type::B32)?,
            by: operands.src(Type::U32)?,
        },
        ["prmt", "b32"] => Op::Prmt {
            d: operands.dst(Type::B32)?,
            a: operands.src(Type::B32)?,
            b: operands.src(Type::B32)?,
            selector: operands.src(Type::B32)?,
        },
        ["lop3", "b32"] => Op::Lop3 {
            d: operands.dst(Type::B32)?,
            a: operands.src(Type::B32)?,
            b: operands.src(Type::B32)?,
            c: operands.src(Type::B32)?,
            table: operands.constant()? as u8,
        },
        _ => return Ok(None),
    }))
}

/// The type twice as wide.
fn widened(name: &str) -> Option<(Type, Type)> {
    Some(match name {
        "u16" => (Type::U16, Type::U32),
        "s16" => (Type::S16, Type::S32),
        "u32" => (Type::U32, Type::U64),
        "s32" => (Type::S32, Type::S64),
        _ => return None,
    })
}

fn multiply(name: &str, add: bool, operands: &mut Operands) -> Result<Op> {
    let Some((ty, result)) = widened(name) else {
        return Err(operands.wrong("not a widening product"));
    };
    Ok(Op::MulWide {
        ty,
        d: operands.dst(result)?,
        a: operands.src(ty)?,
        b: operands.src(ty)?,
        c: if add { Some(operands.src(result)?) } else { None },
    })
}

fn count(op: Count, name: &str, operands: &mut Operands) -> Result<Op> {
    let ty = Type::named(name).unwrap_or(Type::B32);
    let (d, a) = (operands.dst(Type::U32)?, operands.src(ty)?);
    Ok(Op::Count { op, ty, d, a })
}

fn field(op: Field, name: &str, operands: &mut Operands) -> Result<Op> {
    let ty = Type::named(name).unwrap_or(Type::B32);
    let (d, a) = (operands.dst(ty)?, operands.src(ty)?);
    let b = if op == Field::Insert { operands.src(ty)? } else { a };
    let (position, length) = (operands.src(Type::U32)?, operands.src(Type::U32)?);
    Ok(Op::Field {
        op,
        ty,
        d,
        a,
        b,
        position,
        length,
    })
}
