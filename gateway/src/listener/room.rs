//! Memory of long answers: of those that are being sent, and of those that wait until there is room for them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::limits::SHORT_ANSWER;
use crate::budget::Budget;
use crate::error::ApiError;

/// Bytes of one permit.
const UNIT: usize = 1 << 10;

/// So many bytes of long answers are sent at once, and so many more wait for that, first come, first served. Clones share them.
#[derive(Debug, Clone)]
pub struct LongAnswers {
    /// One permit for each [`UNIT`].
    sending: Arc<Semaphore>,
    units: u32,
    waiting: Budget,
}

impl LongAnswers {
    /// Room for `sending` bytes (rounded down to KiB, of which at least one) that are sent, and for `waiting` that are not yet.
    #[must_use]
    pub fn new(sending: usize, waiting: usize) -> Self {
        // So many permits can be taken at once, which are 4 TiB.
        let units = u32::try_from(sending / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            sending: Arc::new(Semaphore::new(
                usize::try_from(units).unwrap_or(Semaphore::MAX_PERMITS),
            )),
            units,
            waiting: Budget::new(waiting),
        }
    }

    /// Room for so many bytes until it is dropped; what is longer than all the room goes alone. What the workers have made is not thrown
    /// away for a moment without room: it waits so long at most. `None` when that was not enough, or at once when too much waits already.
    pub async fn take(self, bytes: usize, longest: Duration) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).map_or(self.units, |units| units.min(self.units));
        // While somebody waits nothing is left, so nobody is overtaken.
        if let Ok(room) = Arc::clone(&self.sending).try_acquire_many_owned(units) {
            return Some(room);
        }
        let room = match self.waiting.take(bytes.min(self.waiting.limit())) {
            Some(_waits) => timeout(longest, self.sending.acquire_many_owned(units))
                .await
                .ok(),
            None => None,
        };
        if room.is_none() {
            tracing::warn!(
                "clients that read slowly have taken the room for long answers, so one is given up"
            );
        }
        room?.ok()
    }

    /// Bytes of what is being sent, and of what the next one that waits has of them already.
    #[must_use]
    pub fn used(&self) -> usize {
        let all = usize::try_from(self.units).unwrap_or(usize::MAX);
        all.saturating_sub(self.sending.available_permits())
            .saturating_mul(UNIT)
    }

    /// Bytes of what waits.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.used()
    }
}

/// The room of an answer that is there as a whole.
#[derive(Debug)]
pub struct Room {
    /// Given back when it is dropped.
    pub permit: OwnedSemaphorePermit,
    /// The answer's length.
    pub bytes: u64,
}

/// Room for an answer that is there as a whole and [`long`], until it has been sent.
///
/// # Errors
/// 503 when clients that do not read have taken it all the time, or when too many answers wait.
pub async fn room(bytes: u64, answers: &LongAnswers, longest: Duration) -> Result<Room, ApiError> {
    let all = usize::try_from(bytes).unwrap_or(usize::MAX);
    let permit = answers.clone().take(all, longest).await.ok_or_else(full)?;
    Ok(Room { permit, bytes })
}

/// The bytes of an answer that is there as a whole and long.
#[must_use]
pub fn long(body: &Body) -> Option<u64> {
    let exact = body.size_hint().exact();
    exact.filter(|&bytes| bytes > SHORT_ANSWER as u64)
}

/// There is no room.
#[must_use]
pub fn full() -> ApiError {
    ApiError::unavailable(
        "too_many_requests",
        "This gateway holds as many long answers for clients that read slowly as it has memory for; send the request again.",
        1,
    )
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn who_comes_first_is_served_first() {
        let answers = LongAnswers::new(10 * UNIT, 100 * UNIT);
        let first = answers.clone().take(8 * UNIT - 1, SOON).await.unwrap();
        assert_eq!(answers.used(), 8 * UNIT);
        // One that is longer than all the room waits until it is alone, and no small one overtakes it.
        let large = tokio::spawn(answers.clone().take(20 * UNIT, LONG));
        yield_now().await;
        assert_eq!(answers.waiting(), 20 * UNIT);
        let small = tokio::spawn(answers.clone().take(UNIT, LONG));
        yield_now().await;
        assert!(!large.is_finished() && !small.is_finished());
        drop(first);
        let large = large.await.unwrap().unwrap();
        yield_now().await;
        assert!(!small.is_finished());
        assert_eq!((answers.used(), answers.waiting()), (10 * UNIT, UNIT));
        drop(large);
        drop(small.await.unwrap().unwrap());
        assert_eq!((answers.used(), answers.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_told_nor_beside_too_many() {
        let answers = LongAnswers::new(10 * UNIT, 10 * UNIT);
        let first = answers.clone().take(8 * UNIT, SOON).await.unwrap();
        assert!(answers.clone().take(3 * UNIT, SOON).await.is_none());
        assert_eq!((answers.used(), answers.waiting()), (8 * UNIT, 0));
        let waiting = tokio::spawn(answers.clone().take(8 * UNIT, LONG));
        yield_now().await;
        // At once: time stands still while somebody runs.
        let before = tokio::time::Instant::now();
        assert!(answers.clone().take(3 * UNIT, LONG).await.is_none());
        assert_eq!(before.elapsed(), Duration::ZERO);
        drop(first);
        assert!(waiting.await.unwrap().is_some());
        assert_eq!((answers.used(), answers.waiting()), (0, 0));
    }
}
