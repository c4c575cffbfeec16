//! One step on one rank, whether it leads or follows.

use std::time::Instant;

use super::config::RankConfig;
use super::control::Shared;
use crate::backend::{Backend, BackendError, Ticket};
use crate::collective::CollectiveError;
use crate::step::{Late, Plan, StepOutput};

/// Compute a step on this rank: the counters tell a stall before it from one inside.
pub(super) fn compute<B: Backend>(
    backend: &mut B,
    shared: &Shared,
    config: &RankConfig,
    plan: &Plan,
    late: &Late,
) -> Result<(Ticket, StepOutput), BackendError> {
    let ticket = backend.submit(plan)?;
    backend.bind(ticket, late)?;
    shared.state.entered(plan.step);
    let deadline = Instant::now() + config.stall_timeout;
    loop {
        if let Some(output) = backend.poll(ticket)? {
            return Ok((ticket, output));
        }
        if Instant::now() > deadline {
            let millis = u64::try_from(config.stall_timeout.as_millis()).unwrap_or(u64::MAX);
            return Err(CollectiveError::Deadline {
                rank: config.rank,
                millis,
            }
            .into());
        }
        std::thread::yield_now();
    }
}
