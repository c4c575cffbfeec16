//! Warps together: shuffles, votes, barriers, matrix products; and control.

use super::Result;
use crate::ptx::ir::{BarOp, BarReduce, Op, Pred, Redux, Shuffle, Src, Vote};
use crate::ptx::operand::Operands;
use crate::ptx::types::Type;

pub(super) fn decode(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    Ok(Some(match *parts {
        ["ret"] | ["exit"] | ["ret", "uni"] => Op::Exit,
        ["trap"] => Op::Trap,
        ["shfl", "sync", mode, "b32"] => return shuffle(mode, operands),
        ["vote", "sync", mode, "pred"] => return vote(mode, operands),
        ["vote", "sync", "ballot", "b32"] => Op::Ballot {
            d: operands.dst(Type::B32)?,
            a: operands.pred()?,
            members: operands.src(Type::B32)?,
        },
        ["redux", "sync", op, ty] => return redux(op, ty, operands),
        ["activemask", "b32"] => Op::ActiveMask {
            d: operands.dst(Type::B32)?,
        },
        ["elect", "sync"] => {
            let (d, leader) = operands.dst_with_pred()?;
            let Some(leader) = leader else {
                return Err(operands.wrong("elect.sync gives a predicate"));
            };
            Op::Elect {
                d: Some(d),
                leader,
                members: operands.src(Type::B32)?,
            }
        }
        ["bar", "warp", "sync"] => Op::BarWarp {
            members: operands.src(Type::B32)?,
        },
        ["bar" | "barrier", "sync"]
        | ["barrier", "sync", "aligned"]
        | ["bar" | "barrier", "cta", "sync"]
        | ["barrier", "cta", "sync", "aligned"] => barrier(None, operands)?,
        ["bar" | "barrier", "red", op, ty] | ["bar" | "barrier", "cta", "red", op, ty] => {
            return reducing(op, ty, operands);
        }
        [
            "mma",
            "sync",
            "aligned",
            "m16n8k16",
            "row",
            "col",
            "f32",
            kind @ ("bf16" | "f16"),
            other,
            "f32",
        ] if kind == other => Op::Mma {
            half: kind == "f16",
            d: operands.dsts()?,
            a: operands.dsts()?,
            b: operands.dsts()?,
            c: operands.srcs()?,
        },
        _ => return without_effect(parts, operands),
    }))
}

/// What orders or hints. Accesses are performed in order and grids run one after the other, so nothing is to be done.
fn without_effect(parts: &[&str], operands: &mut Operands) -> Result<Option<Op>> {
    match *parts {
        ["membar", "cta" | "gl" | "gpu" | "sys"]
        | ["fence", "sc" | "acq_rel", "cta" | "gpu" | "sys"]
        | ["griddepcontrol", "wait" | "launch_dependents"] => Ok(Some(Op::Nothing)),
        ["nanosleep", "u32"] => Ok(Some(Op::Sleep {
            nanoseconds: operands.src(Type::U32)?,
        })),
        _ => Ok(None),
    }
}

fn shuffle(mode: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let mode = match mode {
        "up" => Shuffle::Up,
        "down" => Shuffle::Down,
        "bfly" => Shuffle::Bfly,
        "idx" => Shuffle::Idx,
        _ => return Ok(None),
    };
    let (d, valid) = operands.dst_with_pred()?;
    Ok(Some(Op::Shfl {
        mode,
        d,
        valid,
        a: operands.src(Type::B32)?,
        b: operands.src(Type::B32)?,
        c: operands.src(Type::B32)?,
        members: operands.src(Type::B32)?,
    }))
}

fn vote(mode: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let mode = match mode {
        "all" => Vote::All,
        "any" => Vote::Any,
        "uni" => Vote::Uni,
        _ => return Ok(None),
    };
    Ok(Some(Op::Vote {
        mode,
        d: operands.pred_dst()?,
        a: operands.pred()?,
        members: operands.src(Type::B32)?,
    }))
}

fn redux(op: &str, ty: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let op = match (op, ty) {
        ("add", "u32" | "s32") => Redux::Add,
        ("min", "u32" | "s32") => Redux::Min,
        ("max", "u32" | "s32") => Redux::Max,
        ("and", "b32") => Redux::And,
        ("or", "b32") => Redux::Or,
        ("xor", "b32") => Redux::Xor,
        _ => return Ok(None),
    };
    let ty = if ty == "s32" { Type::S32 } else { Type::U32 };
    Ok(Some(Op::Redux {
        op,
        ty,
        d: operands.dst(ty)?,
        a: operands.src(ty)?,
        members: operands.src(Type::B32)?,
    }))
}

/// The rest of a barrier: its number and, where given, how many threads take part.
fn barrier(reduce: Option<BarReduce>, operands: &mut Operands) -> Result<Op> {
    let id = operands.src(Type::U32)?;
    let more = operands.left() > 0;
    let threads: Option<Src> = if more {
        Some(operands.src(Type::U32)?)
    } else {
        None
    };
    Ok(Op::Bar { id, threads, reduce })
}

fn reducing(op: &str, ty: &str, operands: &mut Operands) -> Result<Option<Op>> {
    let (op, d) = match (op, ty) {
        ("popc", "u32") => (BarOp::Popc, operands.dst(Type::U32)?),
        ("and", "pred") => (BarOp::And, operands.pred_dst()?),
        ("or", "pred") => (BarOp::Or, operands.pred_dst()?),
        _ => return Ok(None),
    };
    let id = operands.src(Type::U32)?;
    let threads = if operands.left() > 1 {
        Some(operands.src(Type::U32)?)
    } else {
        None
    };
    let a: Pred = operands.pred()?;
    let reduce = Some(BarReduce { op, d, a });
    Ok(Some(Op::Bar { id, threads, reduce }))
}
