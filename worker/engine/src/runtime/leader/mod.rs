//! The eras of rank 0, from connecting to draining, on a thread of their own.
//!
//! | module | what it is |
//! |---|---|
//! | [`connect`] | rank 0 reaches everybody |
//! | [`era`] | connecting, forming and serving once |
//! | [`inputs`] | what other threads say while the leader waits |

mod connect;
mod era;
mod inputs;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use super::config::RankConfig;
use super::control::RankContext;
use super::input::Input;
use super::member::link::Incoming;
use super::planner::Planner;
use super::queue::QueueGauge;
use super::state::Outcome;
use crate::backend::{BackendError, StepProgress};
use crate::mesh::{Mesh, MeshError};
use crate::step::Era;

/// An era for this rank's own compute thread.
pub(super) struct LocalEra {
    pub(super) era: Era,
    pub(super) mesh: Box<dyn Mesh>,
    pub(super) incoming: Receiver<Incoming>,
}

/// See the module's description.
pub(super) struct Leader<'a> {
    pub(super) config: &'a RankConfig,
    pub(super) context: &'a RankContext,
    pub(super) inputs: Receiver<Input>,
    /// For whoever is to tell this leader something.
    pub(super) sender: Sender<Input>,
    /// Eras for the compute thread.
    pub(super) eras: Sender<LocalEra>,
    /// The compute thread's counter.
    pub(super) progress: Arc<StepProgress>,
    pub(super) queue: Arc<QueueGauge>,
    pub(super) planner: Planner,
    /// The last epoch that was used, and of which generation.
    pub(super) last: Era,
    pub(super) backoff: Duration,
    /// Attempts of this generation that somebody answered by a refusal that no new attempt changes.
    pub(super) lasting_refusals: u32,
}

/// Why the leader is not in an era any more.
pub(super) enum End {
    /// The era is over: something was lost, or a later generation came.
    Era(MeshError),
    /// The same, because a member's answer was invalid. Peers are authenticated, so that is a bug, or broken hardware.
    Answer(MeshError),
    /// Nothing is left to do.
    Outcome(Outcome),
    /// This rank's own compute has ended for good, and says why.
    ComputeEnded,
    /// The rank cannot go on.
    Failed(BackendError),
}

impl End {
    /// What an error found in a member's answer means.
    fn of_answer(error: MeshError) -> Self {
        match error {
            MeshError::Protocol { .. } => Self::Answer(error),
            error => Self::Era(error),
        }
    }
}

impl From<MeshError> for End {
    fn from(error: MeshError) -> Self {
        Self::Era(error)
    }
}

impl Leader<'_> {
    /// Lead until drained or stopped; none when this rank's compute thread has ended.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when members refuse this rank for good; [`BackendError::Bug`] when the answers of two eras
    /// in a row are invalid: a third would not end otherwise.
    pub(super) fn run(mut self) -> Result<Option<Outcome>, BackendError> {
        let mut invalid_before = false;
        loop {
            let end = match era::run(&mut self) {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let invalid = matches!(end, End::Answer(_));
            let end = match end {
                End::Answer(error) if invalid_before => End::Failed(BackendError::Bug(format!(
                    "answers were invalid in two eras in a row, the last time because {error}"
                ))),
                End::Era(error) | End::Answer(error) => {
                    tracing::warn!(era = ?self.last, "the era ended: {error}");
                    self.context.state.lost(&error.into());
                    self.planner.leave();
                    match self.pause() {
                        Ok(()) => End::Era(MeshError::Aborted),
                        Err(end) => end,
                    }
                }
                end => end,
            };
            invalid_before = invalid;
            match end {
                End::Era(_) | End::Answer(_) => {}
                End::Outcome(outcome) => return Ok(Some(outcome)),
                End::ComputeEnded => return Ok(None),
                End::Failed(error) => {
                    self.planner.fail_all(&error.to_string());
                    return Err(error);
                }
            }
        }
    }

    /// Wait before the next era; longer each time until a step has been completed.
    fn pause(&mut self) -> Result<(), End> {
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(self.config.backoff.1);
        let generation = self.last.generation;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let membership = self.context.inbox.membership();
            let superseded = membership.is_some_and(|now| now.generation > generation);
            if left.is_zero() || superseded {
                return self.take_inputs(Duration::ZERO, None);
            }
            self.take_inputs(left, None)?;
        }
    }
}
