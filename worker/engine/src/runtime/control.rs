//! Form, drain and stop, from other threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::input::Input;
use super::state::{RankState, StateWatch};
use crate::mesh::{Inbox, Membership};

/// What the rank's threads and its controllers share.
#[derive(Debug)]
pub(super) struct RankContext {
    pub(super) inbox: Arc<Inbox>,
    pub(super) state: StateWatch,
    pub(super) stopped: AtomicBool,
    /// When new requests are refused; set by the first drain.
    pub(super) drain_at: OnceLock<Instant>,
    inputs: Mutex<mpsc::Sender<Input>>,
}

impl RankContext {
    pub(super) fn new(inbox: Arc<Inbox>, inputs: mpsc::Sender<Input>) -> Self {
        Self {
            inbox,
            state: StateWatch::default(),
            stopped: AtomicBool::new(false),
            drain_at: OnceLock::new(),
            inputs: Mutex::new(inputs),
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain_at.get().is_some()
    }

    pub(super) fn refuses(&self) -> bool {
        self.drain_at.get().is_some_and(|at| *at <= Instant::now())
    }

    fn wake(&self) {
        // A rank whose leader thread has ended needs no waking.
        let _ = self
            .inputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(Input::Wake);
    }
}

/// Steers one rank. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RankControl {
    pub(super) context: Arc<RankContext>,
}

impl RankControl {
    /// Take a membership of a higher generation; the same one again changes nothing (false). Weights are kept, the
    /// present era ends, unfinished requests go on in the next.
    ///
    /// # Errors
    /// A sentence, for a lower generation, another group, or a group without this rank.
    pub fn form(&self, membership: Membership) -> Result<bool, String> {
        let news = self.context.inbox.form(membership)?;
        self.context.wake();
        Ok(news)
    }

    /// On the leader: refuse new requests after `grace`, finish what is there, tell the others, end. Other ranks go on
    /// until the leader has left, and then end; ranks that do not drain stay, for the leader's replacement.
    pub fn drain(&self, grace: Duration) {
        let _ = self.context.drain_at.set(Instant::now() + grace);
        self.context.inbox.nudge();
        self.context.wake();
    }

    /// End now.
    pub fn stop(&self) {
        self.context.stopped.store(true, Ordering::Release);
        self.context.inbox.interrupt();
        self.context.wake();
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> RankState {
        self.context.state.get()
    }

    /// The state and its changes.
    #[must_use]
    pub fn watch(&self) -> &StateWatch {
        &self.context.state
    }
}
