//! Moves, selections, comparisons, predicates and addresses.

use super::Result;
use crate::ptx::ir::{AnySrc, Compare, Logic, Op, Pred, Special, Src};
use crate::ptx::operand::Operands;
use crate::ptx::types::{Space, Type};

pub(super) fn decode(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    Ok(Some(match *parts {
        ["mov", "pred"] => Op::PredMov {
            d: operands.pred_dst()?,
            a: operands.pred()?,
        },
        ["not", "pred"] => Op::PredMov {
            d: operands.pred_dst()?,
            a: negate(operands.pred()?),
        },
        [name @ ("and" | "or" | "xor"), "pred"] => Op::PredLogic {
            op: logic(name).unwrap_or(Logic::And),
            d: operands.pred_dst()?,
            a: operands.pred()?,
            b: operands.pred()?,
        },
        ["mov", name] => match Type::named(name).filter(|ty| ty.bytes() > 1) {
            Some(ty) => mov(ty, operands)?,
            None => return Ok(None),
        },
        ["selp", name] => match Type::named(name).filter(|ty| ty.bytes() > 1) {
            Some(ty) => Op::Selp {
                ty,
                d: operands.dst(ty)?,
                a: operands.src(ty)?,
                b: operands.src(ty)?,
                by: operands.pred()?,
            },
            None => return Ok(None),
        },
        ["setp", compare, ref rest @ .., name] => return setp(compare, rest, name, operands),
        ["cvta", space, "u64"] => return cvta(space, false, operands),
        ["cvta", "to", space, "u64"] => return cvta(space, true, operands),
        ["isspacep", space] => match Space::named(space) {
            Some(space) => Op::IsSpace {
                space,
                d: operands.pred_dst()?,
                a: operands.src(Type::U64)?,
            },
            None => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

fn negate(pred: Pred) -> Pred {
    match pred {
        Pred::Reg { reg, negated } => Pred::Reg {
            reg,
            negated: !negated,
        },
        Pred::Const(value) => Pred::Const(!value),
    }
}

fn logic(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => Logic::And,
        "or" => Logic::Or,
        "xor" => Logic::Xor,
        _ => return None,
    })
}

fn mov(ty: Type, operands: &mut Operands) -> Result<Op> {
    if operands.at_vector() {
        let parts = operands.vector_dst()?;
        check_parts(
            ty,
            parts.len(),
            parts.iter().flatten().map(|part| part.bytes),
            operands,
        )?;
        return Ok(Op::Unpack {
            ty,
            parts: parts.into_iter().map(|part| part.map(|part| part.reg)).collect(),
            a: operands.src(ty)?,
        });
    }
    let d = operands.dst(ty)?;
    if let Some(from) = operands.special() {
        return special(ty, d, from, operands);
    }
    if operands.at_vector() {
        let parts = operands.vector_src()?;
        let widths = parts.iter().filter_map(|part| match part {
            AnySrc::Reg(reg) => Some(reg.bytes),
            AnySrc::Imm(_) => None,
        });
        check_parts(ty, parts.len(), widths, operands)?;
        let parts = parts
            .into_iter()
            .map(|part| match part {
                AnySrc::Reg(reg) => Src::Reg(reg.reg),
                AnySrc::Imm(bits) => Src::Imm(bits),
            })
            .collect();
        return Ok(Op::Pack { ty, d, parts });
    }
    Ok(Op::Mov {
        ty,
        d,
        a: operands.src(ty)?,
    })
}

/// Parts have equal widths that make up the whole.
fn check_parts(
    ty: Type,
    count: usize,
    mut widths: impl Iterator<Item = u8>,
    operands: &Operands,
) -> Result<()> {
    let fits = count > 1 && widths.all(|bytes| usize::from(bytes) * count == ty.bytes());
    if fits {
        return Ok(());
    }
    Err(operands.wrong("the parts do not make up the whole"))
}

fn special(ty: Type, d: u16, from: Special, operands: &Operands) -> Result<Op> {
    let wide = matches!(from, Special::Clock64 | Special::GlobalTimer | Special::GridId);
    // `%gridid` and the lane masks may be read in part; only whole reads are interpreted.
    if ty.wide() != wide || ty.bytes() < 4 || ty.float() {
        return Err(operands.wrong("the special register has another width"));
    }
    Ok(Op::MovSpecial { wide, d, from })
}

fn compare(name: &str, ty: Type) -> Option<Compare> {
    let unordered = ty.float();
    Some(match name {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" | "lo" => Compare::Lt,
        "le" | "ls" => Compare::Le,
        "gt" | "hi" => Compare::Gt,
        "ge" | "hs" => Compare::Ge,
        "equ" if unordered => Compare::Equ,
        "neu" if unordered => Compare::Neu,
        "ltu" if unordered => Compare::Ltu,
        "leu" if unordered => Compare::Leu,
        "gtu" if unordered => Compare::Gtu,
        "geu" if unordered => Compare::Geu,
        "num" if unordered => Compare::Num,
        "nan" if unordered => Compare::Nan,
        _ => return None,
    })
}

fn setp(name: &str, rest: &[&str], ty: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let Some(ty) = Type::named(ty).filter(|ty| ty.bytes() > 1 && !matches!(ty, Type::F16 | Type::Bf16))
    else {
        return Ok(None);
    };
    let Some(compare) = compare(name, ty) else {
        return Ok(None);
    };
    let (rest, ftz) = match rest {
        [rest @ .., "ftz"] if ty == Type::F32 => (rest, true),
        rest => (rest, false),
    };
    let join = match rest {
        [] => None,
        [name] => match logic(name) {
            Some(join) => Some(join),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let (d, inverse) = operands.pred_dsts()?;
    let (a, b) = (operands.src(ty)?, operands.src(ty)?);
    let join = match join {
        Some(join) => Some((join, operands.pred()?)),
        None => None,
    };
    Ok(Some(Op::Setp {
        compare,
        ty,
        ftz,
        d,
        inverse,
        a,
        b,
        join,
    }))
}

fn cvta(space: &str, to_space: bool, operands: &mut Operands) -> Result<Option<Op>> {
    let Some(space) = Space::named(space) else {
        return Ok(None);
    };
    Ok(Some(Op::Cvta {
        space,
        to_space,
        d: operands.dst(Type::U64)?,
        a: operands.src(Type::U64)?,
    }))
}
