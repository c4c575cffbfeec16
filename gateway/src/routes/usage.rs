//! Counts of tokens.

use serde::Serialize;

use crate::relay::Delta;

/// OpenAI's `usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl Usage {
    /// As of the last piece of an answer.
    #[must_use]
    pub fn of(delta: &Delta) -> Self {
        Self {
            prompt_tokens: delta.prompt_tokens,
            completion_tokens: delta.output_tokens,
            total_tokens: delta.prompt_tokens.saturating_add(delta.output_tokens),
        }
    }
}
