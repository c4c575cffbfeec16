//! How long a rank was in each phase before it first served. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use llamero_proto::v1::{Phase, PhaseTimes};

/// Counts from when the supervisor began until the rank first serves, over all processes that it takes; then it stands still.
#[derive(Debug, Clone)]
pub struct PhaseClock {
    phase: Phase,
    since: Instant,
    spent: PhaseTimes,
    over: bool,
}

impl PhaseClock {
    /// The supervisor begins.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Preflight,
            since: now,
            spent: PhaseTimes::default(),
            over: false,
        }
    }

    /// The rank says that it is in `phase`.
    pub fn hear(&mut self, phase: Phase, now: Instant) {
        if self.over || phase == self.phase {
            return;
        }
        let spent = millis(now.saturating_duration_since(self.since));
        let slot = match self.phase {
            Phase::Preflight => Some(&mut self.spent.preflight_millis),
            Phase::Loading => Some(&mut self.spent.loading_millis),
            Phase::Connecting => Some(&mut self.spent.connecting_millis),
            Phase::Warming => Some(&mut self.spent.warming_millis),
            Phase::Unspecified | Phase::Serving | Phase::Draining | Phase::Failed => None,
        };
        if let Some(slot) = slot {
            *slot = Some(slot.unwrap_or(0).saturating_add(spent));
        }
        (self.phase, self.since) = (phase, now);
        self.over = matches!(phase, Phase::Serving | Phase::Draining);
    }

    /// The phases that it has left: these numbers move only when a phase changes, so that telling them wakes nobody.
    #[must_use]
    pub const fn times(&self) -> PhaseTimes {
        self.spent
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(heard: &[(u64, Phase)]) -> PhaseTimes {
        let begun = Instant::now();
        let mut clock = PhaseClock::new(begun);
        for (at, phase) in heard {
            clock.hear(*phase, begun + Duration::from_millis(*at));
        }
        clock.times()
    }

    #[test]
    fn a_phase_is_told_when_it_is_over_and_nothing_moves_after_the_first_step() {
        let mut script = vec![
            (50, Phase::Preflight),
            (200, Phase::Loading),
            (900, Phase::Loading),
        ];
        let first = PhaseTimes {
            preflight_millis: Some(200),
            ..PhaseTimes::default()
        };
        assert_eq!(heard(&script), first, "it still loads");
        script.extend([
            (1200, Phase::Connecting),
            (1500, Phase::Warming),
            (1600, Phase::Serving),
        ]);
        let all = PhaseTimes {
            loading_millis: Some(1000),
            connecting_millis: Some(300),
            warming_millis: Some(100),
            ..first
        };
        assert_eq!(heard(&script), all);
        script.extend([
            (9000, Phase::Connecting),
            (9500, Phase::Warming),
            (9900, Phase::Serving),
        ]);
        assert_eq!(heard(&script), all, "a later era is no start");
    }

    #[test]
    fn what_has_to_be_done_twice_counts_twice() {
        let times = heard(&[
            (100, Phase::Loading),
            (300, Phase::Preflight),
            (350, Phase::Loading),
            (450, Phase::Connecting),
            (500, Phase::Warming),
            (600, Phase::Connecting),
            (630, Phase::Warming),
            (640, Phase::Serving),
        ]);
        let twice = PhaseTimes {
            preflight_millis: Some(150),
            loading_millis: Some(300),
            connecting_millis: Some(80),
            warming_millis: Some(110),
        };
        assert_eq!(times, twice);
    }
}
