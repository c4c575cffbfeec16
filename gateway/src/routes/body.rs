//! Reading a JSON body, with a sentence for everything that can be wrong with it.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::StatusCode;
use http_body_util::BodyExt;
use serde::de::DeserializeSeed;
use serde_path_to_error::Track;
use tokio::sync::Semaphore;

use crate::Gateway;
use crate::budget::{Budget, Share};
use crate::error::ApiError;

/// What a client may still send of a body that was refused, and for how long. Who closes a connection
/// with unread bytes resets it, and the client never sees the sentence that says why.
const LINGER_BYTES: usize = 4 << 20;
/// Refused bodies that are read at once; the others' streams are reset.
static LINGERERS: Semaphore = Semaphore::const_new(1024);
const LINGER: Duration = Duration::from_secs(10);

/// Longest path to a wrong value that is shown.
const MAX_PATH: usize = 128;

/// Read and parse a body within the gateway's bounds of size, memory and time. The content type is not looked at, as
/// OpenAI's API does not either.
///
/// # Errors
/// 413 for a larger body, 408 for one that does not come in time, 503 when too many come at once, 400 for one that is
/// not UTF-8, not JSON or has a wrong type somewhere.
pub async fn read_json<T, S>(gateway: &Gateway, reader: S, body: Body) -> Result<T, ApiError>
where
    S: for<'de> DeserializeSeed<'de, Value = T>,
{
    // The share is kept until the body has been parsed.
    let (bytes, _share) = read_within(gateway, body, gateway.settings.body_limit, 0).await?;
    parse(reader, &bytes)
}

/// Read a body of at most `limit` bytes, and `frame` bytes that stand around what the client means by it, within the gateway's bounds of
/// memory and time. What it takes is counted while the share is held.
///
/// # Errors
/// 413, 408, 503 as [`read_json`].
pub async fn read_within(
    gateway: &Gateway,
    body: Body,
    limit: usize,
    frame: usize,
) -> Result<(Vec<u8>, Share), ApiError> {
    let time = gateway.settings.limits.body_timeout;
    let reading = read(body, (limit, frame), &gateway.body_bytes);
    tokio::time::timeout(time, reading)
        .await
        .map_err(|_| late(time))?
}

async fn read(
    mut body: Body,
    (limit, frame): (usize, usize),
    budget: &Budget,
) -> Result<(Vec<u8>, Share), ApiError> {
    let most = limit.saturating_add(frame);
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > most {
        tokio::spawn(linger(body));
        return Err(ApiError::too_large(limit));
    }
    let mut share = budget.take(0).ok_or_else(full)?;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| ApiError::invalid(None, format!("The body could not be read: {error}.")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most {
            tokio::spawn(linger(body));
            return Err(ApiError::too_large(limit));
        }
        if !share.grow(data.len()) {
            tokio::spawn(linger(body));
            return Err(full());
        }
        let there = bytes.len() + data.len();
        if bytes.capacity() < announced && there >= announced / 4 {
            // What was announced is believed once a good part of it is there, and paid for: a large mapping takes memory by its first byte.
            bytes.reserve_exact(announced.max(there) - bytes.len());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, share))
}

fn late(time: Duration) -> ApiError {
    let message = format!(
        "The body did not come within {} s; send the request again.",
        time.as_secs()
    );
    ApiError {
        status: StatusCode::REQUEST_TIMEOUT,
        code: Some("request_timeout"),
        ..ApiError::invalid(None, message)
    }
}

fn full() -> ApiError {
    ApiError::unavailable(
        "too_many_requests",
        "This gateway reads as many request bodies as it has memory for; send the request again.",
        1,
    )
}

/// Read and forget, within bounds, what the client sends after its request was refused.
pub async fn linger(mut body: Body) {
    let Ok(_place) = LINGERERS.try_acquire() else {
        return;
    };
    let rest = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > LINGER_BYTES {
                return;
            }
        }
    };
    // A client that is still sending then has been told long ago.
    let _ = tokio::time::timeout(LINGER, rest).await;
}

fn parse<'de, S: DeserializeSeed<'de>>(reader: S, bytes: &'de [u8]) -> Result<S::Value, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::invalid(None, "The body is empty; send a JSON object."));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        ApiError::invalid(
            None,
            format!("The body is not valid UTF-8 (at byte {at}); send JSON in UTF-8."),
        )
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = Track::new();
    let read = reader.deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let value = read.map_err(|error| {
        let path: String = track.path().to_string().chars().take(MAX_PATH).collect();
        let named = path != "." && !error.is_syntax() && !error.is_eof();
        if let Some(field) = missing_field(&error.to_string()).filter(|_| path == ".") {
            let message = format!("'{field}' is missing: {error}");
            ApiError::invalid(Some(field), message)
        } else if named {
            ApiError::invalid(Some(&path), format!("'{path}' is not as expected: {error}"))
        } else {
            not_json(&error)
        }
    })?;
    json.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

/// The field of the body itself that is not there, as serde says it.
fn missing_field(error: &str) -> Option<&str> {
    let (field, _) = error.strip_prefix("missing field `")?.split_once('`')?;
    Some(field)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::invalid(None, format!("The body is not a valid JSON request: {error}."))
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Sample {
        #[serde(rename = "model")]
        _model: String,
        #[serde(rename = "temperature")]
        _temperature: Option<f32>,
    }

    fn complaint(bytes: &[u8]) -> (Option<String>, String) {
        let error = parse(PhantomData::<Sample>, bytes).unwrap_err();
        assert_eq!(
            (error.status, error.kind),
            (StatusCode::BAD_REQUEST, "invalid_request_error")
        );
        (error.param, error.message)
    }

    #[test]
    fn each_mistake_gets_its_sentence() {
        for (body, param, words) in [
            (&b""[..], None, "empty"),
            (b"{\"model\": \"\xff\"}", None, "UTF-8 (at byte 11)"),
            (b"{\"model\": ", None, "not a valid JSON"),
            (b"{\"model\": \"m\"} x", None, "not a valid JSON"),
            (b"{}", Some("model"), "missing field `model`"),
            (b"{\"model\": 1}", Some("model"), "expected a string"),
            (
                b"{\"model\": \"m\", \"temperature\": \"hot\"}",
                Some("temperature"),
                "expected f32",
            ),
        ] {
            let (named, message) = complaint(body);
            assert!(
                named.as_deref() == param && message.contains(words),
                "{named:?} {message}"
            );
        }
    }

    #[test]
    fn unknown_fields_are_tolerated() {
        parse(PhantomData::<Sample>, br#"{"model": "m", "store": true}"#).unwrap();
    }

    #[tokio::test]
    async fn a_large_body_is_refused_announced_or_not() {
        let budget = Budget::new(100);
        let whole = Body::from(vec![b' '; 11]);
        let parts = Body::from_stream(futures::stream::iter([
            Ok::<_, std::io::Error>(vec![b' '; 6]),
            Ok(vec![b' '; 5]),
        ]));
        for body in [whole, parts] {
            let error = read(body, (8, 2), &budget).await.unwrap_err();
            assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        }
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn bodies_share_their_memory() {
        let budget = Budget::new(100);
        let first = read(Body::from(vec![b' '; 60]), (80, 0), &budget).await.unwrap();
        let error = read(Body::from(vec![b' '; 60]), (80, 0), &budget)
            .await
            .unwrap_err();
        assert_eq!(
            (error.status, error.retry_after),
            (StatusCode::SERVICE_UNAVAILABLE, Some(1))
        );
        drop(first);
        read(Body::from(vec![b' '; 60]), (80, 0), &budget).await.unwrap();
    }
}
