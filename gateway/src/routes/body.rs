//! Reading a JSON body, with a sentence for everything that can be wrong with it.

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// Read at most `limit` bytes and parse them. The content type is not looked at, as OpenAI's API does not either.
///
/// # Errors
/// 413 for a larger body, 400 for one that is not UTF-8, not JSON or has a wrong type somewhere.
pub async fn read_json<T: DeserializeOwned>(body: Body, limit: usize) -> Result<T, ApiError> {
    let bytes = to_bytes(body, limit)
        .await
        .map_err(|error| read_error(&error, limit))?;
    parse(&bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
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
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let named = path != "." && !error.inner().is_syntax() && !error.inner().is_eof();
        if named {
            ApiError::invalid(
                Some(&path),
                format!("'{path}' is not as expected: {}", error.inner()),
            )
        } else {
            not_json(error.inner())
        }
    })?;
    json.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::invalid(None, format!("The body is not a valid JSON request: {error}."))
}

fn read_error(error: &axum::Error, limit: usize) -> ApiError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        // `axum::body::to_bytes` names its limit only in words.
        if cause.to_string().contains("length limit") {
            let message = format!("The body is larger than {limit} bytes; send a shorter conversation.");
            return ApiError {
                status: StatusCode::PAYLOAD_TOO_LARGE,
                code: Some("request_too_large"),
                ..ApiError::invalid(None, message)
            };
        }
        source = cause.source();
    }
    ApiError::invalid(None, format!("The body could not be read: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Sample {
        #[serde(rename = "model")]
        _model: String,
        #[serde(rename = "temperature")]
        _temperature: Option<f32>,
    }

    fn complaint(bytes: &[u8]) -> (Option<String>, String) {
        let error = parse::<Sample>(bytes).unwrap_err();
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
            (b"{}", None, "missing field `model`"),
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
        parse::<Sample>(br#"{"model": "m", "store": true}"#).unwrap();
    }

    #[tokio::test]
    async fn a_large_body_is_refused() {
        let error = read_json::<Sample>(Body::from(vec![b' '; 11]), 10)
            .await
            .unwrap_err();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
    }
}
