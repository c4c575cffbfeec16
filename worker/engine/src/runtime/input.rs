//! What other threads tell the leader's.

use std::time::Instant;

use super::adapters::AdapterReply;
use super::constraint::Constraint;
use super::request::{EventSink, GenerationRequest};
use crate::mesh::{MeshError, Message};
use crate::schedule::SequenceId;
use crate::step::Era;

/// What the leader's thread is told. The queue has no bound of its own: requests are bounded before they get here, a
/// request is cancelled at most twice, members answer what they were asked, and whoever loads an adapter waits for the answer.
pub(super) enum Input {
    Submit {
        id: SequenceId,
        request: GenerationRequest,
        constraint: Option<Box<dyn Constraint>>,
        sink: EventSink,
        at: Instant,
    },
    Cancel(SequenceId),
    /// Load an adapter.
    LoadAdapter {
        name: String,
        path: String,
        reply: AdapterReply,
    },
    /// Forget an adapter.
    UnloadAdapter {
        name: String,
        reply: AdapterReply,
    },
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
