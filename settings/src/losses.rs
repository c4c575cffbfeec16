//! How often the work on a request ended by a loss, and whether the request itself is the likely cause. The gateway counts lost
//! leaders by this, and a leader lost members.

use std::collections::VecDeque;

/// So many losses in a row, with fewer than [`ENOUGH_TOKENS`] between them, end a request.
pub const MOST_LOSSES: usize = 3;
/// A request that got so many tokens between its losses makes progress: its losses are bad luck.
pub const ENOUGH_TOKENS: usize = 64;

/// The last losses of one request.
#[derive(Debug, Default)]
pub struct Losses {
    /// Tokens of the answer at each of the last losses, the oldest first.
    tokens: VecDeque<usize>,
}

impl Losses {
    /// Something was lost when the answer had `tokens` tokens. True when the request must not be tried again: it would
    /// bring down one after the other.
    #[must_use]
    pub fn add(&mut self, tokens: usize) -> bool {
        let too_many = self.is_last_chance(tokens);
        self.tokens.push_back(tokens);
        if self.tokens.len() >= MOST_LOSSES {
            self.tokens.pop_front();
        }
        too_many
    }

    /// Whether a loss now, when the answer has `tokens` tokens, would be one too many.
    #[must_use]
    pub fn is_last_chance(&self, tokens: usize) -> bool {
        let first = self
            .tokens
            .front()
            .filter(|_| self.tokens.len() + 1 >= MOST_LOSSES);
        first.is_some_and(|&first| tokens.saturating_sub(first) < ENOUGH_TOKENS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_losses_without_progress_are_too_many() {
        let mut losses = Losses::default();
        assert!(!losses.add(0) && !losses.is_last_chance(0));
        assert!(!losses.add(1) && losses.is_last_chance(2));
        assert!(losses.add(2));
    }

    #[test]
    fn a_request_that_progresses_goes_on_for_ever() {
        let mut losses = Losses::default();
        assert!((0..1000).all(|loss| !losses.add(loss * 32)));
        assert!(!losses.add(999 * 32 + 63));
        assert!(losses.is_last_chance(999 * 32 + 63) && !losses.is_last_chance(1000 * 32 + 32));
        assert!(losses.add(999 * 32 + 63), "31 tokens are fewer than 64");
    }
}
