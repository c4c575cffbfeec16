//! Element-wise work between the matrix products, each in a fixed order of operations.

use super::math::{exp, from_bf16, pair};
use super::multiversion;

/// Partial sums of a reduction over a vector: element `i` goes to sum `i % 16`, and the sums join in a binary tree.
const SUMS: usize = 16;

/// Join the partial sums: halves onto halves.
#[inline(always)]
fn tree(mut sums: [f32; SUMS]) -> f32 {
    let mut width = SUMS / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

multiversion! {
    /// Root-mean-square norm of one row (Zhang and Sennrich, 2019): `out = bf16(x / sqrt(mean(x²) + epsilon) · weight)`, as
    /// pairs. `x` and `weight` have the same even length.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [u32]) {
        let mut sums = [0.0; SUMS];
        let (chunks, rest) = x.as_chunks::<SUMS>();
        for chunk in chunks {
            for i in 0..SUMS {
                sums[i] = chunk[i].mul_add(chunk[i], sums[i]);
            }
        }
        for (sum, value) in sums.iter_mut().zip(rest) {
            *sum = value.mul_add(*value, *sum);
        }
        let scale = 1.0 / (tree(sums) / x.len() as f32 + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x.as_chunks::<2>().0).zip(weight.as_chunks::<2>().0) {
            *out = pair(x[0] * scale * weight[0], x[1] * scale * weight[1]);
        }
    }
}

multiversion! {
    /// The gated activation of one row: `out = bf16(silu(gate) · up)` with `silu(x) = x / (1 + e^-x)`, as pairs.
    pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [u32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate.as_chunks::<2>().0).zip(up.as_chunks::<2>().0) {
            let even = gate[0] / (1.0 + exp(-gate[0])) * up[0];
            let odd = gate[1] / (1.0 + exp(-gate[1])) * up[1];
            *out = pair(even, odd);
        }
    }
}

multiversion! {
    /// `out += values · scale`, element by element: the root of a reduction enters the residual stream.
    pub fn add_scaled(out: &mut [f32], values: &[f32], scale: &[f32]) {
        for ((out, value), scale) in out.iter_mut().zip(values).zip(scale) {
            *out += value * scale;
        }
    }
}

multiversion! {
    /// `values *= factors`, element by element.
    pub fn multiply(values: &mut [f32], factors: &[f32]) {
        for (value, factor) in values.iter_mut().zip(factors) {
            *value *= factor;
        }
    }
}

multiversion! {
    /// `left += right`: one join of the leaf tree.
    pub fn join(left: &mut [f32], right: &[f32]) {
        for (left, right) in left.iter_mut().zip(right) {
            *left += right;
        }
    }
}

multiversion! {
    /// Rotary embedding of one head in place (Su et al., 2021, in the half-split form of the Hugging Face checkpoints):
    /// elements `i` and `i + d/2` turn by the angle of `cos[i]`, `sin[i]`.
    pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = head.split_at_mut(cos.len());
        for ((low, high), (cos, sin)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
            let (a, b) = (*low, *high);
            *low = a.mul_add(*cos, -(b * sin));
            *high = b.mul_add(*cos, a * sin);
        }
    }
}

multiversion! {
    /// Round a row to bf16 pairs.
    pub fn round(values: &[f32], out: &mut [u32]) {
        for (out, values) in out.iter_mut().zip(values.as_chunks::<2>().0) {
            *out = pair(values[0], values[1]);
        }
    }
}

multiversion! {
    /// Split a row into bf16 pairs and the bf16 pairs of what that rounding left, which together hold 16 bits.
    pub fn split(values: &[f32], high: &mut [u32], low: &mut [u32]) {
        for ((high, low), values) in high.iter_mut().zip(low).zip(values.as_chunks::<2>().0) {
            *high = pair(values[0], values[1]);
            *low = pair(values[0] - from_bf16(*high as u16), values[1] - from_bf16((*high >> 16) as u16));
        }
    }
}

multiversion! {
    /// Softmax weights of one chunk: `scores` are scaled, then replaced by `e^(score - max)`. Gives the largest scaled
    /// score and the sum of the weights.
    pub fn softmax_chunk(scores: &mut [f32], scale: f32) -> (f32, f32) {
        let mut most = [f32::NEG_INFINITY; SUMS];
        for chunk in scores.chunks_mut(SUMS) {
            for (most, score) in most.iter_mut().zip(chunk) {
                *score *= scale;
                *most = if *score > *most { *score } else { *most };
            }
        }
        let max = most.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        let mut sums = [0.0; SUMS];
        for chunk in scores.chunks_mut(SUMS) {
            for (sum, score) in sums.iter_mut().zip(chunk) {
                *score = exp(*score - max);
                *sum += *score;
            }
        }
        (max, tree(sums))
    }
}

multiversion! {
    /// Weighted sum of two partial attention results: `left = left · a + right · b`.
    pub fn merge(left: &mut [f32], a: f32, right: &[f32], b: f32) {
        for (left, right) in left.iter_mut().zip(right) {
            *left = left.mul_add(a, right * b);
        }
    }
}

multiversion! {
    /// `log Σ e^(values / divisor)` as (largest scaled value, sum of `e^(value - largest)`).
    pub fn sum_exp(values: &[f32], divisor: f32) -> (f32, f32) {
        let mut most = [f32::NEG_INFINITY; SUMS];
        for chunk in values.chunks(SUMS) {
            for (most, value) in most.iter_mut().zip(chunk) {
                let value = value / divisor;
                *most = if value > *most { value } else { *most };
            }
        }
        let max = most.iter().fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        if max == f32::NEG_INFINITY {
            return (max, 0.0);
        }
        let mut sums = [0.0; SUMS];
        for chunk in values.chunks(SUMS) {
            for (sum, value) in sums.iter_mut().zip(chunk) {
                *sum += exp(value / divisor - max);
            }
        }
        (max, tree(sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernel, Level};

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| {
                let bits = (i.wrapping_mul(747_796_405) ^ seed).wrapping_mul(2_891_336_453);
                (bits >> 8) as f32 / (1 << 22) as f32 - 2.0
            })
            .collect()
    }

    #[test]
    fn all_levels_give_the_same_bits() {
        let (x, y) = (values(202, 1), values(202, 2));
        let run = |kernel: Kernel| {
            let mut bits = Vec::new();
            let mut pairs = vec![0; 101];
            rms_norm(kernel, &x, &y, 1e-5, &mut pairs);
            bits.extend_from_slice(&pairs);
            silu_mul(kernel, &x, &y, &mut pairs);
            bits.extend_from_slice(&pairs);
            let mut scores = x.clone();
            let (max, sum) = softmax_chunk(kernel, &mut scores, 0.3);
            let mut low = vec![0; 101];
            split(kernel, &scores, &mut pairs, &mut low);
            bits.extend_from_slice(&pairs);
            bits.extend_from_slice(&low);
            let (most, mass) = sum_exp(kernel, &x, 1.7);
            let mut all = x.clone();
            merge(kernel, &mut all, 0.3, &y, 0.6);
            rotate(kernel, &mut all, &x[..101], &y[..101]);
            add_scaled(kernel, &mut all, &x, &y);
            multiply(kernel, &mut all, &y);
            all.extend([max, sum, most, mass]);
            bits.extend(all.iter().map(|v| v.to_bits()));
            bits
        };
        let want = run(Kernel::new(Level::Portable).unwrap());
        for kernel in [Level::Avx2, Level::Avx512]
            .into_iter()
            .filter_map(|level| Kernel::new(level).ok())
        {
            assert_eq!(run(kernel), want, "{kernel:?}");
        }
    }

    #[test]
    fn both_parts_of_a_split_hold_sixteen_bits() {
        let x = values(64, 9);
        let (mut high, mut low) = (vec![0; 32], vec![0; 32]);
        split(Kernel::detect(), &x, &mut high, &mut low);
        for (i, x) in x.iter().enumerate() {
            let part = |pairs: &[u32]| from_bf16((pairs[i / 2] >> (16 * (i % 2))) as u16);
            assert!((part(&high) + part(&low) - x).abs() <= x.abs() / 65536.0);
        }
    }

    #[test]
    fn softmax_weights_are_relative_to_the_largest() {
        let mut scores = [1.0, 1.0, 0.0];
        let (max, sum) = softmax_chunk(Kernel::detect(), &mut scores, 2.0);
        assert_eq!((max, scores[0], scores[1]), (2.0, 1.0, 1.0));
        assert!((sum - 2.0 - (-2.0f32).exp()).abs() < 1e-6);
    }

    #[test]
    fn the_norm_has_unit_mean_square() {
        let x = values(64, 5);
        let mut out = [0; 32];
        rms_norm(Kernel::detect(), &x, &[1.0; 64], 0.0, &mut out);
        let square: f32 = out
            .iter()
            .map(|p| from_bf16(*p as u16).powi(2) + from_bf16((p >> 16) as u16).powi(2))
            .sum();
        assert!((square / 64.0 - 1.0).abs() < 0.01);
    }
}
