//! Float arithmetic.

use super::Result;
use crate::ptx::ir::{Float1, Float2, FloatMode, Op, Round};
use crate::ptx::operand::Operands;
use crate::ptx::types::Type;

pub(super) fn decode(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    if let ["fma", "rn", "bf16x2"] = *parts {
        return Ok(Some(Op::FmaBf16x2 {
            d: operands.dst(Type::B32)?,
            a: operands.src(Type::B32)?,
            b: operands.src(Type::B32)?,
            c: operands.src(Type::B32)?,
        }));
    }
    let [name, middle @ .., last] = parts else {
        return Ok(None);
    };
    let ty = match *last {
        "f32" => Type::F32,
        "f64" => Type::F64,
        _ => return Ok(None),
    };
    if let Some(op) = two(name, middle, ty) {
        let (op, mode) = op;
        let (d, a, b) = (operands.dst(ty)?, operands.src(ty)?, operands.src(ty)?);
        return Ok(Some(Op::Float2 {
            op,
            ty,
            mode,
            d,
            a,
            b,
        }));
    }
    if let Some((op, mode)) = one(name, middle, ty) {
        let (d, a) = (operands.dst(ty)?, operands.src(ty)?);
        return Ok(Some(Op::Float1 { op, ty, mode, d, a }));
    }
    if let ("fma", [round, rest @ ..]) = (*name, middle)
        && let Some(mode) = mode(Some(round), rest, ty)
    {
        return Ok(Some(Op::Fma {
            ty,
            mode,
            d: operands.dst(ty)?,
            a: operands.src(ty)?,
            b: operands.src(ty)?,
            c: operands.src(ty)?,
        }));
    }
    Ok(None)
}

/// `.rn`, `.rz`, `.rm` or `.rp`, then perhaps `.ftz`, then perhaps `.sat`. Doubles know neither of the last two, and
/// only rounding to nearest is interpreted for them.
fn mode(round: Option<&str>, rest: &[&str], ty: Type) -> Option<FloatMode> {
    let round = match round {
        None | Some("rn") => Round::Nearest,
        Some("rz") => Round::Zero,
        Some("rm") => Round::Down,
        Some("rp") => Round::Up,
        Some(_) => return None,
    };
    let (ftz, sat) = match rest {
        [] => (false, false),
        ["ftz"] => (true, false),
        ["sat"] => (false, true),
        ["ftz", "sat"] => (true, true),
        _ => return None,
    };
    let single = ty == Type::F32;
    (single || (round == Round::Nearest && rest.is_empty())).then_some(FloatMode { round, ftz, sat })
}

fn two(name: &str, middle: &[&str], ty: Type) -> Option<(Float2, FloatMode)> {
    let rounded = |op| match middle {
        [round @ ("rn" | "rz" | "rm" | "rp"), rest @ ..] => Some((op, mode(Some(round), rest, ty)?)),
        rest => Some((op, mode(None, rest, ty)?)),
    };
    match name {
        "add" => rounded(Float2::Add),
        "sub" => rounded(Float2::Sub),
        "mul" => rounded(Float2::Mul),
        // All three kinds of division are the exact quotient, rounded: real ones differ by up to 2 ulp.
        "div" => match middle {
            ["rn"] => Some((Float2::Div, FloatMode::default())),
            [kind @ ("rn" | "full" | "approx"), rest @ ..] if ty == Type::F32 => {
                let mode = mode(None, rest, ty).filter(|mode| !mode.sat)?;
                (rest.len() <= 1 && !kind.is_empty()).then_some((Float2::Div, mode))
            }
            _ => None,
        },
        "min" | "max" => {
            let (ftz, nan) = match middle {
                [] => (false, false),
                ["ftz"] if ty == Type::F32 => (true, false),
                ["NaN"] if ty == Type::F32 => (false, true),
                ["ftz", "NaN"] if ty == Type::F32 => (true, true),
                _ => return None,
            };
            let op = match (name, nan) {
                ("min", false) => Float2::Min,
                ("min", true) => Float2::MinNan,
                (_, false) => Float2::Max,
                (_, true) => Float2::MaxNan,
            };
            Some((
                op,
                FloatMode {
                    ftz,
                    ..FloatMode::default()
                },
            ))
        }
        "copysign" if middle.is_empty() => Some((Float2::CopySign, FloatMode::default())),
        _ => None,
    }
}

fn one(name: &str, middle: &[&str], ty: Type) -> Option<(Float1, FloatMode)> {
    let ftz = matches!(middle, [.., "ftz"]);
    let kind = if ftz { &middle[..middle.len() - 1] } else { middle };
    let op = match (name, kind) {
        ("abs", []) => Float1::Abs,
        ("neg", []) => Float1::Neg,
        ("rcp", ["rn"]) => Float1::Rcp,
        ("sqrt", ["rn"]) => Float1::Sqrt,
        ("rcp", ["approx"]) if ty == Type::F32 => Float1::Rcp,
        ("sqrt", ["approx"]) if ty == Type::F32 => Float1::Sqrt,
        ("rsqrt", ["approx"]) => Float1::Rsqrt,
        ("ex2", ["approx"]) if ty == Type::F32 => Float1::Ex2,
        ("lg2", ["approx"]) if ty == Type::F32 => Float1::Lg2,
        ("sin", ["approx"]) if ty == Type::F32 => Float1::Sin,
        ("cos", ["approx"]) if ty == Type::F32 => Float1::Cos,
        ("tanh", ["approx"]) if ty == Type::F32 && !ftz => Float1::Tanh,
        ("rcp", ["approx"]) if ftz => Float1::RcpGuess,
        _ => return None,
    };
    (!ftz || ty == Type::F32 || op == Float1::RcpGuess).then_some((
        op,
        FloatMode {
            ftz,
            ..FloatMode::default()
        },
    ))
}
