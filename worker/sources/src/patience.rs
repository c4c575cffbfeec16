//! How often something is tried again, and when.

use std::time::Duration;

use super::{Audience, FetchError};

/// Bounds of trying again.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Attempts without progress.
    pub attempts: u32,
    /// Pause after the first failure; doubled after each further one.
    pub first: Duration,
    /// The longest pause, also of those that a server asks for.
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
        let pause = asked.unwrap_or(own).min(self.patience.most);
        tracing::info!(%error, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
