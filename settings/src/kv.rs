//! What a token takes in the KV cache, as the operator grants it and the worker takes it.

/// Bytes of one element in bf16.
const BF16: u64 = 2;
/// Bytes of the scales of a token's keys and values for one layer and kv head, each an f32.
const SCALES: u64 = 8;

/// What takes `in_bf16` bytes in bf16 takes so many in FP8, where heads have `head_dim` elements: keys and values in a byte an
/// element, and two scales for each layer and kv head.
#[must_use]
pub fn bytes_in_fp8(in_bf16: u64, head_dim: u64) -> u64 {
    let elements = head_dim.saturating_mul(2).max(1);
    let heads = in_bf16.div_ceil(elements.saturating_mul(BF16));
    heads.saturating_mul(elements.saturating_add(SCALES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_the_scales() {
        // Llama 3.1 8B: 32 layers, 8 kv heads of 128.
        assert_eq!(bytes_in_fp8(131_072, 128), 65_536 + 32 * 8 * 8);
        // SmolLM2: 30 layers, 3 kv heads of 64.
        assert_eq!(bytes_in_fp8(23_040, 64), 11_520 + 30 * 3 * 8);
        assert_eq!(bytes_in_fp8(0, 0), 0);
    }
}
