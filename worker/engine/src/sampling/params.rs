//! How one request samples.

use crate::step::SampleKey;

/// Validated sampling parameters (see [`crate::text::request`] for the bounds).
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by this; 0 is greedy.
    pub temperature: f32,
    /// Keep this many best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the shortest prefix with at least this much probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this many times as probable as the best; 0 keeps all.
    pub min_p: f32,
    /// Subtracted from the logit of every token that was generated before.
    pub presence_penalty: f32,
    /// Subtracted once per time that the token was generated before.
    pub frequency_penalty: f32,
    /// Added to logits, ascending by token id without repeats.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the noise.
    pub seed: u64,
    /// Whether log-probabilities are wanted.
    pub logprobs: bool,
}

impl SamplingParams {
    /// Greedy without any rule.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: false,
        }
    }

    /// What the ranks need to know of it.
    #[must_use]
    pub fn key(&self) -> SampleKey {
        SampleKey {
            seed: self.seed,
            temperature: self.temperature,
            logprobs: self.logprobs,
        }
    }

    /// Whether top-k, top-p or min-p can exclude a token.
    #[must_use]
    pub fn restricts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}
