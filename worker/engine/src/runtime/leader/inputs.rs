//! What other threads say while the leader waits.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::{End, Leader};
use crate::mesh::{MeshError, Message};
use crate::runtime::executor::Executor;
use crate::runtime::input::Input;
use crate::runtime::state::{Outcome, Phase};

impl Leader<'_> {
    /// Take what came, waiting up to `wait` for the first. An end when the rank or the era is to end. `executor` is that
    /// of the present era, once there is one.
    pub(in crate::runtime) fn take_inputs(
        &mut self,
        wait: Duration,
        mut executor: Option<&mut Executor>,
    ) -> Result<(), End> {
        let mut next = if wait.is_zero() {
            self.inputs.try_recv().ok()
        } else {
            match self.inputs.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                // This leader holds a sender itself, so this does not happen while it lives.
                Err(RecvTimeoutError::Disconnected) => return Err(End::Outcome(Outcome::Stopped)),
            }
        };
        let refuses = self.context.refuses();
        // A broken era is left when all inputs are taken: requests among them must not be lost.
        let mut ended = Ok(());
        while let Some(input) = next {
            match self.take(input, executor.as_deref_mut()) {
                // Nothing goes on after this, whatever else has ended.
                Err(End::ComputeEnded) => ended = Err(End::ComputeEnded),
                // It says why a link was closed, which others may have seen before.
                Err(End::Invalid(error)) if matches!(ended, Err(End::Era(_))) => {
                    ended = Err(End::Invalid(error))
                }
                taken => ended = ended.and(taken),
            }
            next = self.inputs.try_recv().ok();
        }
        if self.context.is_stopped() {
            return Err(End::Outcome(Outcome::Stopped));
        }
        ended?;
        // Members that leave while others compute would seem lost to those.
        if refuses && self.planner.is_idle() && self.planner.is_resting() {
            return Err(End::Outcome(Outcome::Drained));
        }
        if self.context.is_draining() && self.context.state.phase_now() == Phase::Serving {
            self.context.state.phase(Phase::Draining, "finishes what runs");
        }
        Ok(())
    }

    pub(super) fn take(&mut self, input: Input, executor: Option<&mut Executor>) -> Result<(), End> {
        match (input, executor) {
            (
                Input::Submit {
                    id,
                    request,
                    constraint,
                    sink,
                    at,
                },
                _,
            ) => self.planner.submit(id, request, constraint, sink, at),
            (Input::LoadAdapter { name, path, reply }, executor) => {
                self.load_adapter(executor, name, path, reply)?;
            }
            (Input::UnloadAdapter { name, reply }, executor) => {
                self.unload_adapter(executor, &name, reply)?;
            }
            (
                Input::Member {
                    era,
                    rank,
                    message: Message::Adapter { number, outcome },
                    ..
                },
                Some(executor),
            ) if era == self.last => self.adapter_answered(executor, rank, number, outcome)?,
            (Input::Cancel(id), executor) => self.planner.cancel(id, executor, Instant::now())?,
            (
                Input::Member {
                    era,
                    rank,
                    step,
                    message,
                },
                Some(executor),
            ) if era == self.last => executor.receive(rank, step, message, Instant::now())?,
            (
                Input::Lost {
                    era,
                    error,
                    heard_all,
                },
                executor,
            ) if era == self.last => {
                if heard_all {
                    self.silent.extend(error.rank());
                }
                if executor.is_some() {
                    return Err(error.into());
                }
            }
            // Of an era that is over.
            (Input::Member { .. } | Input::Lost { .. }, _) => {}
            (Input::ComputeEnded, _) => return Err(End::ComputeEnded),
            (Input::Wake, _) => {}
        }
        Ok(())
    }

    /// Fail when a later generation, another leader or a shutdown has ended the era.
    pub(super) fn check_abort(&self, abort: &crate::mesh::EraAbort) -> Result<(), End> {
        if abort.is_aborted() {
            return Err(MeshError::Aborted.into());
        }
        Ok(())
    }
}
