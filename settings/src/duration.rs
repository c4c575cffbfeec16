//! Spans of time as users of Kubernetes write them: `30s`, `1m30s`, `500ms`, `2h`.

use std::fmt;
use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration: write numbers with units h, m, s or ms, for example 30s or 1m30s")]
pub struct DurationError(String);

/// Longest text that is read.
pub const MAX_LENGTH: usize = 32;

/// Milliseconds of each unit, the longest first.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Read a duration. It has at most `i64::MAX` milliseconds.
///
/// # Errors
/// The text is none, or longer than [`MAX_LENGTH`].
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.chars().take(64).collect());
    if text.is_empty() || text.len() > MAX_LENGTH {
        return Err(error());
    }
    let (mut rest, mut total) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
        let number: u64 = number.parse().map_err(|_| error())?;
        let part = number.checked_mul(*millis).ok_or_else(error)?;
        total = total.checked_add(part).ok_or_else(error)?;
        rest = tail;
    }
    i64::try_from(total).map_err(|_| error())?;
    Ok(Duration::from_millis(total))
}

/// Writes a duration as [`parse`] reads it; less than a millisecond is not written.
#[derive(Debug, Clone, Copy)]
pub struct Written(pub Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS.map(|(unit, millis)| (unit, u128::from(millis))) {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_users_write() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("2h", 7_200_000),
            ("0s", 0),
            ("1h1ms", 3_600_001),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_with_a_sentence() {
        for text in [
            "",
            "30",
            "s",
            "30 s",
            "-5s",
            "1.5h",
            "30sec",
            "99999999999999999999h",
            "9223372036854775808ms",
            "1µs",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("for example 30s"), "{text}: {error}");
        }
    }

    #[test]
    fn prints_what_it_reads() {
        for millis in [0, 1, 999, 1_000, 61_000, 3_600_000, 86_461_001] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(&Written(duration).to_string()), Ok(duration));
        }
    }
}
