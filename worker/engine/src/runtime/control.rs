//! Form, drain and stop, from other threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::input::Input;
use super::state::{RankState, StateWatch};
use crate::mesh::{Inbox, Membership};

/// What the rank's thread and its controllers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inbox: Arc<Inbox>,
    pub(super) state: StateWatch,
    pub(super) stopped: AtomicBool,
    /// When new requests are refused; set by the first drain.
    pub(super) drain_at: OnceLock<Instant>,
    inputs: Mutex<mpsc::Sender<Input>>,
}

impl Shared {
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
        // Nobody there to wake is fine.
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
    pub(super) shared: Arc<Shared>,
}

impl RankControl {
    /// Take a membership of a higher generation; the same one again changes nothing (false). Weights are kept, the
    /// present era ends, unfinished requests go on in the next.
    ///
    /// # Errors
    /// A sentence, for a lower generation, another group, or a group without this rank.
    pub fn form(&self, membership: Membership) -> Result<bool, String> {
        let news = self.shared.inbox.form(membership)?;
        self.shared.wake();
        Ok(news)
    }

    /// On the leader: refuse new requests after `grace`, finish what is there, tell the others, end. Other ranks go on
    /// until the leader has left, and then end; ranks that do not drain stay, for the leader's replacement.
    pub fn drain(&self, grace: Duration) {
        let _ = self.shared.drain_at.set(Instant::now() + grace);
        self.shared.inbox.nudge();
        self.shared.wake();
    }

    /// End now.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.inbox.interrupt();
        self.shared.wake();
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> RankState {
        self.shared.state.get()
    }

    /// The state and its changes.
    #[must_use]
    pub fn watch(&self) -> &StateWatch {
        &self.shared.state
    }
}
