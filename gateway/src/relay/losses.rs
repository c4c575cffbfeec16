//! How often a request lost its leader, and whether the request itself is the likely cause.

use std::collections::VecDeque;

/// So many losses in a row, with fewer than [`ENOUGH_TOKENS`] between them, end a request.
const MOST: usize = 3;
/// A request that got so many tokens between its losses makes progress: its losses are bad luck.
const ENOUGH_TOKENS: usize = 64;

/// The last losses of one request.
#[derive(Debug, Default)]
pub struct Losses {
    /// Tokens of the answer at each of the last losses, the oldest first.
    tokens: VecDeque<usize>,
}

impl Losses {
    /// A leader was lost when the answer had `tokens` tokens. True when the request must not be tried again: it would
    /// bring down one leader after the other.
    #[must_use]
    pub fn add(&mut self, tokens: usize) -> bool {
        self.tokens.push_back(tokens);
        if self.tokens.len() > MOST {
            self.tokens.pop_front();
        }
        self.tokens.len() == MOST
            && self
                .tokens
                .front()
                .is_some_and(|&first| tokens.saturating_sub(first) < ENOUGH_TOKENS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_losses_without_progress_are_too_many() {
        let mut losses = Losses::default();
        assert!(!losses.add(0) && !losses.add(1));
        assert!(losses.add(2));
    }

    #[test]
    fn a_request_that_progresses_goes_on_for_ever() {
        let mut losses = Losses::default();
        assert!((0..1000).all(|loss| !losses.add(loss * 32)));
        assert!(!losses.add(999 * 32 + 63));
        assert!(losses.add(999 * 32 + 63), "31 tokens are fewer than 64");
    }
}
