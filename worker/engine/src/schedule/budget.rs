//! How many tokens a step may hold, so that it takes about as long as it should.
//!
//! Pure: the caller measures. The time of a step grows with its tokens and, by attention, with the positions before
//! them, so the measured time per token of the last full step is what the next one is planned by.

use std::time::Duration;

/// Prefill gets at least so many tokens a step, however many sequences decode and however slow the host is: prompts
/// must end some day.
pub const MIN_CHUNK: u32 = 16;

/// The first step's tokens: a slow host shows itself by them, a fast one has doubled them a few times soon.
const FIRST: u32 = 64;

/// The token budget of the next step.
#[derive(Debug, Clone)]
pub struct StepBudget {
    target: Duration,
    most: u32,
    tokens: u32,
}

impl StepBudget {
    /// Steps of at most `most` tokens that are to take `target` at most.
    #[must_use]
    pub fn new(target: Duration, most: u32) -> Self {
        Self {
            target,
            most,
            tokens: FIRST.min(most),
        }
    }

    /// Tokens that the next step may hold. Sequences that decode get theirs in any case.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// A step of `tokens` tokens took `duration`.
    pub fn measured(&mut self, tokens: u32, duration: Duration) {
        if tokens == 0 {
            return;
        }
        // Tokens that the target would have been enough for.
        let fitting = u128::from(tokens) * self.target.as_nanos() / duration.as_nanos().max(1);
        let fitting = u32::try_from(fitting).unwrap_or(u32::MAX);
        let full = tokens >= self.tokens / 2;
        if duration > self.target {
            // Not above what it was: a short step that is slow says nothing for longer ones.
            self.tokens = fitting.min(self.tokens);
        } else if full {
            // At most twice as many, since the cost of each grows with the context.
            self.tokens = fitting.min(self.tokens.saturating_mul(2)).max(self.tokens);
        }
        self.tokens = self.tokens.clamp(MIN_CHUNK.min(self.most), self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_secs(1);

    /// Plan full steps on a host that needs `per_token` and `fixed` a step; the budget after `steps`.
    fn settled(per_token: Duration, fixed: Duration, steps: u32) -> u32 {
        let mut budget = StepBudget::new(TARGET, 512);
        for _ in 0..steps {
            let tokens = budget.tokens();
            budget.measured(tokens, fixed + per_token * tokens);
        }
        budget.tokens()
    }

    #[test]
    fn a_slow_host_gets_short_steps_at_once() {
        // 8B on two cores: 33 s for 512 tokens.
        let per_token = Duration::from_millis(64);
        assert!(settled(per_token, Duration::ZERO, 1) <= 16);
        assert_eq!(settled(per_token, Duration::from_secs(3), 30), MIN_CHUNK);
    }

    #[test]
    fn a_fast_host_gets_all_tokens_soon() {
        assert_eq!(
            settled(Duration::from_micros(100), Duration::from_millis(2), 3),
            512
        );
    }

    #[test]
    fn a_host_in_between_settles_below_its_target() {
        let per_token = Duration::from_millis(5);
        let fixed = Duration::from_millis(50);
        let tokens = settled(per_token, fixed, 20);
        assert!(fixed + per_token * tokens <= TARGET);
        assert!(tokens > 150, "{tokens}");
    }

    #[test]
    fn short_steps_raise_nothing_and_slow_ones_lower_at_once() {
        let mut budget = StepBudget::new(TARGET, 512);
        budget.measured(1, Duration::from_millis(1));
        assert_eq!(budget.tokens(), 64);
        budget.measured(0, Duration::from_secs(9));
        assert_eq!(budget.tokens(), 64);
        budget.measured(4, Duration::from_secs(2));
        assert_eq!(budget.tokens(), MIN_CHUNK);
        let mut tiny = StepBudget::new(TARGET, 4);
        tiny.measured(4, Duration::from_secs(60));
        assert_eq!(tiny.tokens(), 4);
    }
}
