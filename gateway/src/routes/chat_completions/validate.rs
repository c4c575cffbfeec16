//! Refuses what is not built and what makes no sense.

use super::types::{ChatRequest, Content, Message};
use crate::error::ApiError;
use crate::routes::unsupported::{refuse, refuse_format, refuse_several};

/// A message that only has text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextMessage {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// Its text.
    pub content: String,
}

/// The conversation of a request that asks for nothing that is not built.
///
/// # Errors
/// 400 naming the parameter.
pub fn validate(request: &ChatRequest) -> Result<Vec<TextMessage>, ApiError> {
    refuse_several("n", request.n)?;
    let without = "leave it out";
    refuse("logprobs", request.logprobs.as_ref(), &[], without)?;
    refuse("top_logprobs", request.top_logprobs.as_ref(), &[], without)?;
    refuse(
        "tools",
        request.tools.as_ref(),
        &[],
        "describe tools in the prompt",
    )?;
    refuse(
        "tool_choice",
        request.tool_choice.as_ref(),
        &["none", "auto"],
        without,
    )?;
    refuse(
        "functions",
        request.functions.as_ref(),
        &[],
        "describe functions in the prompt",
    )?;
    refuse(
        "function_call",
        request.function_call.as_ref(),
        &["none", "auto"],
        without,
    )?;
    refuse("audio", request.audio.as_ref(), &[], without)?;
    refuse("prediction", request.prediction.as_ref(), &[], without)?;
    refuse(
        "web_search_options",
        request.web_search_options.as_ref(),
        &[],
        without,
    )?;
    refuse_format(request.response_format.as_ref())?;
    if request.messages.is_empty() {
        return Err(ApiError::invalid(
            Some("messages"),
            "'messages' is empty; send at least one message.",
        ));
    }
    request
        .messages
        .iter()
        .enumerate()
        .map(|(index, found)| message(index, found))
        .collect()
}

fn message(index: usize, message: &Message) -> Result<TextMessage, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let role = match message.role.as_str() {
        // OpenAI's newer word for system.
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            return Err(ApiError::unsupported(
                &at("role"),
                "Tool calls are not supported; send results as user messages.",
            ));
        }
        other => {
            let shown: String = other.chars().take(64).collect();
            let message = format!("The role '{shown}' is not known; use system, user or assistant.");
            return Err(ApiError::invalid(Some(&at("role")), message));
        }
    };
    refuse(
        &at("tool_calls"),
        message.tool_calls.as_ref(),
        &[],
        "send what the assistant said as text",
    )?;
    let content = match &message.content {
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Parts(parts)) => {
            let text = |part: &super::types::Part| match (part.kind.as_str(), &part.text) {
                ("text", Some(text)) => Ok(text.clone()),
                _ => Err(ApiError::unsupported(
                    &at("content"),
                    "Only parts of type 'text' with a 'text' are supported; the model reads text only.",
                )),
            };
            parts.iter().map(text).collect::<Result<Vec<_>, _>>()?.concat()
        }
        None => {
            return Err(ApiError::invalid(
                Some(&at("content")),
                "The message has no content; send its text.",
            ));
        }
    };
    Ok(TextMessage { role, content })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(extra: Value) -> Result<Vec<TextMessage>, ApiError> {
        let mut request = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        request
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        validate(&serde_json::from_value(request).unwrap())
    }

    #[test]
    fn parts_are_joined_and_developer_is_system() {
        let messages = check(json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null},
        ]}))
        .unwrap();
        let texts: Vec<_> = messages
            .iter()
            .map(|found| (found.role, found.content.as_str()))
            .collect();
        assert_eq!(texts, [("system", "ab"), ("assistant", "c")]);
    }

    #[test]
    fn values_that_ask_for_nothing_pass() {
        check(
            json!({"n": 1, "tools": [], "tool_choice": "none", "logprobs": false, "top_logprobs": 0,
            "response_format": {"type": "text"}, "user": "u", "metadata": {}, "store": true, "made_up": 1}),
        )
        .unwrap();
    }

    #[test]
    fn each_mistake_gets_its_sentence() {
        for (extra, param) in [
            (json!({"n": 2}), "n"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"top_logprobs": 5}), "top_logprobs"),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
            (json!({"functions": [{}]}), "functions"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"audio": {}}), "audio"),
            (json!({"messages": []}), "messages"),
            (
                json!({"messages": [{"role": "robot", "content": "x"}]}),
                "messages[0].role",
            ),
            (
                json!({"messages": [{"role": "tool", "content": "x"}]}),
                "messages[0].role",
            ),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (
                json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{}]}]}),
                "messages[0].tool_calls",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content",
            ),
        ] {
            let error = check(extra).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
            assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST);
        }
    }
}
