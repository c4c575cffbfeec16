//! The steps of one member that were submitted and not released. No thread and no link: messages go in one by one, and
//! answers come out.

use std::collections::VecDeque;
use std::time::Instant;

use crate::adapters::AdapterSource;
use crate::backend::{Backend, BackendError, Ticket, Waited};
use crate::mesh::Message;
use crate::step::{Late, Plan, StepOutput};

/// Steps in the order of their numbers.
#[derive(Default)]
pub(in crate::runtime) struct MemberSteps {
    steps: VecDeque<MemberStep>,
    last: u64,
}

struct MemberStep {
    number: u64,
    ticket: Ticket,
    tokens_due: bool,
    sampling: Sampling,
    done: bool,
}

#[derive(PartialEq, Eq)]
enum Sampling {
    Given,
    Due,
    /// Due, and the backend cannot go on without.
    Needed,
}

/// What a message leads to.
pub(in crate::runtime) enum Taken {
    Nothing,
    /// This goes back to the leader.
    Answer(Message),
    /// Read this adapter beside the steps.
    LoadAdapter(AdapterSource),
    /// The leader leaves.
    Leave,
}

impl MemberSteps {
    /// Whether a step can be computed without hearing more.
    pub(in crate::runtime) fn can_advance(&self) -> bool {
        self.next()
            .is_some_and(|step| !step.tokens_due && step.sampling != Sampling::Needed)
    }

    /// The number of the step to be computed next.
    pub(in crate::runtime) fn computing(&self) -> Option<u64> {
        self.next().map(|step| step.number)
    }

    fn next(&self) -> Option<&MemberStep> {
        self.steps.iter().find(|step| !step.done)
    }

    /// Take a message of the leader.
    pub(in crate::runtime) fn take<B: Backend>(
        &mut self,
        backend: &mut B,
        number: u64,
        message: Message,
    ) -> Result<Taken, BackendError> {
        match message {
            Message::Plan(plan) if number == self.last + 1 && plan.step == number => {
                self.submit(backend, &plan)?;
            }
            Message::Late(late) => self.late(backend, number, &late)?,
            Message::Fetch { row, offset } => {
                let step = self.steps.iter().find(|step| step.number == number && step.done);
                let Some(step) = step else {
                    return Err(message.out_of_place(0, number).into());
                };
                let shard = backend.fetch(step.ticket, row, offset)?;
                return Ok(Taken::Answer(Message::Row { row, offset, shard }));
            }
            Message::Release if self.steps.front().is_some_and(|step| step.number == number) => {
                if let Some(step) = self.steps.pop_front() {
                    backend.release(step.ticket);
                }
            }
            Message::Alive => {}
            Message::LoadAdapter(source) => return Ok(Taken::LoadAdapter(source)),
            Message::UnloadAdapter(number) => backend.adapters().unload(number),
            Message::Leave => return Ok(Taken::Leave),
            message => return Err(message.out_of_place(0, number).into()),
        }
        Ok(Taken::Nothing)
    }

    fn submit<B: Backend>(&mut self, backend: &mut B, plan: &Plan) -> Result<(), BackendError> {
        self.steps.push_back(MemberStep {
            number: plan.step,
            ticket: backend.submit(plan)?,
            tokens_due: plan.late_tokens > 0,
            sampling: if plan.late_sampling {
                Sampling::Due
            } else {
                Sampling::Given
            },
            done: false,
        });
        self.last = plan.step;
        Ok(())
    }

    fn late<B: Backend>(&mut self, backend: &mut B, number: u64, late: &Late) -> Result<(), BackendError> {
        let step = self.steps.iter_mut().find(|step| step.number == number);
        let Some(step) = step else {
            return Self::not_awaited(late, number);
        };
        if step.done {
            // The leader did not know yet that the step was computed. Ranks before the last stage sample nothing, and are done
            // without the values for that.
            let is_unused = matches!(late, Late::Sampling { .. }) && step.sampling == Sampling::Due;
            if is_unused {
                step.sampling = Sampling::Given;
                return Ok(());
            }
            return Self::not_awaited(late, number);
        }
        match late {
            Late::Tokens(_) => step.tokens_due = false,
            Late::Sampling { .. } => step.sampling = Sampling::Given,
            Late::Cancel(_) => {}
        }
        backend.late(step.ticket, late)
    }

    fn not_awaited(late: &Late, number: u64) -> Result<(), BackendError> {
        match late {
            Late::Cancel(_) => Ok(()),
            _ => Err(Message::Late(late.clone()).out_of_place(0, number).into()),
        }
    }

    /// Compute the next step, at most about until `until`. Its answer when it is done.
    pub(in crate::runtime) fn advance<B: Backend>(
        &mut self,
        backend: &mut B,
        until: Instant,
    ) -> Result<Option<(u64, StepOutput)>, BackendError> {
        if !self.can_advance() {
            return Ok(None);
        }
        let Some(step) = self.steps.iter_mut().find(|step| !step.done) else {
            return Ok(None);
        };
        match backend.wait(step.ticket, until)? {
            Waited::Done(output) => {
                step.done = true;
                Ok(Some((step.number, output)))
            }
            Waited::NeedsSampling if step.sampling == Sampling::Due => {
                step.sampling = Sampling::Needed;
                Ok(None)
            }
            Waited::NeedsSampling => Err(BackendError::Bug(format!(
                "the backend waits for sampling values of step {}, and has them or was promised none",
                step.number
            ))),
            Waited::Pending => Ok(None),
        }
    }
}
