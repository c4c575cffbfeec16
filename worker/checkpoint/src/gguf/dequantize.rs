//! Block formats of ggml and their values in f32, each operation rounded as ggml's reference code rounds it
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>): no fused multiply-add.

use half::f16;

use crate::dtype::{Dtype, extend_f32};

/// How a GGUF tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ggml's")]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q6K,
    BF16,
}

impl GgmlType {
    /// The type with ggml's number `code`, if it is supported.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Elements of a block.
    #[must_use]
    pub fn block(self) -> u64 {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q6K => 210,
        }
    }

    /// Append the values of whole blocks to `out`; a trailing part of a block is ignored.
    pub fn dequantize(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => _ = extend_f32(Dtype::F32, bytes, out),
            Self::F16 => _ = extend_f32(Dtype::F16, bytes, out),
            Self::BF16 => _ = extend_f32(Dtype::BF16, bytes, out),
            Self::Q4_0 => bytes
                .as_chunks::<18>()
                .0
                .iter()
                .for_each(|block| q4_0(block, out)),
            Self::Q4_1 => bytes
                .as_chunks::<20>()
                .0
                .iter()
                .for_each(|block| q4_1(block, out)),
            Self::Q5_0 => bytes
                .as_chunks::<22>()
                .0
                .iter()
                .for_each(|block| q5_0(block, out)),
            Self::Q5_1 => bytes
                .as_chunks::<24>()
                .0
                .iter()
                .for_each(|block| q5_1(block, out)),
            Self::Q8_0 => bytes
                .as_chunks::<34>()
                .0
                .iter()
                .for_each(|block| q8_0(block, out)),
            Self::Q6K => bytes
                .as_chunks::<210>()
                .0
                .iter()
                .for_each(|block| q6_k(block, out)),
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
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

fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(nibbles(&block[2..]).map(|code| (f32::from(code) - 8.0) * scale));
}

fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    out.extend(nibbles(&block[4..]).map(|code| f32::from(code) * scale + least));
}

fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(five_bits(&block[2..6], &block[6..]).map(|code| (f32::from(code) - 16.0) * scale));
}

fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    out.extend(five_bits(&block[4..8], &block[8..]).map(|code| f32::from(code) * scale + least));
}

fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let scale = half_at(block, 0);
    out.extend(
        block[2..]
            .iter()
            .map(|code| f32::from(code.cast_signed()) * scale),
    );
}

/// 256 elements in two halves of 128; each half has four runs of 32 whose low nibbles and high bit pairs are
/// interleaved, and a signed 8-bit scale for every 16 elements.
fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let all = half_at(block, 208);
    for half in 0..2 {
        for run in 0..4 {
            for i in 0..32 {
                let nibble = (low[half * 64 + (run % 2) * 32 + i] >> (4 * (run / 2))) & 15;
                let pair = (high[half * 32 + i] >> (2 * run)) & 3;
                let code = f32::from(nibble | (pair << 4)) - 32.0;
                let scale = f32::from(scales[half * 8 + run * 2 + i / 16].cast_signed());
                out.push(all * scale * code);
            }
        }
    }
}
