//! What a client is told of its limits, in OpenAI's headers.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use llamero_proto::v1::{AdmitReply, Level};

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Write what is left; limits that the key does not have are not told.
pub fn tell(headers: &mut HeaderMap, reply: &AdmitReply) {
    write(headers, REQUESTS, reply.requests.as_ref());
    write(headers, TOKENS, reply.tokens.as_ref());
}

fn write(headers: &mut HeaderMap, names: [HeaderName; 3], level: Option<&Level>) {
    let Some(level) = level else { return };
    let [limit, remaining, reset] = names;
    headers.insert(limit, HeaderValue::from(level.limit));
    headers.insert(remaining, HeaderValue::from(level.remaining));
    // OpenAI's clients read durations such as 6m0s and 20ms.
    let seconds = level.reset_millis.div_ceil(1000);
    if let Ok(value) = HeaderValue::try_from(format!("{seconds}s")) {
        headers.insert(reset, value);
    }
}
