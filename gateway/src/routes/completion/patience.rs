//! How long a client waits for a group.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};

const PREFER: HeaderName = HeaderName::from_static("prefer");

/// How long the client wants to wait for a group: `Prefer: wait=SECONDS` (RFC 7240). What cannot be read is ignored, as
/// that document demands.
#[must_use]
pub fn patience(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(PREFER).into_iter();
    let preferences = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split([',', ';']));
    preferences
        .filter_map(|preference| {
            let (name, value) = preference.split_once('=')?;
            let wait = name.trim().eq_ignore_ascii_case("wait");
            wait.then(|| value.trim().trim_matches('"').parse().ok())
                .flatten()
        })
        .map(Duration::from_secs)
        .next()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn clients_say_how_long_they_wait() {
        let wait = |value: &'static str| {
            patience(&HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]))
        };
        assert_eq!(wait("wait=5"), Some(Duration::from_secs(5)));
        assert_eq!(wait("respond-async, Wait = \"7\""), Some(Duration::from_secs(7)));
        for nothing in ["", "wait", "wait=soon", "wait=-1", "waiting=3"] {
            assert_eq!(wait(nothing), None, "{nothing}");
        }
    }
}
