//! How often something is tried again, and when.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use super::{Audience, FetchError};

/// Bounds of trying again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts without progress.
    pub attempts: u32,
    /// Pause after the first failure; doubled after each further one.
    pub first: Duration,
    /// The longest pause, also of those that a server asks for; each is up to a quarter longer.
    pub most: Duration,
    /// For which a connection may be silent.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first: Duration::from_millis(500),
            most: Duration::from_secs(120),
            silence: Duration::from_secs(30),
        }
    }
}

/// Failures in a row.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    audience: Audience,
    failed: u32,
}

impl Tries {
    pub(super) fn new(patience: Patience, audience: Audience) -> Self {
        Self {
            patience,
            audience,
            failed: 0,
        }
    }

    /// Something went well.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Wait as long as is sensible after `error`.
    ///
    /// # Errors
    /// `error`, when it does not pass or has come too often.
    pub(super) async fn failed(&mut self, error: FetchError) -> Result<(), FetchError> {
        if !error.is_passing() {
            return Err(error);
        }
        self.failed += 1;
        if self.failed >= self.patience.attempts {
            return Err(FetchError::GivenUp {
                attempts: self.failed,
                last: Box::new(error),
                audience: self.audience,
            });
        }
        let asked = match error {
            FetchError::RateLimited { after, .. } => after,
            _ => None,
        };
        let own = self.patience.first.saturating_mul(1 << (self.failed - 1).min(16));
        // A time that has passed is no leave to come again at once.
        let pause = asked.map_or(own, |asked| asked.max(own)).min(self.patience.most);
        let pause = spread(pause, RandomState::new().hash_one(self.failed));
        tracing::info!(%error, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The pause, longer by up to a quarter as the dice fall: all ranks of a group are refused at one moment, and are not to come again at one.
fn spread(pause: Duration, dice: u64) -> Duration {
    const SIDES: u32 = 256;
    let dice = u32::try_from(dice % u64::from(SIDES)).unwrap_or_default();
    pause.saturating_add(pause.saturating_mul(dice) / (4 * SIDES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_never_shorter_than_asked_and_at_most_a_quarter_longer() {
        let pause = Duration::from_secs(8);
        let all: Vec<Duration> = (0..1_000).map(|dice| spread(pause, dice)).collect();
        assert!(all.iter().all(|one| (pause..pause + pause / 4).contains(one)));
        assert!(all.contains(&pause) && all.contains(&(pause + pause / 8)));
        assert_eq!(spread(Duration::MAX, u64::MAX), Duration::MAX);
        let drawn = (0..32).map(|_| spread(pause, RandomState::new().hash_one(1)));
        assert!(
            drawn.collect::<std::collections::BTreeSet<_>>().len() > 8,
            "not all at one moment"
        );
    }
}
