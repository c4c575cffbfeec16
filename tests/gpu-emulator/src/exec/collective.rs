//! Instructions that lanes of a warp perform together.

use super::lanes::{Lanes, Registers, Value, lanes};
use crate::ptx::ir::{Redux, Reg, Shuffle, Src, Vote};
use crate::ptx::types::Type;

/// Where each lane reads, and whether that lane is inside its segment.
fn source(mode: Shuffle, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (limit, segment) = (clamp & 31, clamp >> 8 & 31);
    let by = by & 31;
    let last = (lane & segment) | (limit & !segment);
    let first = lane & segment;
    let (from, inside) = match mode {
        Shuffle::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= last as i32),
        Shuffle::Down => (lane + by, lane + by <= last),
        Shuffle::Bfly => (lane ^ by, lane ^ by <= last),
        Shuffle::Idx => {
            let from = first | (by & !segment);
            (from, from <= last)
        }
    };
    (if inside { from & 31 } else { lane }, inside)
}

/// `shfl.sync`: `d` takes `a` of another lane.
pub(super) fn shuffle(
    regs: &mut Registers,
    mask: u32,
    mode: Shuffle,
    (d, valid): (Reg, Option<Reg>),
    (a, b, c): (Src, Src, Src),
) -> Result<(), String> {
    let (a, b, c) = (u32::read(regs, a), u32::read(regs, b), u32::read(regs, c));
    let mut values = [0; 32];
    let mut inside = 0;
    for lane in lanes(mask) {
        let (from, ok) = source(mode, lane as u32, b[lane], c[lane]);
        if mask >> from & 1 == 0 {
            return Err(format!(
                "lane {lane} reads lane {from}, which takes no part in the shuffle"
            ));
        }
        values[lane] = a[from as usize];
        inside |= u32::from(ok) << lane;
    }
    u32::write(regs, d, mask, values);
    if let Some(valid) = valid {
        regs.set_pred(valid, mask, inside);
    }
    Ok(())
}

/// `vote.sync`: one answer for all members.
pub(super) fn vote(mode: Vote, votes: u32, members: u32) -> bool {
    let votes = votes & members;
    match mode {
        Vote::All => votes == members,
        Vote::Any => votes != 0,
        Vote::Uni => votes == members || votes == 0,
    }
}

/// `redux.sync`: one value of all members.
pub(super) fn reduce(op: Redux, ty: Type, a: &Lanes<u32>, members: u32) -> u32 {
    let values = lanes(members).map(|lane| a[lane]);
    let signed = ty == Type::S32;
    values
        .reduce(|x, y| match op {
            Redux::Add => x.wrapping_add(y),
            Redux::Min if signed => x.cast_signed().min(y.cast_signed()).cast_unsigned(),
            Redux::Max if signed => x.cast_signed().max(y.cast_signed()).cast_unsigned(),
            Redux::Min => x.min(y),
            Redux::Max => x.max(y),
            Redux::And => x & y,
            Redux::Or => x | y,
            Redux::Xor => x ^ y,
        })
        .unwrap_or(0)
}
