//! Rendering and tokenising off the threads that stream answers.
//!
//! A prompt of megabytes takes seconds of one core. A few threads do that work; requests wait for their turn in a queue that is bounded
//! in requests and bytes, and long prompts have a turn of their own, so that short ones do not wait behind them.

use std::sync::Arc;
use std::time::Duration;

use llamero_settings::limits::MAX_MESSAGE_BYTES;
use tokio::sync::Semaphore;
use tonic::Status;

use crate::grpc;

/// Most requests that wait or are worked on.
const MAX_REQUESTS: usize = 1024;
/// Most bytes of them, in KiB: room for two of the longest. [`llamero_settings::memory::REQUESTS`] grants them.
const MAX_KIB: usize = 32 << 10;
const _: () = assert!(MAX_KIB >= 2 * MAX_MESSAGE_BYTES / 1024);
/// A request of more bytes than this is a long one.
const LONG: usize = 256 << 10;
/// How many short ones are worked on at once; of long ones it is one.
const SHORT_TURNS: usize = 2;
/// When a client that found no room may come again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TextWorkers {
    requests: Arc<Semaphore>,
    kib: Arc<Semaphore>,
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Default for TextWorkers {
    fn default() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            kib: Arc::new(Semaphore::new(MAX_KIB)),
            short: Arc::new(Semaphore::new(SHORT_TURNS)),
            long: Arc::new(Semaphore::new(1)),
        }
    }
}

impl TextWorkers {
    /// Do `work` on a request of `bytes` on a thread of its own, when it is its turn. Dropping the future gives the place in the queue
    /// back; work that has begun is finished first.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the queue is full; else what `work` says.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let full = |_| {
            let message = "too many prompts wait to be tokenised; try again in 2 s";
            grpc::exhausted(message, RETRY_AFTER)
        };
        let place = Arc::clone(&self.requests).try_acquire_owned().map_err(full)?;
        let room = Arc::clone(&self.kib).try_acquire_many_owned(kib).map_err(full)?;
        let turns = if bytes > LONG { &self.long } else { &self.short };
        let closed = |_| Status::internal("the queue of prompts is closed");
        let turn = Arc::clone(turns).acquire_owned().await.map_err(closed)?;
        let done = tokio::task::spawn_blocking(move || {
            // Work that nobody waits for any more still holds its place until it ends: so the bounds hold.
            let _held = (place, room, turn);
            work()
        });
        done.await
            .map_err(|error| Status::internal(format!("the prompt could not be prepared: {error}")))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt as _;

    use super::*;

    fn blocked() -> (
        mpsc::Sender<()>,
        impl FnOnce() -> Result<(), Status> + Send + 'static,
    ) {
        let (release, released) = mpsc::channel();
        (release, move || {
            let _ = released.recv();
            Ok(())
        })
    }

    #[tokio::test]
    async fn long_prompts_take_turns_and_short_ones_pass_them() {
        let workers = TextWorkers::default();
        let (release, work) = blocked();
        let first = tokio::spawn({
            let workers = workers.clone();
            async move { workers.run(LONG + 1, work).await }
        });
        while workers.long.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let mut second = Box::pin(workers.run(LONG + 1, || Ok(2)));
        assert!(
            second.as_mut().now_or_never().is_none(),
            "two long prompts at once"
        );
        assert_eq!(workers.run(10, || Ok(3)).await.unwrap(), 3);
        release.send(()).unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(second.await.unwrap(), 2);
        assert_eq!(workers.requests.available_permits(), MAX_REQUESTS);
        assert_eq!(workers.kib.available_permits(), MAX_KIB);
    }

    #[tokio::test]
    async fn a_full_queue_says_when_to_come_again_and_a_client_that_leaves_makes_room() {
        let workers = TextWorkers::default();
        let (release, work) = blocked();
        let mut running = Box::pin(workers.run(MAX_KIB << 9, work));
        assert!(running.as_mut().now_or_never().is_none());
        let mut waiting = Box::pin(workers.run(MAX_KIB << 9, || Ok(())));
        assert!(waiting.as_mut().now_or_never().is_none());
        let status = workers.run(1, || Ok(())).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.metadata().get("retry-after-ms").unwrap(), "2000");
        drop(waiting);
        workers.run(1, || Ok(())).await.unwrap();
        // What runs is finished although nobody waits for it, and holds its place until then.
        drop(running);
        assert!(workers.kib.available_permits() < MAX_KIB);
        release.send(()).unwrap();
        while workers.kib.available_permits() < MAX_KIB {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_of_its_request() {
        let workers = TextWorkers::default();
        let status = workers
            .run(1, || -> Result<(), Status> { panic!("broken") })
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        workers.run(1, || Ok(())).await.unwrap();
    }
}
