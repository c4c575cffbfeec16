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
    /// Taken from the KV cache of the group that answers.
    pub cached_tokens: u32,
}

impl Usage {
    fn new(prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}

/// Tokens of one answer.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    prompt: u32,
    cached: u32,
    output: u32,
}

/// Counts the tokens of several answers.
#[derive(Debug)]
pub struct Counter {
    /// Of each answer so far.
    counts: Vec<Counts>,
    /// Answers to each prompt.
    n: usize,
}

impl Counter {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(envelope: &Envelope) -> Self {
        Self {
            counts: vec![Counts::default(); envelope.choices],
            n: envelope.n,
        }
    }

    /// A piece of an answer has come.
    pub fn count(&mut self, index: usize, delta: &Delta) {
        if let Some(counts) = self.counts.get_mut(index) {
            *counts = Counts {
                prompt: delta.prompt_tokens,
                // Where another group goes on with the answer, what the first one found still counts.
                cached: counts.cached.max(delta.cached_tokens),
                output: delta.output_tokens,
            };
        }
    }

    /// Of one answer so far.
    #[must_use]
    pub fn of(&self, index: usize) -> Usage {
        let Counts {
            prompt,
            cached,
            output,
        } = self.counts.get(index).copied().unwrap_or_default();
        Usage::new(prompt, cached, output)
    }

    /// Of all so far.
    #[must_use]
    pub fn total(&self) -> Usage {
        let sum = |numbers: &mut dyn Iterator<Item = u32>| numbers.fold(0, u32::saturating_add);
        let prompts = || self.counts.iter().step_by(self.n.max(1));
        Usage::new(
            sum(&mut prompts().map(|counts| counts.prompt)),
            sum(&mut prompts().map(|counts| counts.cached)),
            sum(&mut self.counts.iter().map(|counts| counts.output)),
        )
    }
}
