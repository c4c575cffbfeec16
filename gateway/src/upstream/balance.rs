//! Which leader a request goes to: the one whose cache fits it, as long as that one is not loaded much more than the
//! others; else the least loaded whose KV cache is not full. There are few leaders, so all are looked at ("power of all choices").
//!
//! The bound is that of consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): no leader has
//! more than 1.25 times its fair share of the requests because of its cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::Instant;

use super::affinity::Affinity;
use super::{Leader, Refusal, Refusals};

/// Where a request goes.
#[derive(Debug, Clone)]
pub enum Pick {
    /// To this leader.
    Leader(Arc<Leader>),
    /// All failed lately; one is worth a try at this time.
    RetryAt(Instant),
    /// There are none.
    None,
}

/// What is known of a leader that is worth a try.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Its name, the same at all gateways.
    pub address: &'a str,
    /// Requests that it has.
    pub load: u32,
    /// Whether some of them wait, or the next one would.
    pub queue: bool,
    /// Thousandths of its KV cache that they hold.
    pub cache: u32,
    /// Whether it is about to go.
    pub draining: bool,
}

/// Thousandths of a KV cache with which it is as good as full.
pub(super) const FULL: u32 = 950;

/// Choose among the leaders of a deployment for a request that some of them may have refused.
#[must_use]
pub fn pick(leaders: &[Arc<Leader>], refusals: &Refusals, affinity: Option<Affinity>, now: Instant) -> Pick {
    // Equal leaders take turns, so that the first one is not favoured.
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let first = turn.checked_rem(leaders.len()).unwrap_or_default();
    let usable: Vec<&Arc<Leader>> = leaders
        .iter()
        .cycle()
        .skip(first)
        .take(leaders.len())
        .filter(|leader| opens_at(leader, refusals, now).is_some_and(|at| at <= now))
        .collect();
    let candidates: Vec<Candidate<'_>> = usable.iter().map(|leader| leader.candidate(now)).collect();
    if let Some(leader) = choose(&candidates, affinity).and_then(|index| usable.get(index)) {
        return Pick::Leader(Arc::clone(leader));
    }
    leaders
        .iter()
        .filter_map(|leader| opens_at(leader, refusals, now))
        .min()
        .map_or(Pick::None, Pick::RetryAt)
}

/// The index of the one that is chosen, if there is any. Leaders that drain are taken only when no other is left.
#[must_use]
pub fn choose(candidates: &[Candidate<'_>], affinity: Option<Affinity>) -> Option<usize> {
    let least = || {
        let all = candidates.iter().enumerate();
        // A full cache comes before the load, since it changes slowly; waiting requests do not, or all would go where none waited half a second ago. Of two
        // with as many requests the one whose requests are shorter has more room.
        all.min_by_key(|(_, leader)| (leader.draining, leader.cache >= FULL, leader.load, leader.cache))
            .map(|(index, _)| index)
    };
    let Some(key) = affinity else { return least() };
    let staying = || candidates.iter().filter(|leader| !leader.draining);
    let count = staying().count() as u64;
    let total: u64 = staying().map(|leader| u64::from(leader.load)).sum::<u64>() + 1;
    // 1.25 times the fair share, this request included, rounded up.
    let bound = (5 * total).div_ceil((4 * count).max(1));
    // A leader where requests wait is passed over while none waits at another.
    let idle = staying().any(|leader| !leader.queue);
    let fits = |leader: &Candidate<'_>| {
        !leader.draining && u64::from(leader.load) < bound && !(leader.queue && idle)
    };
    let fitting = candidates.iter().enumerate().filter(|(_, leader)| fits(leader));
    fitting
        .max_by_key(|(_, leader)| (key.weight(leader.address), leader.address))
        .map(|(index, _)| index)
        .or_else(least)
}

/// From when on the leader is worth a try; `None`: never.
fn opens_at(leader: &Arc<Leader>, refusals: &Refusals, now: Instant) -> Option<Instant> {
    let healthy = leader.avoid_until().unwrap_or(now);
    match refusals.of(leader) {
        None => Some(healthy),
        Some(Refusal::Busy(until)) => Some(until.max(healthy)),
        Some(Refusal::OtherWeights) => None,
    }
}

#[cfg(test)]
#[path = "balance/replay.rs"]
mod replay;
#[cfg(test)]
#[path = "balance/tests.rs"]
mod tests;
