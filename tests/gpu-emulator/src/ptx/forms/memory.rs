//! Loads, stores, atomics, asynchronous copies and matrix loads.

use super::Result;
use crate::ptx::ir::{Atomic, Op};
use crate::ptx::operand::Operands;
use crate::ptx::types::{Space, Type};

pub(super) fn decode(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    match *parts {
        ["ld", ref rest @ .., ty] => load(rest, ty, operands),
        ["st", ref rest @ .., ty] => store(rest, ty, operands),
        ["atom", ref rest @ .., op, ty] => atomic(rest, op, ty, true, operands),
        ["red", ref rest @ .., op, ty] => atomic(rest, op, ty, false, operands),
        ["cp", "async", ref rest @ ..] => cp_async(rest, operands),
        ["ldmatrix", "sync", "aligned", "m8n8", count, ref rest @ .., "b16"] => matrix(count, rest, operands),
        ["prefetch", "global", "L1" | "L2"] | ["prefetch", "L1" | "L2"] => {
            operands.memory()?;
            Ok(Some(Op::Nothing))
        }
        _ => Ok(None),
    }
}

/// Take `names[0]` off the front of `rest` if it is one of `choices`.
fn one_of<'a>(rest: &mut &'a [&'a str], choices: &[&str]) -> Option<&'a str> {
    let (first, others) = rest.split_first()?;
    choices.contains(first).then(|| {
        *rest = others;
        *first
    })
}

/// Semantics and scope. All accesses are performed in order here, so they change nothing.
fn ordering<'a>(rest: &mut &'a [&'a str], semantics: &[&str]) -> Option<()> {
    if one_of(rest, semantics).is_some_and(|found| matches!(found, "relaxed" | "acquire" | "release")) {
        one_of(rest, &["cta", "cluster", "gpu", "sys"])?;
    }
    Some(())
}

fn space(rest: &mut &[&str]) -> Space {
    let found = rest.first().and_then(|name| Space::named(name));
    if found.is_some() {
        *rest = &rest[1..];
    }
    found.unwrap_or(Space::Generic)
}

/// Hints to caches, which are not modelled.
fn hints<'a>(rest: &mut &'a [&'a str], operations: &[&str]) {
    one_of(rest, operations);
    one_of(rest, &["nc"]);
    one_of(
        rest,
        &[
            "L1::evict_normal",
            "L1::evict_unchanged",
            "L1::evict_first",
            "L1::evict_last",
            "L1::no_allocate",
        ],
    );
    one_of(rest, &["L2::64B", "L2::128B", "L2::256B"]);
}

/// Elements of a vector and their type; 16 bytes at most.
fn shape<'a>(rest: &mut &'a [&'a str], ty: &str) -> Option<(usize, Type)> {
    let count = match one_of(rest, &["v2", "v4"]) {
        Some("v2") => 2,
        Some(_) => 4,
        None => 1,
    };
    let ty = Type::named(ty).filter(|ty| ty.bytes() > 0)?;
    (rest.is_empty() && count * ty.bytes() <= 16).then_some((count, ty))
}

fn load(rest: &[&str], ty: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let mut rest = rest;
    if ordering(&mut rest, &["weak", "volatile", "relaxed", "acquire"]).is_none() {
        return Ok(None);
    }
    let space = space(&mut rest);
    hints(&mut rest, &["ca", "cg", "cs", "lu", "cv"]);
    let Some((count, ty)) = shape(&mut rest, ty) else {
        return Ok(None);
    };
    let d = operands.vector_dst()?;
    let narrow = d.iter().flatten().any(|reg| usize::from(reg.bytes) < ty.bytes());
    if d.len() != count || narrow {
        return Err(operands.wrong("the destinations do not fit the type"));
    }
    let from = operands.memory()?;
    Ok(Some(Op::Load { space, ty, d, from }))
}

fn store(rest: &[&str], ty: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let mut rest = rest;
    if ordering(&mut rest, &["weak", "volatile", "relaxed", "release"]).is_none() {
        return Ok(None);
    }
    let space = space(&mut rest);
    hints(&mut rest, &["wb", "cg", "cs", "wt"]);
    let Some((count, ty)) = shape(&mut rest, ty) else {
        return Ok(None);
    };
    let to = operands.memory()?;
    let values = operands.vector_src()?;
    if values.len() != count || matches!(space, Space::Const | Space::Param) {
        return Err(operands.wrong("the values do not fit the type or the space cannot be written"));
    }
    Ok(Some(Op::Store {
        space,
        ty,
        to,
        values,
    }))
}

fn atomic(rest: &[&str], op: &str, ty: &str, result: bool, operands: &mut Operands) -> Result<Option<Op>> {
    let mut rest = rest;
    one_of(&mut rest, &["relaxed", "acquire", "release", "acq_rel"]);
    one_of(&mut rest, &["cta", "gpu", "sys"]);
    let space = space(&mut rest);
    let (Some(op), Some(ty), []) = (operation(op, ty), Type::named(ty), rest) else {
        return Ok(None);
    };
    let d = if result { operands.dst_or_sink(ty)? } else { None };
    let (at, b) = (operands.memory()?, operands.src(ty)?);
    let c = if op == Atomic::Cas {
        Some(operands.src(ty)?)
    } else {
        None
    };
    Ok(Some(Op::Atom {
        space,
        op,
        ty,
        d,
        at,
        b,
        c,
    }))
}

fn operation(op: &str, ty: &str) -> Option<Atomic> {
    Some(match (op, ty) {
        ("add", "u32" | "s32" | "u64" | "f32" | "f64") => Atomic::Add,
        ("min", "u32" | "s32" | "u64" | "s64") => Atomic::Min,
        ("max", "u32" | "s32" | "u64" | "s64") => Atomic::Max,
        ("and", "b32" | "b64") => Atomic::And,
        ("or", "b32" | "b64") => Atomic::Or,
        ("xor", "b32" | "b64") => Atomic::Xor,
        ("exch", "b32" | "b64") => Atomic::Exch,
        ("cas", "b32" | "b64") => Atomic::Cas,
        ("inc", "u32") => Atomic::Inc,
        ("dec", "u32") => Atomic::Dec,
        _ => return None,
    })
}

fn cp_async(rest: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    Ok(Some(match rest {
        ["commit_group"] => Op::CpCommit,
        ["wait_all"] => Op::CpWaitAll,
        ["wait_group"] => Op::CpWait {
            pending: u32::try_from(operands.constant()?).map_err(|_| operands.wrong("too many groups"))?,
        },
        [cache @ ("ca" | "cg"), "shared" | "shared::cta", "global"]
        | [
            cache @ ("ca" | "cg"),
            "shared" | "shared::cta",
            "global",
            "L2::64B" | "L2::128B" | "L2::256B",
        ] => {
            let (to, from) = (operands.memory()?, operands.memory()?);
            let bytes = operands.constant()?;
            // `.cg` bypasses L1, which works on whole 16-byte pieces only.
            if !(bytes == 16 || (*cache == "ca" && matches!(bytes, 4 | 8))) {
                return Ok(None);
            }
            let source_bytes = if operands.left() > 0 {
                Some(operands.src(Type::U32)?)
            } else {
                None
            };
            Op::CpAsync {
                bytes: bytes as u8,
                to,
                from,
                source_bytes,
            }
        }
        _ => return Ok(None),
    }))
}

fn matrix(count: &str, rest: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    let count = match count {
        "x1" => 1,
        "x2" => 2,
        "x4" => 4,
        _ => return Ok(None),
    };
    let trans = match rest {
        ["shared" | "shared::cta"] => false,
        ["trans", "shared" | "shared::cta"] => true,
        _ => return Ok(None),
    };
    let d: Option<Vec<u16>> = operands
        .vector_dst()?
        .into_iter()
        .map(|reg| reg.filter(|reg| reg.bytes == 4).map(|reg| reg.reg))
        .collect();
    match d {
        Some(d) if d.len() == count => Ok(Some(Op::LdMatrix {
            d,
            trans,
            from: operands.memory()?,
        })),
        _ => Err(operands.wrong(format!("{count} registers of 32 bits are needed"))),
    }
}
