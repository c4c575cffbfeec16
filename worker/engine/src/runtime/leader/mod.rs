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

use std::convert::Infallible;
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
use crate::backend::StepProgress;
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
}

/// Why the leader is not in an era any more.
enum End {
    /// The era is over: something was lost, or a later generation came.
    Era(MeshError),
    /// Nothing is left to do.
    Outcome(Outcome),
    /// This rank's own compute has ended for good, and says why.
    ComputeEnded,
}

impl From<MeshError> for End {
    fn from(error: MeshError) -> Self {
        Self::Era(error)
    }
}

impl Leader<'_> {
    /// Lead until drained or stopped; none when this rank's compute thread has ended.
    pub(super) fn run(mut self) -> Option<Outcome> {
        loop {
            let ended = match self.one_era() {
                Ok(never) => match never {},
                Err(End::Era(error)) => {
                    tracing::warn!(era = ?self.last, "the era ended: {error}");
                    self.context.state.lost(&error.into());
                    self.planner.leave();
                    self.pause().err()
                }
                Err(end) => Some(end),
            };
            match ended {
                None | Some(End::Era(_)) => {}
                Some(End::Outcome(outcome)) => return Some(outcome),
                Some(End::ComputeEnded) => return None,
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

    fn one_era(&mut self) -> Result<Infallible, End> {
        era::run(self)
    }
}
