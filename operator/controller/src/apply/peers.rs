//! Calls to worker pods, each in a task of its own with its own time-out: no pass waits for a peer, so a dead one holds up nobody.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};
use tracing::{Instrument as _, debug, warn};

use super::{EffectError, error::Remedy};
use crate::{lease::Leadership, links::form::CallError, metrics::Metrics, wake::Wake};

/// Calls that are on the wire at the same time; more wait for a place.
const MOST_AT_ONCE: usize = 256;
/// A call that succeeded is not made again for this long: by then the pod's report tells what came of it.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause after a call failed; doubles up to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
/// Failures in a row are forgotten when a call was not asked for in this time.
const MEMORY: Duration = Duration::from_secs(60);

/// What a pod is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// To take the members of this generation.
    Form(i64),
    /// To finish what runs.
    Drain,
}

impl Asked {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Form(_) => "Form",
            Self::Drain => "DrainGroup",
        }
    }
}

/// A call: the pod's UID and what it is asked for.
type Call = (String, Asked);

#[derive(Clone, Copy, Debug)]
struct Entry {
    underway: bool,
    failures: u32,
    touched: Instant,
}

/// Calls that are under way or wait before they may be made again. Clones share them.
#[derive(Clone)]
pub struct Peers {
    calls: Arc<Mutex<HashMap<Call, Entry>>>,
    room: Arc<Semaphore>,
    leadership: Leadership,
    metrics: Metrics,
    wake: Wake,
}

impl Peers {
    /// No calls yet.
    #[must_use]
    pub fn new(leadership: Leadership, metrics: Metrics, wake: Wake) -> Self {
        Self {
            calls: Arc::default(),
            room: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            leadership,
            metrics,
            wake,
        }
    }

    /// Makes a call in a task of its own, unless the same one is under way or failed a moment ago. When it fails the loop is woken, after a
    /// pause, and asks again if it still wants to. Whether it was begun.
    ///
    /// # Errors
    /// When the lease is not surely ours.
    pub fn call<F>(&self, pod_uid: &str, asked: Asked, request: F) -> Result<bool, EffectError>
    where
        F: Future<Output = Result<(), CallError>> + Send + 'static,
    {
        if !self.leadership.is_held() {
            return Err(EffectError::NotLeading);
        }
        let call = (pod_uid.to_owned(), asked);
        let begins = self.begin(&call);
        if begins {
            // With the number of the pass that asked for it.
            tokio::spawn(self.clone().run(call, request).in_current_span());
        }
        Ok(begins)
    }

    /// Calls that are under way, pauses after them included.
    #[must_use]
    pub fn underway(&self) -> usize {
        self.lock().values().filter(|entry| entry.underway).count()
    }

    fn begin(&self, call: &Call) -> bool {
        let mut calls = self.lock();
        calls.retain(|_, entry| entry.underway || entry.touched.elapsed() < MEMORY);
        let failures = match calls.get(call) {
            Some(entry) if entry.underway => return false,
            Some(entry) => entry.failures,
            None => 0,
        };
        let entry = Entry {
            underway: true,
            failures,
            touched: Instant::now(),
        };
        calls.insert(call.clone(), entry);
        true
    }

    async fn run<F>(self, call: Call, request: F)
    where
        F: Future<Output = Result<(), CallError>> + Send,
    {
        let answer = {
            // The semaphore is never closed.
            let _place = self.room.acquire().await;
            if self.leadership.is_held() {
                request.await.map_err(EffectError::from)
            } else {
                Err(EffectError::NotLeading)
            }
        };
        let (pod, kind) = (&call.0, call.1.kind());
        let class = answer.as_ref().map_or_else(EffectError::class, |()| "ok");
        self.metrics.effect(kind, class);
        let Err(error) = answer else {
            tokio::time::sleep(SETTLE).await;
            self.lock().remove(&call);
            return;
        };
        match error.remedy() {
            Remedy::Decide => debug!(pod, action = kind, "dropped: {error}"),
            _ => warn!(pod, action = kind, "failed, to be tried again: {error}"),
        }
        let failures = self.lock().get(&call).map_or(0, |entry| entry.failures);
        tokio::time::sleep(backoff(failures)).await;
        let entry = Entry {
            underway: false,
            failures: failures.saturating_add(1),
            touched: Instant::now(),
        };
        self.lock().insert(call, entry);
        self.wake.wake();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Call, Entry>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn backoff(failures: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << failures.min(10))
        .min(LAST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use prometheus_client::registry::Registry;
    use tokio::sync::oneshot;

    use super::*;

    fn peers(wake: &Wake) -> Peers {
        let metrics = Metrics::register(&mut Registry::default());
        Peers::new(Leadership::held_for_tests(), metrics, wake.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_peer_holds_up_nobody_and_is_asked_once_at_a_time() {
        let wake = Wake::default();
        let (peers, sent) = (peers(&wake), Arc::new(AtomicU32::new(0)));
        let (dead, answer) = oneshot::channel::<Result<(), CallError>>();
        let counted = Arc::clone(&sent);
        let hangs = async move {
            counted.fetch_add(1, Ordering::Relaxed);
            answer.await.unwrap_or(Ok(()))
        };
        assert!(peers.call("dead", Asked::Form(3), hangs).unwrap());
        let counted = Arc::clone(&sent);
        let again = async move {
            counted.fetch_add(100, Ordering::Relaxed);
            Ok(())
        };
        assert!(!peers.call("dead", Asked::Form(3), again).unwrap());
        let (heard, other) = oneshot::channel();
        let answers = async move {
            let _ = heard.send(());
            Ok(())
        };
        peers.call("alive", Asked::Form(3), answers).unwrap();
        other.await.unwrap();
        assert_eq!((sent.load(Ordering::Relaxed), peers.underway()), (1, 2));

        // It fails at last: after a pause the loop is woken, and the call may be made again.
        let failed = CallError::Unreachable {
            call: "Form",
            message: "no answer in time".into(),
        };
        dead.send(Err(failed)).unwrap();
        wake.woken().await;
        let (heard, again) = oneshot::channel();
        let answers = async move {
            let _ = heard.send(());
            Ok(())
        };
        peers.call("dead", Asked::Form(3), answers).unwrap();
        again.await.unwrap();
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(backoff(0), FIRST_BACKOFF);
        assert_eq!(backoff(1), FIRST_BACKOFF * 2);
        assert_eq!(backoff(u32::MAX), LAST_BACKOFF);
    }
}
