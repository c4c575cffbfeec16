//! The first block formats: 32 elements with one scale, and one offset where the name ends in `_1`.
#![expect(
    clippy::indexing_slicing,
    reason = "places follow from counters with constant bounds within a block, whose size is part of its type"
)]

use half::f16;

pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Element `i < 16` is the low nibble of byte `i`, element `16 + i` the high one.
fn nibbles(packed: &[u8]) -> impl Iterator<Item = u8> {
    packed
        .iter()
        .map(|byte| byte & 15)
        .chain(packed.iter().map(|byte| byte >> 4))
}

/// As [`nibbles`], with a fifth bit taken from bit `i` of `high`.
fn five_bits(high: &[u8], packed: &[u8]) -> impl Iterator<Item = u8> {
    nibbles(packed)
        .enumerate()
        .map(move |(i, low)| low | (((high[i / 8] >> (i % 8)) & 1) << 4))
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(nibbles(&block[2..]).map(|code| (f32::from(code) - 8.0) * scale));
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[4..]).map(|code| f32::from(code) * scale + least));
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(five_bits(&block[2..6], &block[6..]).map(|code| (f32::from(code) - 16.0) * scale));
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    out.extend(five_bits(&block[4..8], &block[8..]).map(|code| f32::from(code) * scale + least));
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(
        block[2..]
            .iter()
            .map(|code| f32::from(code.cast_signed()) * scale),
    );
}
