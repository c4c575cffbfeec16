//! The K formats: 256 elements, cut into groups of 16 or 32 with small integer scales under one or two f16 scales.
#![expect(
    clippy::indexing_slicing,
    reason = "places follow from counters with constant bounds within a block, whose size is part of its type"
)]

use super::legacy::half_at;

/// What Q2_K, Q3_K and Q6_K share: two halves of 128 elements, each of four runs of 32, whose codes lie in the same 32
/// bytes at different bits. Calls `value` with half, run and place in the run, in the order of the elements.
fn in_runs(out: &mut Vec<f32>, mut value: impl FnMut(usize, usize, usize) -> f32) {
    for half in 0..2 {
        for run in 0..4 {
            out.extend((0..32).map(|i| value(half, run, i)));
        }
    }
}

/// 2-bit codes; 16 groups of 16 with a 4-bit scale and a 4-bit offset each.
pub(super) fn q2_k(block: &[u8; 84], out: &mut Vec<f32>) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    in_runs(out, |half, run, i| {
        let code = (codes[half * 32 + i] >> (2 * run)) & 3;
        let group = scales[half * 8 + run * 2 + i / 16];
        scale * f32::from(group & 15) * f32::from(code) - least * f32::from(group >> 4)
    });
}

/// 3-bit codes, the third bit (4 is taken off where it is 0) in a mask; 16 groups of 16 with a signed 6-bit scale each.
pub(super) fn q3_k(block: &[u8; 110], out: &mut Vec<f32>) {
    let (mask, codes, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    in_runs(out, |half, run, i| {
        let low = (codes[half * 32 + i] >> (2 * run)) & 3;
        let absent = 1 - ((mask[i] >> (half * 4 + run)) & 1);
        let code = f32::from(low) - 4.0 * f32::from(absent);
        let group = f32::from(q3_k_scale(packed, half * 8 + run * 2 + i / 16)) - 32.0;
        scale * group * code
    });
}

/// Scale `group` of 16: four bits from the nibbles of bytes 0 to 7, two from bytes 8 to 11.
fn q3_k_scale(packed: &[u8], group: usize) -> u8 {
    let low = (packed[group % 8] >> (4 * (group / 8))) & 15;
    let high = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
    low | (high << 4)
}

/// 4-bit codes; 8 groups of 32 with a 6-bit scale and a 6-bit offset each.
pub(super) fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let (packed, codes) = (&block[4..16], &block[16..]);
    for group in 0..8 {
        let (scale, offset) = scale_and_offset(block, packed, group);
        out.extend((0..32).map(|i| {
            let code = (codes[group / 2 * 32 + i] >> (4 * (group % 2))) & 15;
            scale * f32::from(code) - offset
        }));
    }
}

/// As Q4_K with a fifth bit, bit `group` of 32 bytes that all groups share.
pub(super) fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let (packed, high, codes) = (&block[4..16], &block[16..48], &block[48..]);
    for group in 0..8 {
        let (scale, offset) = scale_and_offset(block, packed, group);
        out.extend((0..32).map(|i| {
            let low = (codes[group / 2 * 32 + i] >> (4 * (group % 2))) & 15;
            let code = low | (((high[i] >> group) & 1) << 4);
            scale * f32::from(code) - offset
        }));
    }
}

/// Scale and offset of one of 8 groups. The first four have their six bits in one byte each, whose two top bits belong
/// to the other four.
fn scale_and_offset(block: &[u8], packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, offset) = if group < 4 {
        (packed[group] & 63, packed[4 + group] & 63)
    } else {
        let rest = packed[4 + group];
        let top = |byte: u8| (byte >> 2) & 0x30;
        (
            (rest & 15) | top(packed[group - 4]),
            (rest >> 4) | top(packed[group]),
        )
    };
    (
        half_at(block, 0) * f32::from(scale),
        half_at(block, 2) * f32::from(offset),
    )
}

/// 6-bit codes, four bits and two bits apart; 16 groups of 16 with a signed 8-bit scale each.
pub(super) fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let all = half_at(block, 208);
    in_runs(out, |half, run, i| {
        let nibble = (low[half * 64 + (run % 2) * 32 + i] >> (4 * (run / 2))) & 15;
        let pair = (high[half * 32 + i] >> (2 * run)) & 3;
        let code = f32::from(nibble | (pair << 4)) - 32.0;
        let scale = f32::from(scales[half * 8 + run * 2 + i / 16].cast_signed());
        all * scale * code
    });
}
