//! How many requests wait, how many may, and when one more may be tried.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Retrying is advised after this at least, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Advised before anything was measured.
const RETRY_UNMEASURED: Duration = Duration::from_secs(10);

/// Requests that were submitted and not admitted yet, counted where they are submitted, so that the answer to one too
/// many comes at once.
#[derive(Debug)]
pub(super) struct QueueGauge {
    requests: AtomicU64,
    tokens: AtomicU64,
    max_requests: u64,
    max_tokens: AtomicU64,
    /// Thousandths of tokens a second, over the last steps; 0 before the first.
    rate: AtomicU64,
}

/// The queue cannot take a request now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueFull {
    pub(super) message: String,
    pub(super) retry_after: Duration,
}

impl QueueGauge {
    pub(super) fn new(max_requests: u32, max_tokens: u64) -> Self {
        Self {
            requests: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            max_requests: max_requests.into(),
            max_tokens: AtomicU64::new(max_tokens),
            rate: AtomicU64::new(0),
        }
    }

    /// Change how many tokens may wait; those that wait stay.
    pub(super) fn set_max_tokens(&self, max_tokens: u64) {
        self.max_tokens.store(max_tokens, Ordering::Relaxed);
    }

    /// Count a request of so many tokens. A request that is alone is never too long for the queue: whether it fits at
    /// all is decided elsewhere.
    pub(super) fn enter(&self, tokens: u64) -> Result<(), QueueFull> {
        let max = self.max_requests;
        let one_more = |waiting: u64| (waiting < max).then_some(waiting + 1);
        if self
            .requests
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_err()
        {
            return Err(self.full(format!("{max} requests wait already, which is the most")));
        }
        let max = self.max_tokens.load(Ordering::Relaxed);
        let fits = |waiting: u64| {
            let all = waiting.saturating_add(tokens);
            (waiting == 0 || all <= max).then_some(all)
        };
        if let Err(waiting) = self
            .tokens
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
        {
            self.requests.fetch_sub(1, Ordering::AcqRel);
            return Err(self.full(format!(
                "requests with {waiting} tokens wait already, and {max} may: {tokens} more are too many"
            )));
        }
        Ok(())
    }

    /// A request was admitted, or ended before.
    pub(super) fn leave(&self, tokens: u64) {
        self.requests.fetch_sub(1, Ordering::AcqRel);
        self.tokens.fetch_sub(tokens, Ordering::AcqRel);
    }

    /// A step of so many tokens took so long.
    pub(super) fn measured(&self, tokens: u32, duration: Duration) {
        if tokens == 0 {
            return;
        }
        let micros = duration.as_micros().max(1);
        let rate = u64::try_from(u128::from(tokens) * 1_000_000_000 / micros).unwrap_or(u64::MAX);
        let before = self.rate.load(Ordering::Relaxed);
        // An eighth of each step, so that the figure is that of the last dozen.
        let smoothed = if before == 0 {
            rate
        } else {
            before - before / 8 + rate / 8
        };
        self.rate.store(smoothed.max(1), Ordering::Relaxed);
    }

    fn full(&self, message: String) -> QueueFull {
        let rate = self.rate.load(Ordering::Relaxed);
        let waiting = u128::from(self.tokens.load(Ordering::Acquire));
        let millis = (waiting * 1_000_000).checked_div(rate.into());
        let retry_after = millis.map_or(RETRY_UNMEASURED, |millis| {
            Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
        });
        QueueFull {
            message,
            retry_after: retry_after.clamp(RETRY.0, RETRY.1),
        }
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> (u64, u64) {
        (
            self.requests.load(Ordering::Acquire),
            self.tokens.load(Ordering::Acquire),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_in_requests_and_in_tokens() {
        let queue = QueueGauge::new(3, 100);
        queue.enter(60).unwrap();
        let full = queue.enter(60).unwrap_err();
        assert!(
            full.message.contains("60 tokens wait already, and 100 may"),
            "{}",
            full.message
        );
        queue.enter(20).unwrap();
        queue.enter(20).unwrap();
        let full = queue.enter(0).unwrap_err();
        assert!(full.message.contains("3 requests wait"), "{}", full.message);
        queue.leave(60);
        queue.enter(60).unwrap();
        assert_eq!(queue.waiting(), (3, 100));
        for tokens in [60, 20, 20] {
            queue.leave(tokens);
        }
        queue.enter(1000).unwrap();
        assert_eq!(
            queue.waiting(),
            (1, 1000),
            "alone it may be longer than the queue"
        );
    }

    #[test]
    fn the_advice_follows_the_measured_rate() {
        let queue = QueueGauge::new(1, 1_000_000);
        queue.enter(3000).unwrap();
        assert_eq!(queue.enter(1).unwrap_err().retry_after, RETRY_UNMEASURED);
        queue.measured(100, Duration::from_secs(1));
        assert_eq!(queue.enter(1).unwrap_err().retry_after, Duration::from_secs(30));
        for _ in 0..100 {
            queue.measured(512, Duration::from_millis(1));
        }
        assert_eq!(queue.enter(1).unwrap_err().retry_after, RETRY.0);
        for _ in 0..100 {
            queue.measured(1, Duration::from_secs(1));
        }
        assert_eq!(queue.enter(1).unwrap_err().retry_after, RETRY.1);
    }
}
