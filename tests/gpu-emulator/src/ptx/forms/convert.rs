//! `cvt`.

use super::Result;
use crate::ptx::ir::{Convert, FloatMode, Op, Pair, Round};
use crate::ptx::operand::Operands;
use crate::ptx::types::Type;

pub(super) fn decode(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    let ["cvt", modifiers @ .., to, from] = parts else {
        return Ok(None);
    };
    if let Some(pair) = pair(modifiers, to, from) {
        let d = operands.dst(if pair == Pair::E4m3 { Type::B16 } else { Type::B32 })?;
        let (high, low) = (operands.src(Type::F32)?, operands.src(Type::F32)?);
        return Ok(Some(Op::PackPair { pair, d, high, low }));
    }
    if let (["rn"], &"f16x2", &"e4m3x2") = (modifiers, to, from) {
        let (d, a) = (operands.dst(Type::B32)?, operands.src(Type::B16)?);
        return Ok(Some(Op::UnpackE4m3 { d, a }));
    }
    let (Some(to), Some(from)) = (Type::named(to), Type::named(from)) else {
        return Ok(None);
    };
    let Some(how) = how(modifiers, to, from) else {
        return Ok(None);
    };
    let (d, a) = (operands.any_dst()?, operands.any_src()?);
    if usize::from(d.bytes) < to.bytes() {
        return Err(operands.wrong("the destination is narrower than the type"));
    }
    Ok(Some(Op::Convert { how, d, a }))
}

fn pair(modifiers: &[&str], to: &str, from: &str) -> Option<Pair> {
    match (modifiers, to, from) {
        (["rn"], "bf16x2", "f32") => Some(Pair::Bf16),
        (["rn"], "f16x2", "f32") => Some(Pair::F16),
        (["rn", "satfinite"], "e4m3x2", "f32") => Some(Pair::E4m3),
        _ => None,
    }
}

/// Which modifiers a pair of types takes.
fn how(modifiers: &[&str], to: Type, from: Type) -> Option<Convert> {
    if matches!(to, Type::Pred | Type::B8 | Type::B16 | Type::B32 | Type::B64) || from == Type::Pred {
        return None;
    }
    let (flags, saturating) = match modifiers {
        [rest @ .., "sat"] => (rest, true),
        rest => (rest, false),
    };
    let (flags, ftz) = match flags {
        [rest @ .., "ftz"] => (rest, true),
        rest => (rest, false),
    };
    let (round, integral) = match flags {
        [] => (None, false),
        ["rn"] => (Some(Round::Nearest), false),
        ["rz"] => (Some(Round::Zero), false),
        ["rm"] => (Some(Round::Down), false),
        ["rp"] => (Some(Round::Up), false),
        ["rni"] => (Some(Round::Nearest), true),
        ["rzi"] => (Some(Round::Zero), true),
        ["rmi"] => (Some(Round::Down), true),
        ["rpi"] => (Some(Round::Up), true),
        _ => return None,
    };
    let single = to == Type::F32 || from == Type::F32;
    let known = match (from.float(), to.float()) {
        (false, false) => round.is_none() && !ftz,
        // Only rounding to nearest from integers.
        (false, true) => matches!(to, Type::F32 | Type::F64) && flags == ["rn"] && !ftz,
        (true, false) => matches!(from, Type::F32 | Type::F64) && integral && !saturating,
        (true, true) if to == from => matches!(to, Type::F32 | Type::F64) && (integral || round.is_none()),
        (true, true) if to.bytes() < from.bytes() => match to {
            Type::F32 => round.is_some() && !integral,
            Type::Bf16 | Type::F16 => from == Type::F32 && flags == ["rn"] && !saturating && !ftz,
            _ => false,
        },
        (true, true) => to.bytes() > from.bytes() && round.is_none() && !saturating,
    };
    (known && (single || !ftz)).then_some(Convert {
        to,
        from,
        mode: FloatMode {
            round: round.unwrap_or_default(),
            ftz,
            sat: saturating,
        },
        integral,
    })
}
