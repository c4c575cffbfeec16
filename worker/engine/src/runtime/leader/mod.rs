//! The eras of rank 0, from connecting to draining, on a thread of their own.
//!
//! | module | what it is |
//! |---|---|
//! | [`adapters`] | loading and unloading adapters |
//! | [`connect`] | rank 0 reaches everybody |
//! | [`era`] | connecting, forming and serving once |
//! | [`inputs`] | what other threads say while the leader waits |
//! | [`invalid_eras`] | when eras that end by something invalid are a bug |
//! | [`last_words`] | what a lost member says itself |
//! | [`loss`] | a lost member, until it is known whether requests are to blame |

mod adapters;
mod connect;
mod era;
mod inputs;
mod invalid_eras;
pub(super) mod last_words;
mod loss;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use invalid_eras::{InvalidEras, SERVED_WELL};
use loss::Loss;

use super::config::RankConfig;
use super::control::RankContext;
use super::input::Input;
use super::member::link::Incoming;
use super::planner::Planner;
use super::queue::QueueGauge;
use super::state::Outcome;
use crate::backend::{BackendError, StepProgress};
use crate::mesh::{Membership, Mesh, MeshError};
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
    /// Whom the present or last era is or was with.
    pub(super) present: Option<Arc<Membership>>,
    /// The member that was lost last while requests were computed, until the group has formed again.
    pub(super) loss: Option<Loss>,
    /// Attempts of this generation that somebody answered by a refusal that no new attempt changes.
    pub(super) lasting_refusals: u32,
    /// Members of the present or last era that have said all they had to say.
    pub(super) silent: Vec<u32>,
    /// When the present or last era had formed; none before.
    pub(super) formed_at: Option<Instant>,
}

/// Why the leader is not in an era any more.
pub(super) enum End {
    /// The era is over: something was lost, or a later generation came.
    Era(MeshError),
    /// The same, because what a member said was invalid. Peers are authenticated, so that is a bug, or broken hardware.
    Invalid(MeshError),
    /// Nothing is left to do.
    Outcome(Outcome),
    /// This rank's own compute has ended for good, and says why.
    ComputeEnded,
    /// The rank cannot go on.
    Failed(BackendError),
}

impl From<MeshError> for End {
    /// The same whoever found it, this rank or a member, and wherever: a divergence that is deterministic comes again in
    /// every era.
    fn from(error: MeshError) -> Self {
        match error {
            MeshError::Protocol { .. } => Self::Invalid(error),
            error => Self::Era(error),
        }
    }
}

impl Leader<'_> {
    /// Lead until drained or stopped; none when this rank's compute thread has ended.
    ///
    /// # Errors
    /// [`BackendError::Unusable`] when members refuse this rank for good; [`BackendError::Bug`] when two eras end
    /// by something invalid and the group did not serve for long between: a third would not end otherwise.
    pub(super) fn run(mut self) -> Result<Option<Outcome>, BackendError> {
        let mut invalid_eras = InvalidEras::default();
        loop {
            let end = match era::run(&mut self) {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let served = self.formed_at.map_or(Duration::ZERO, |formed| formed.elapsed());
            let is_bug = invalid_eras.ended(matches!(end, End::Invalid(_)), served);
            let end = match end {
                End::Invalid(error) if is_bug => End::Failed(BackendError::Bug(format!(
                    "what members said was invalid in two eras within {} minutes of serving, the last time because {error}",
                    SERVED_WELL.as_secs() / 60
                ))),
                End::Era(error) | End::Invalid(error) => {
                    tracing::warn!(era = ?self.last, "the era ended: {error}");
                    self.context.state.lost(&error.clone().into());
                    if self.planner.leave() {
                        self.loss = self
                            .present
                            .as_deref()
                            .and_then(|present| Loss::of(error, present));
                    }
                    match self.pause() {
                        Ok(()) => End::Era(MeshError::Aborted),
                        Err(end) => end,
                    }
                }
                end => end,
            };
            match end {
                End::Era(_) | End::Invalid(_) => {}
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
