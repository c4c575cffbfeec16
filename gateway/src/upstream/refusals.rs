//! Leaders that cannot take one certain request, though they serve others.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::Leader;

/// Why, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its queue is full until then.
    Busy(Instant),
    /// It has other weights than those that began the answer, and will keep them.
    OtherWeights,
}

/// The refusals of one request, at most one for each leader that exists.
#[derive(Debug, Default)]
pub struct Refusals {
    entries: Vec<(Weak<Leader>, Refusal)>,
}

impl Refusals {
    /// `leader` refused the request.
    pub fn add(&mut self, leader: &Arc<Leader>, refusal: Refusal) {
        // Leaders that discovery has dropped are forgotten.
        self.entries.retain(|(known, _)| {
            known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(leader))
        });
        self.entries.push((Arc::downgrade(leader), refusal));
    }

    /// How `leader` refused, if it did.
    #[must_use]
    pub fn of(&self, leader: &Arc<Leader>) -> Option<Refusal> {
        let entry = self
            .entries
            .iter()
            .find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(leader)));
        entry.map(|&(_, refusal)| refusal)
    }

    /// When the first leader whose queue is full may have room; only those that are full still.
    #[must_use]
    pub fn room_at(&self, now: Instant) -> Option<Instant> {
        let busy = self.entries.iter().filter_map(|(_, refusal)| match refusal {
            Refusal::Busy(until) if *until > now => Some(*until),
            _ => None,
        });
        busy.min()
    }

    /// Whether a leader has other weights.
    #[must_use]
    pub fn other_weights(&self) -> bool {
        self.entries
            .iter()
            .any(|(_, refusal)| *refusal == Refusal::OtherWeights)
    }
}
