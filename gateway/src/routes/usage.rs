//! Counts of tokens.

use serde::Serialize;

use super::completion::order::Envelope;
use crate::relay::Delta;

/// OpenAI's `usage`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompts, each once.
    pub prompt_tokens: u32,
    /// Of the answers.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// How the prompts were computed.
    pub prompt_tokens_details: PromptDetails,
}

/// OpenAI's `prompt_tokens_details`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    /// Taken from a cache. There is none.
    pub cached_tokens: u32,
}

impl Usage {
    fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptDetails::default(),
        }
    }
}

/// Counts the tokens of several answers.
#[derive(Debug, Default)]
pub struct Counter {
    /// Prompt and output tokens of each answer so far.
    counts: Vec<(u32, u32)>,
    /// Answers to each prompt.
    n: usize,
}

impl Counter {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(envelope: &Envelope) -> Self {
        Self {
            counts: vec![(0, 0); envelope.choices],
            n: envelope.n,
        }
    }

    /// Of one answer that is counted elsewhere.
    #[must_use]
    pub fn of_one(prompt: u32, output: u32) -> Self {
        Self {
            counts: vec![(prompt, output)],
            n: 1,
        }
    }

    /// How many answers there are.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.counts.len()
    }

    /// A piece of an answer has come.
    pub fn count(&mut self, index: usize, delta: &Delta) {
        if let Some(counts) = self.counts.get_mut(index) {
            *counts = (delta.prompt_tokens, delta.output_tokens);
        }
    }

    /// Of one answer so far.
    #[must_use]
    pub fn of(&self, index: usize) -> Usage {
        let (prompt, output) = self.counts.get(index).copied().unwrap_or_default();
        Usage::new(prompt, output)
    }

    /// Of all so far.
    #[must_use]
    pub fn total(&self) -> Usage {
        let outputs = self.counts.iter().map(|&(_, output)| output);
        let prompts = self
            .counts
            .iter()
            .step_by(self.n.max(1))
            .map(|&(prompt, _)| prompt);
        Usage::new(
            prompts.fold(0, u32::saturating_add),
            outputs.fold(0, u32::saturating_add),
        )
    }
}
