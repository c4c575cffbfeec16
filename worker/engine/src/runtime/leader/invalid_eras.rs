//! When eras that end by something invalid are a bug, and not chance.

use std::time::Duration;

/// A group that has served for this long since something was invalid serves well: a bit that flips once a month is no reason
/// to end every rank.
pub(super) const SERVED_WELL: Duration = Duration::from_secs(600);

/// The eras of a leader, as far as they ended by something invalid.
#[derive(Debug, Default)]
pub(super) struct InvalidEras {
    /// How long the group has served since the last of them; none: there was none, or it is long ago.
    since: Option<Duration>,
}

impl InvalidEras {
    /// An era has ended in which the group served for so long. Whether another one would end the same way. Eras that end
    /// otherwise say nothing: a member that was lost may have found something invalid and not been heard.
    pub(super) fn ended(&mut self, invalid: bool, served: Duration) -> bool {
        let since = self.since.map(|since| since.saturating_add(served));
        let recent = since.filter(|since| *since < SERVED_WELL);
        self.since = if invalid { Some(Duration::ZERO) } else { recent };
        invalid && recent.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(1);

    #[test]
    fn the_second_within_a_while_of_serving_is_a_bug() {
        let mut eras = InvalidEras::default();
        assert!(!eras.ended(false, SHORT));
        assert!(!eras.ended(true, SERVED_WELL));
        assert!(eras.ended(true, SHORT));
    }

    #[test]
    fn a_loss_between_does_not_hide_it() {
        let mut eras = InvalidEras::default();
        assert!(!eras.ended(true, SHORT));
        assert!(!eras.ended(false, SHORT));
        assert!(!eras.ended(false, Duration::ZERO));
        assert!(eras.ended(true, SHORT));
    }

    #[test]
    fn serving_well_makes_it_forgotten() {
        let mut eras = InvalidEras::default();
        assert!(!eras.ended(true, SHORT));
        assert!(!eras.ended(true, SERVED_WELL), "one long era");
        for _ in 0..10 {
            assert!(!eras.ended(false, SERVED_WELL / 10));
        }
        assert!(!eras.ended(true, SHORT), "several short ones");
        assert!(eras.ended(true, SHORT));
    }
}
