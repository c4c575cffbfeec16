//! How long to wait before a rank's process is started again.

use std::time::Duration;

use llamero_proto::v1::ExitKind;

/// Doubles from [`FIRST`] to [`LONGEST`]; starts anew after a run of at least [`STABLE`].
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
const STABLE: Duration = Duration::from_secs(60);
/// A process that cannot work as configured is tried again only in case that somebody mends its input in place.
const UNUSABLE: Duration = Duration::from_secs(300);

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after a process that ran for `lived` and ended like that.
    pub fn after(&mut self, kind: ExitKind, lived: Duration) -> Duration {
        if kind == ExitKind::Unusable {
            return UNUSABLE;
        }
        if lived >= STABLE {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_bound_and_forgets_after_a_stable_run() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12)
            .map(|_| backoff.after(ExitKind::Crashed, Duration::ZERO))
            .collect();
        assert_eq!(waits[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(waits[11], LONGEST);
        assert_eq!(backoff.after(ExitKind::Bug, STABLE), FIRST);
        assert_eq!(backoff.after(ExitKind::Crashed, Duration::ZERO), FIRST * 2);
    }

    #[test]
    fn what_cannot_work_is_not_tried_in_a_hot_loop() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after(ExitKind::Unusable, Duration::ZERO), UNUSABLE);
        assert_eq!(backoff.after(ExitKind::Crashed, Duration::ZERO), FIRST);
    }
}
