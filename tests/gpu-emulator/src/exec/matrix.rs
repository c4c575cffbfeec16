//! `mma.sync.m16n8k16` and the fragments of its operands.
//!
//! PTX does not say in which order a tensor core adds. Here each element is one chain of fused multiply-adds over `k`,
//! which gives the same bits at every place of the tile.

use super::convert::f32_of_f16;
use super::lanes::{Lanes, Registers, Value, WARP};
use crate::ptx::ir::{Reg, Src};

const M: usize = 16;
const N: usize = 8;
const K: usize = 16;

/// Operands as matrices: `a[row][k]`, `b[k][column]`, `c[row][column]`.
struct Tile {
    a: [[f32; K]; M],
    b: [[f32; N]; K],
    c: [[f32; N]; M],
}

/// `d = a × b + c` of a whole warp.
pub(super) fn mma(regs: &mut Registers, half: bool, d: [Reg; 4], a: [Reg; 4], b: [Reg; 2], c: [Src; 4]) {
    let mut tile = Tile {
        a: [[0.0; K]; M],
        b: [[0.0; N]; K],
        c: [[0.0; N]; M],
    };
    let words = |reg: Reg| &regs.r32[usize::from(reg)];
    gather(
        &mut tile,
        half,
        a.map(words),
        b.map(words),
        c.map(|c| f32::read(regs, c)),
    );
    multiply(&mut tile);
    for (part, d) in d.into_iter().enumerate() {
        let values: Lanes<f32> = std::array::from_fn(|lane| {
            let (group, pair) = (lane / 4, lane % 4);
            tile.c[group + 8 * (part / 2)][2 * pair + part % 2]
        });
        f32::write(regs, d, !0, values);
    }
}

#[inline(always)]
fn halves(word: u32, half: bool) -> [f32; 2] {
    if half {
        [f32_of_f16(word as u16), f32_of_f16((word >> 16) as u16)]
    } else {
        [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
    }
}

/// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
#[inline(always)]
fn gather(tile: &mut Tile, half: bool, a: [&Lanes<u32>; 4], b: [&Lanes<u32>; 2], c: [Lanes<f32>; 4]) {
    for lane in 0..WARP {
        let (group, pair) = (lane / 4, lane % 4);
        for (part, a) in a.iter().enumerate() {
            let (row, k) = (group + 8 * (part % 2), 2 * pair + 8 * (part / 2));
            let [low, high] = halves(a[lane], half);
            tile.a[row][k] = low;
            tile.a[row][k + 1] = high;
        }
        for (part, b) in b.iter().enumerate() {
            let k = 2 * pair + 8 * part;
            let [low, high] = halves(b[lane], half);
            tile.b[k][group] = low;
            tile.b[k + 1][group] = high;
        }
        for (part, c) in c.iter().enumerate() {
            tile.c[group + 8 * (part / 2)][2 * pair + part % 2] = c[lane];
        }
    }
}

#[inline(always)]
fn multiply(tile: &mut Tile) {
    for (row, c) in tile.a.iter().zip(&mut tile.c) {
        for (a, b) in row.iter().zip(&tile.b) {
            for (c, b) in c.iter_mut().zip(b) {
                *c = a.mul_add(*b, *c);
            }
        }
    }
}
