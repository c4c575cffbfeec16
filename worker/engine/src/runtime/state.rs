//! Phase and counters of a rank, for whoever watches.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{BackendError, LoadProgress};
use crate::mesh::MeshError;
use crate::step::Era;

/// How far a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Started; nothing done.
    #[default]
    Preflight,
    /// Reading weights.
    Loading,
    /// Weights are there; waits for its members or peers.
    Connecting,
    /// Forming: KV and workspace are made, then the first step.
    Warming,
    /// Steps are completed.
    Serving,
    /// Finishes what runs; the leader then tells the others to leave.
    Draining,
}

/// A rank as its supervisor reports it.
#[derive(Debug, Clone, Default)]
pub struct RankState {
    /// How far it is.
    pub phase: Phase,
    /// Bytes of its shard in memory.
    pub loaded: u64,
    /// Bytes of its shard.
    pub total: u64,
    /// Bytes read from the checkpoint by this process, gaps between strips included.
    pub read_bytes: u64,
    /// The present or last era.
    pub era: Era,
    /// Steps of that era that it began. After a stall the rank with the lowest (era, number) is to blame.
    pub entered: u64,
    /// Steps of that era that it ended.
    pub completed: u64,
    /// When the last step ended; on the leader, when all ranks had answered.
    pub last_step_at: Option<Instant>,
    /// Layers that this rank's process has computed, as of a moment ago. It moves while a step is slow, and stands still
    /// while it hangs.
    pub layers: u64,
    /// When anything moved last: bytes loaded, a layer, a step. Within a second where layers move.
    pub last_progress_at: Option<Instant>,
    /// Why it is not further, in words; empty while all is well.
    pub message: String,
    /// Why the last era ended; stays when the next one serves. Empty before the first loss.
    pub last_failure: String,
    /// KV blocks of the group as this rank knows them.
    pub kv_blocks: u32,
}

impl RankState {
    /// When the group was seen to work last: when a step of it ended or, while an era serves, when a layer of the step under
    /// way did. What is loaded or warmed up while the group forms again does not count. None before the first step.
    #[must_use]
    pub fn worked_at(&self) -> Option<Instant> {
        let step = self.last_step_at?;
        match self.phase {
            Phase::Serving => Some(self.last_progress_at.map_or(step, |layer| layer.max(step))),
            _ => Some(step),
        }
    }
}

/// The state, and a way to wait for its changes.
#[derive(Debug, Default)]
pub struct StateWatch {
    state: Mutex<(u64, RankState)>,
    changed: Condvar,
}

impl StateWatch {
    fn lock(&self) -> MutexGuard<'_, (u64, RankState)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present state.
    #[must_use]
    pub fn get(&self) -> RankState {
        self.lock().1.clone()
    }

    /// Wait until the version differs from `seen`, or for `wait`. Returns the present version and state.
    #[must_use]
    pub fn changed(&self, seen: u64, wait: Duration) -> (u64, RankState) {
        let done = self
            .changed
            .wait_timeout_while(self.lock(), wait, |(version, _)| *version == seen);
        let (version, state) = &*done.unwrap_or_else(PoisonError::into_inner).0;
        (*version, state.clone())
    }

    /// Wait until `what` holds. `None` when it does not within `wait`.
    #[must_use]
    pub fn wait_for(&self, wait: Duration, what: impl Fn(&RankState) -> bool) -> Option<RankState> {
        let (done, result) = self
            .changed
            .wait_timeout_while(self.lock(), wait, |(_, state)| !what(state))
            .unwrap_or_else(PoisonError::into_inner);
        (!result.timed_out()).then(|| done.1.clone())
    }

    pub(super) fn phase_now(&self) -> Phase {
        self.lock().1.phase
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut RankState)) {
        let mut state = self.lock();
        change(&mut state.1);
        state.0 += 1;
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn phase(&self, phase: Phase, message: impl Into<String>) {
        self.update(|state| {
            state.phase = phase;
            state.message = message.into();
        });
    }

    /// The era ended. An end that was ordered from outside is no failure.
    pub(super) fn lost(&self, error: &BackendError) {
        self.update(|state| {
            state.phase = Phase::Connecting;
            state.message = match error {
                BackendError::Lost(MeshError::Aborted) => "connects again in a later era".into(),
                error => {
                    state.last_failure = error.to_string();
                    state.last_failure.clone()
                }
            };
        });
    }

    /// Say why it is not further, when that is news.
    pub(super) fn explain(&self, message: &str) {
        if self.lock().1.message != message {
            self.update(|state| message.clone_into(&mut state.message));
        }
    }

    pub(super) fn enter_era(&self, era: Era) {
        self.update(|state| {
            state.era = era;
            state.entered = 0;
            state.completed = 0;
        });
    }

    pub(super) fn entered(&self, step: u64) {
        self.update(|state| state.entered = step);
    }

    pub(super) fn loaded(&self, progress: LoadProgress) {
        self.update(|state| {
            state.loaded = progress.loaded;
            state.total = progress.total;
            state.read_bytes = progress.read;
            state.last_progress_at = Some(Instant::now());
        });
    }

    pub(super) fn progressed(&self, layers: u64) {
        self.update(|state| {
            state.layers = layers;
            state.last_progress_at = Some(Instant::now());
        });
    }

    pub(super) fn completed(&self, step: u64, phase: Phase) {
        self.update(|state| {
            state.completed = step;
            let now = Instant::now();
            state.last_step_at = Some(now);
            state.last_progress_at = Some(now);
            if state.phase != phase {
                state.phase = phase;
                state.message.clear();
            }
        });
    }
}

/// Why a rank ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The leader finished its requests and told the others to leave.
    Drained,
    /// This rank drains, and the leader has left.
    Left,
    /// [`super::RankControl::stop`].
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_step_works_and_a_group_that_forms_again_does_not() {
        let start = Instant::now();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        let state = |phase, last_step_at, last_progress_at| RankState {
            phase,
            last_step_at,
            last_progress_at,
            ..RankState::default()
        };
        assert_eq!(
            state(Phase::Serving, after(1), after(90)).worked_at(),
            after(90),
            "layers of a step under way"
        );
        assert_eq!(state(Phase::Serving, after(1), None).worked_at(), after(1));
        for phase in [Phase::Connecting, Phase::Warming] {
            assert_eq!(
                state(phase, after(1), after(90)).worked_at(),
                after(1),
                "layers of a warm-up"
            );
        }
        assert_eq!(state(Phase::Serving, None, after(90)).worked_at(), None);
        assert_eq!(state(Phase::Loading, None, after(90)).worked_at(), None);
    }
}
