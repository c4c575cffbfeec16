//! Counting writes and deciding when to cut.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::Method;
use tokio::sync::watch;

/// A request that changes something: its method and path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// For example `PATCH`.
    pub method: String,
    /// For example `/api/v1/namespaces/demo/pods/llama-0`.
    pub path: String,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Pass it on and its answer back.
    Pass,
    /// Pass it on, swallow the answer, then call [`Tally::cut`].
    PassAndCut,
    /// Close the connection.
    Refuse,
}

#[derive(Debug, Default)]
struct State {
    last: Option<usize>,
    /// The last write is on its way, or everything is cut.
    is_closing: bool,
    writes: Vec<Write>,
}

#[derive(Debug)]
pub(super) struct Tally {
    state: Mutex<State>,
    cut: watch::Sender<bool>,
}

impl Tally {
    pub(super) fn new(cut: watch::Sender<bool>) -> Self {
        Self {
            state: Mutex::default(),
            cut,
        }
    }

    pub(super) fn judge(&self, method: &Method, path: &str) -> Verdict {
        let mut state = self.state();
        if state.is_closing {
            return Verdict::Refuse;
        }
        if !is_write(method, path) {
            return Verdict::Pass;
        }
        if state.last == Some(state.writes.len()) {
            // Only when not even the first write may pass: otherwise the last one has closed the door.
            state.is_closing = true;
            self.cut.send_replace(true);
            return Verdict::Refuse;
        }
        state.writes.push(Write {
            method: method.to_string(),
            path: path.to_owned(),
        });
        if state.last == Some(state.writes.len()) {
            state.is_closing = true;
            return Verdict::PassAndCut;
        }
        Verdict::Pass
    }

    pub(super) fn cut(&self) {
        // Not when it has been opened again in between.
        if self.state().is_closing {
            self.cut.send_replace(true);
        }
    }

    pub(super) fn reset(&self, last: Option<usize>) {
        let mut state = self.state();
        *state = State {
            last,
            ..State::default()
        };
        self.cut.send_replace(false);
    }

    pub(super) fn writes(&self) -> Vec<Write> {
        self.state().writes.clone()
    }

    pub(super) fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid after every statement that changes it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leases and Events come at their own times and decide nothing: a count of them would not name the same moment twice.
fn is_write(method: &Method, path: &str) -> bool {
    let changes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    let is_noise = path.split('/').any(|part| part == "leases" || part == "events");
    changes && !is_noise
}
