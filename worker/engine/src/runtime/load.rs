//! How busy the group is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::schedule::Scheduler;

/// Upper bounds in seconds, from a millisecond to two minutes.
pub const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

#[derive(Debug, Clone, Default)]
pub(super) struct Histogram {
    /// Per bound, then what lies above all.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    pub(super) fn record(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        let at = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += seconds;
    }

    pub(super) fn snapshot(&self) -> HistogramSnapshot {
        let mut total = 0;
        let cumulative = self.counts.map(|count| {
            total += count;
            total
        });
        HistogramSnapshot {
            cumulative: cumulative.into_iter().take(BOUNDS.len()).collect(),
            count: total,
            sum_seconds: self.sum,
        }
    }
}

/// A histogram as Prometheus has it; the upper bounds are [`BOUNDS`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HistogramSnapshot {
    /// Values at or below each bound.
    pub cumulative: Vec<u64>,
    /// Values in all.
    pub count: u64,
    /// Their sum.
    pub sum_seconds: f64,
}

/// Load of the group at one moment. Counters run since the process started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadSnapshot {
    /// Sequences that are computed.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// KV blocks in use.
    pub kv_blocks_used: u32,
    /// KV blocks in all; 0 before the group has formed.
    pub kv_blocks_total: u32,
    /// Tokens of the longest sequence that the group holds now, prompt and answer together; 0 before it has formed. Fewer than
    /// it was configured for while it does without some ranks and their memory.
    pub longest: u32,
    /// Steps of the whole group.
    pub steps: u64,
    /// Prompt tokens of accepted requests.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Tokens of prompts that were looked for in the KV cache.
    pub prefix_lookup_tokens: u64,
    /// Of those, tokens that were found there.
    pub prefix_hit_tokens: u64,
    /// Rows that had drafts.
    pub drafts: u64,
    /// Tokens that were drafted in them.
    pub draft_tokens: u64,
    /// Of those, tokens that were right.
    pub accepted_tokens: u64,
    /// From submission to the first token.
    pub time_to_first_token: HistogramSnapshot,
    /// From token to token of one request.
    pub inter_token_latency: HistogramSnapshot,
    /// Whether the group is draining.
    pub draining: bool,
    /// When the last step of the whole group ended.
    pub last_step_at: Option<Instant>,
}

/// Where the leader leaves its figures.
#[derive(Debug, Default)]
pub(super) struct LoadCell(Mutex<Figures>);

#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) kv: (u32, u32),
    pub(super) longest: u32,
    pub(super) steps: u64,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) prefix_lookup_tokens: u64,
    pub(super) prefix_hit_tokens: u64,
    pub(super) drafts: u64,
    pub(super) draft_tokens: u64,
    pub(super) accepted_tokens: u64,
    pub(super) first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) last_step_at: Option<Instant>,
}

impl Figures {
    /// Renew the figures about the queue.
    pub(super) fn queue(&mut self, scheduler: &Scheduler) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.running = count(scheduler.running());
        self.waiting = count(scheduler.waiting());
        self.kv = scheduler.kv_blocks();
        self.longest = scheduler.limits().longest();
    }
}

impl LoadCell {
    pub(super) fn update(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn longest(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).longest
    }

    pub(super) fn snapshot(&self, draining: bool) -> LoadSnapshot {
        let figures = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        LoadSnapshot {
            running: figures.running,
            waiting: figures.waiting,
            kv_blocks_used: figures.kv.0,
            kv_blocks_total: figures.kv.1,
            longest: figures.longest,
            steps: figures.steps,
            prompt_tokens: figures.prompt_tokens,
            output_tokens: figures.output_tokens,
            prefix_lookup_tokens: figures.prefix_lookup_tokens,
            prefix_hit_tokens: figures.prefix_hit_tokens,
            drafts: figures.drafts,
            draft_tokens: figures.draft_tokens,
            accepted_tokens: figures.accepted_tokens,
            time_to_first_token: figures.first_token.snapshot(),
            inter_token_latency: figures.inter_token.snapshot(),
            draining,
            last_step_at: figures.last_step_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 2, 300_000] {
            histogram.record(Duration::from_millis(millis));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.cumulative[..3], [1, 3, 3]);
        assert_eq!(snapshot.cumulative.last(), Some(&3));
        assert_eq!(snapshot.count, 4);
        assert!((snapshot.sum_seconds - 300.005).abs() < 1e-9);
    }
}
