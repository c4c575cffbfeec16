//! Durations on the command line.

use std::time::Duration;

/// Parses `500ms`, `30s`, `5m`, `1h` or a bare number of seconds.
///
/// # Errors
/// A sentence that says what is accepted.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis_per_unit = match unit.trim() {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => {
            return Err(format!(
                "unknown unit {other:?}: write a duration such as 500ms, 30s, 5m or 1h"
            ));
        }
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis_per_unit))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a duration: write one such as 500ms, 30s, 5m or 1h"))
}

/// The inverse of [`parse`].
#[must_use]
pub fn show(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis.is_multiple_of(1_000) {
        format!("{}s", millis / 1_000)
    } else {
        format!("{millis}ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_bare_seconds() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("7"), Ok(Duration::from_secs(7)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(
            parse(&show(Duration::from_millis(1_500))),
            Ok(Duration::from_millis(1_500))
        );
    }

    #[test]
    fn nonsense_gets_a_sentence() {
        for bad in ["", "s", "-3s", "1.5s", "10 parsecs", "99999999999999999999h"] {
            assert!(parse(bad).unwrap_err().contains("write"), "{bad}");
        }
    }
}
