//! Progress of long work, reported by a callback.

use serde::Serialize;

/// How far a long piece of work has come, in bytes of its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Counts bytes and tells the callback.
pub(crate) struct Meter<'a> {
    state: Progress,
    report: &'a mut dyn FnMut(Progress),
}

impl<'a> Meter<'a> {
    pub(crate) fn new(total: u64, report: &'a mut dyn FnMut(Progress)) -> Self {
        let state = Progress { done: 0, total };
        report(state);
        Self { state, report }
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.state.done += bytes;
        (self.report)(self.state);
    }
}
