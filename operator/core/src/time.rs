//! Instants as milliseconds since the Unix epoch.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// As Kubernetes writes it, in whole seconds (rounded down), so that an instant reads back as it was written.
#[must_use]
pub fn to_time(millis: Millis) -> Time {
    Time(Timestamp::from_second(millis.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// From what Kubernetes wrote.
#[must_use]
pub fn millis(time: &Time) -> Millis {
    time.0.as_millisecond()
}

/// The instant, or now where that is earlier. What is said to have happened later than now was written by a clock that was wrong: it counts as of
/// now, and whoever goes on with it writes it down so. Then a wait that it began lasts no longer than others do, from when the clock was right again.
#[must_use]
pub fn not_ahead(time: &Time, now: Millis) -> Time {
    if millis(time) > now {
        to_time(now)
    } else {
        time.clone()
    }
}

/// The earlier of an optional instant and another.
#[must_use]
pub fn earlier(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    match (one, other) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The wait, longer by up to `percent` hundredths: the same ones for what hashes alike, so that many do not come back at one moment.
#[must_use]
pub fn spread(wait: Millis, percent: u64, by: impl Hash) -> Millis {
    let mut hasher = DefaultHasher::new();
    by.hash(&mut hasher);
    let percent = i64::try_from(hasher.finish() % (percent + 1)).unwrap_or(0);
    wait + wait * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_ahead_is_moved_to_now() {
        let now = 1_000_000_500;
        for (stamp, counts) in [
            (0, 0),
            (1_000_000_000, 1_000_000_000),
            (1_000_001_000, 1_000_000_000),
            (now + 86_400_000, 1_000_000_000),
        ] {
            assert_eq!(millis(&not_ahead(&to_time(stamp), now)), counts, "{stamp}");
        }
    }
}
