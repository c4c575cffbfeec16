//! How one request samples.

use crate::step::{SampleKey, TOP_CANDIDATES};

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
    /// Logits of tokens that the prompt or the answer has already are divided by this where they are positive, else multiplied;
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Added to logits, ascending by token id without repeats.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the noise.
    pub seed: u64,
    /// No token of [`Self::ends`] comes before so many tokens of the answer; 0 is off.
    pub min_tokens: u32,
    /// The tokens that end the answer, as far as `min_tokens` needs them.
    pub ends: Vec<u32>,
    /// Sequences of tokens that the answer must not contain; none is empty.
    pub bad_words: Vec<Vec<u32>>,
    /// Whether log-probabilities are wanted, and beside each those of so many of the likeliest tokens.
    pub logprobs: Option<u16>,
    /// Tokens whose log-probabilities are wanted in place of those of the likeliest ones. Takes the full row of every position.
    pub listed: Vec<u32>,
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
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            min_tokens: 0,
            ends: Vec::new(),
            bad_words: Vec::new(),
            logprobs: None,
            listed: Vec::new(),
        }
    }

    /// What the ranks need to know of it, and what they are to report: greedy sampling needs the best logit only, plain
    /// sampling the best under noise only, and rules that exclude tokens need the best logits in order.
    #[must_use]
    pub fn key(&self) -> SampleKey {
        let warm = self.temperature > 0.0;
        let top = match (warm, self.restricts()) {
            (false, _) => 1,
            (true, false) => 0,
            (true, true) if self.top_k == 0 => TOP_CANDIDATES,
            (true, true) => TOP_CANDIDATES.min(self.top_k as usize),
        };
        let top = top.max(self.logprobs.unwrap_or(0).into()).min(TOP_CANDIDATES);
        SampleKey {
            seed: self.seed,
            temperature: self.temperature,
            top: u16::try_from(top).unwrap_or(u16::MAX),
            mass: self.needs_mass(),
            logprobs: self.logprobs.is_some(),
        }
    }

    /// Whether the scaled mass of the row decides about tokens.
    #[must_use]
    pub fn needs_mass(&self) -> bool {
        self.temperature > 0.0 && self.top_p < 1.0
    }

    /// Whether logits are changed before one is chosen.
    #[must_use]
    pub fn has_biases(&self) -> bool {
        !self.logit_bias.is_empty()
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
            || self.min_tokens > 0
            || !self.bad_words.is_empty()
    }

    /// Whether top-k, top-p or min-p can exclude a token.
    #[must_use]
    pub fn restricts(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}
