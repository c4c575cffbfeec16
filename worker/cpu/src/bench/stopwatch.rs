//! Time that other programs on the machine do not stretch, where that can be had.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A running measurement. On one thread it counts that thread's CPU time (waits for memory included), because a busy machine
/// would otherwise make any engine look slow; on several threads it counts time on the wall.
pub(super) struct Stopwatch {
    start: Instant,
    cpu: Option<Duration>,
}

impl Stopwatch {
    pub(super) fn start(threads: usize) -> Self {
        Self {
            start: Instant::now(),
            cpu: (threads == 1).then(cpu_time),
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.cpu
            .map_or_else(|| self.start.elapsed(), |start| cpu_time().saturating_sub(start))
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    )
}
