//! The sizes of the published models, for measurements without their weights.

use super::LlamaConfig;

/// What differs between them: name, width, layers, query heads, width of a head, feed-forward width.
type Sizes = (&'static str, u32, u32, u32, u32, u32);

/// Llama 3.2 1B, and Llama 3.1.
const SIZES: [Sizes; 4] = [
    ("1b", 2048, 16, 32, 64, 8192),
    ("8b", 4096, 32, 32, 128, 14_336),
    ("70b", 8192, 80, 64, 128, 28_672),
    ("405b", 16_384, 126, 128, 128, 53_248),
];

impl LlamaConfig {
    /// Names of the models whose sizes are known.
    #[must_use]
    pub fn known_shapes() -> [&'static str; 4] {
        SIZES.map(|sizes| sizes.0)
    }

    /// The configuration of one of [`Self::known_shapes`], whose head is a matrix of its own and whose angles are not scaled:
    /// neither changes what a layer costs.
    #[must_use]
    pub fn of_shape(name: &str) -> Option<Self> {
        let sizes = SIZES.into_iter().find(|sizes| sizes.0 == name)?;
        let (_, hidden_size, layers, q_heads, head_dim, ffn_size) = sizes;
        Some(Self {
            hidden_size,
            layers,
            q_heads,
            kv_heads: 8,
            head_dim,
            ffn_size,
            vocab_size: 128_256,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            tie_word_embeddings: false,
            max_position_embeddings: 131_072,
            quantization: None,
            eos_token_ids: Vec::new(),
            bos_token_id: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::TensorId;

    #[test]
    fn shapes_have_the_parameters_of_their_names() {
        for (name, billions) in LlamaConfig::known_shapes()
            .into_iter()
            .zip([1.5, 8.03, 70.55, 405.85])
        {
            let config = LlamaConfig::of_shape(name).unwrap();
            let parameters: u64 = TensorId::all(&config)
                .map(|id| id.kind.shape(&config))
                .map(|(rows, cols)| rows * cols)
                .sum();
            assert!(
                (parameters as f64 / 1e9 - billions).abs() < 0.01 * billions,
                "{name}: {parameters}"
            );
        }
        assert!(LlamaConfig::of_shape("7b").is_none());
    }
}
