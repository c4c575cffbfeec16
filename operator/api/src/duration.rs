//! Durations as users write them: `30s`, `1m30s`, `500ms`, `2h`.

use std::borrow::Cow;

use llamero_settings::duration::{self, MAX_LENGTH, Written};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use llamero_settings::duration::DurationError;

/// A span of time in whole milliseconds, written as Kubernetes users write it (`1m30s`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(i64);

/// What the CRD accepts. Seven digits a unit keep every accepted value far from overflow.
pub(crate) const PATTERN: &str = "^([0-9]{1,7}(h|ms|m|s))+$";

impl Duration {
    /// A duration of so many milliseconds; negative values become zero.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(if millis < 0 { 0 } else { millis })
    }

    /// A duration of so many seconds.
    #[must_use]
    pub const fn from_secs(secs: u32) -> Self {
        Self(secs as i64 * 1_000)
    }

    /// Whole milliseconds.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }
}

impl std::str::FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let parsed = duration::parse(text)?;
        // What is parsed has no more.
        Ok(Self(i64::try_from(parsed.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl std::fmt::Display for Duration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let span = std::time::Duration::from_millis(self.0.unsigned_abs());
        write!(f, "{}", Written(span))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN, "maxLength": MAX_LENGTH})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is a duration the parser's own tests say; here is how it stands in an object.
    #[test]
    fn stands_as_text_in_objects() {
        let read = |text: &str| serde_json::from_value::<Duration>(text.into());
        let span = read("1h1ms").unwrap();
        assert_eq!(span.millis(), 3_600_001);
        assert_eq!(serde_json::to_value(span).unwrap(), "1h1ms");
        let error = read("30").unwrap_err().to_string();
        assert!(error.contains("for example 30s"), "{error}");
    }

    #[test]
    fn the_longest_that_is_read_does_not_overflow() {
        assert_eq!(
            "9223372036854775807ms".parse::<Duration>().unwrap().millis(),
            i64::MAX
        );
        assert_eq!(Duration::from_millis(-1), Duration::default());
    }
}
