//! The values of ggml's blocks in f32, each operation rounded as ggml's reference code rounds it
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>): no fused multiply-add.

mod k;
mod legacy;

use super::GgmlType;
use crate::dtype::{Dtype, extend_f32};

impl GgmlType {
    /// Append the values of whole blocks to `out`; a trailing part of a block is ignored.
    pub fn dequantize(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => _ = extend_f32(Dtype::F32, bytes, out),
            Self::F16 => _ = extend_f32(Dtype::F16, bytes, out),
            Self::BF16 => _ = extend_f32(Dtype::BF16, bytes, out),
            Self::Q4_0 => each(bytes, out, legacy::q4_0),
            Self::Q4_1 => each(bytes, out, legacy::q4_1),
            Self::Q5_0 => each(bytes, out, legacy::q5_0),
            Self::Q5_1 => each(bytes, out, legacy::q5_1),
            Self::Q8_0 => each(bytes, out, legacy::q8_0),
            Self::Q2K => each(bytes, out, k::q2_k),
            Self::Q3K => each(bytes, out, k::q3_k),
            Self::Q4K => each(bytes, out, k::q4_k),
            Self::Q5K => each(bytes, out, k::q5_k),
            Self::Q6K => each(bytes, out, k::q6_k),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, block: impl Fn(&[u8; N], &mut Vec<f32>)) {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .for_each(|bytes| block(bytes, out));
}
