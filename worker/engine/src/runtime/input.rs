//! What other threads tell the leader's.

use std::time::Instant;

use super::request::{EventSink, GenerationRequest};
use crate::schedule::SequenceId;

/// What the leader's thread is told.
pub(super) enum Input {
    Submit {
        id: SequenceId,
        request: GenerationRequest,
        sink: EventSink,
        at: Instant,
    },
    Cancel(SequenceId),
    /// Look at the shared state again.
    Wake,
}
