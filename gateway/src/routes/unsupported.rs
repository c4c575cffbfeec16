//! Parameters that ask for what is not built. A value that asks for nothing (null, an empty list, the default) is fine.

use serde_json::Value;

use crate::error::ApiError;

/// Refuse `value` unless it asks for nothing: null, false, 0, an empty list or one of `harmless`.
///
/// # Errors
/// 400 with a sentence ending in `instead`.
pub fn refuse(param: &str, value: Option<&Value>, harmless: &[&str], instead: &str) -> Result<(), ApiError> {
    let asks = match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::String(word)) => !harmless.contains(&word.as_str()),
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::Bool(true) | Value::Object(_)) => true,
    };
    if asks {
        Err(ApiError::unsupported(
            param,
            format!("'{param}' is not supported; {instead}."),
        ))
    } else {
        Ok(())
    }
}

/// Refuse a number of answers other than 1.
///
/// # Errors
/// 400.
pub fn refuse_several(param: &str, value: Option<i64>) -> Result<(), ApiError> {
    match value {
        None | Some(1) => Ok(()),
        Some(count) => {
            let message = format!(
                "'{param}' is {count}, but only 1 answer a request is supported; send several requests."
            );
            Err(ApiError::unsupported(param, message))
        }
    }
}

/// Refuse response formats other than plain text.
///
/// # Errors
/// 400.
pub fn refuse_format(value: Option<&Value>) -> Result<(), ApiError> {
    let plain =
        value.is_none_or(|format| format.is_null() || format.get("type").is_some_and(|kind| kind == "text"));
    if plain {
        return Ok(());
    }
    let message = "Only response_format {\"type\": \"text\"} is supported; ask for JSON in the prompt.";
    Err(ApiError::unsupported("response_format", message))
}
