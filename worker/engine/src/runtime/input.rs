//! What other threads tell the leader's.

use std::time::Instant;

use super::constraint::Constraint;
use super::request::{EventSink, GenerationRequest};
use crate::mesh::{MeshError, Message};
use crate::schedule::SequenceId;
use crate::step::Era;

/// What the leader's thread is told. The queue has no bound of its own: requests are bounded before they get here, a
/// request is cancelled at most twice, and members answer what they were asked.
pub(super) enum Input {
    Submit {
        id: SequenceId,
        request: GenerationRequest,
        constraint: Option<Box<dyn Constraint>>,
        sink: EventSink,
        at: Instant,
    },
    Cancel(SequenceId),
    /// A member of that era says something.
    Member {
        era: Era,
        rank: u32,
        step: u64,
        message: Message,
    },
    /// The link to a member of that era ended.
    Lost {
        era: Era,
        error: MeshError,
        /// Whether all that the member said has been told before.
        heard_all: bool,
    },
    /// This rank's own compute thread ended for good.
    ComputeEnded,
    /// Look at the shared state again.
    Wake,
}
