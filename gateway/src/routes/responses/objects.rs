//! The objects that are sent.

use serde::Serialize;
use serde_json::{Value, json};

use super::request::Request;
use crate::error::ApiError;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::logprobs::Entry;
use crate::routes::completion::order::Envelope;
use crate::routes::usage::Usage;

/// What of a request its response gives back.
#[derive(Debug, Clone)]
pub struct Settings {
    instructions: Option<String>,
    max_output_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_logprobs: i64,
    text: Value,
    tools: Value,
    tool_choice: Value,
    parallel_tool_calls: bool,
    metadata: Value,
}

impl Settings {
    /// Of a request.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn new(request: &Request) -> Result<Self, ApiError> {
        let object = |name: &str, kept: &Option<Kept>, default: Value| -> Result<Value, ApiError> {
            let Some(kept) = kept.as_ref().filter(|kept| kept.0 != "null") else {
                return Ok(default);
            };
            let wrong =
                |error| ApiError::invalid(Some(name), format!("'{name}' is not as expected: {error}."));
            serde_json::from_str(&kept.0).map_err(wrong)
        };
        let metadata = object("metadata", &request.metadata, json!({}))?;
        if !metadata.is_object() {
            return Err(ApiError::invalid(
                Some("metadata"),
                "'metadata' must be an object.",
            ));
        }
        Ok(Self {
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            temperature: request.sampling.temperature,
            top_p: request.sampling.top_p,
            top_logprobs: request.sampling.top_logprobs.unwrap_or(0),
            text: object("text", &request.text, json!({"format": {"type": "text"}}))?,
            tools: object("tools", &request.tools, json!([]))?,
            tool_choice: object("tool_choice", &request.tool_choice, json!("auto"))?,
            parallel_tool_calls: request.parallel_tool_calls.unwrap_or(true),
            metadata,
        })
    }
}

/// Where a response stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is being made.
    InProgress,
    /// It ended by itself.
    Completed,
    /// It is as long as it may be.
    Incomplete,
    /// It will not be finished.
    Failed,
}

impl Status {
    /// OpenAI's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
        }
    }
}

/// A part of what the model wrote.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are those of the Responses API")]
pub enum Item {
    Message {
        id: String,
        role: &'static str,
        status: &'static str,
        content: Vec<Text>,
    },
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        arguments: String,
        status: &'static str,
    },
}

/// A text.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(tag = "type", rename = "output_text")]
#[allow(missing_docs, reason = "the fields are those of the Responses API")]
pub struct Text {
    pub text: String,
    pub annotations: [(); 0],
    pub logprobs: Vec<Entry>,
}

/// The API knows these codes only for a response that failed.
fn code(error: &ApiError) -> &'static str {
    match error.status.as_u16() {
        429 => "rate_limit_exceeded",
        400..500 => "invalid_prompt",
        _ => "server_error",
    }
}

/// A whole response.
#[must_use]
pub fn response(
    envelope: &Envelope,
    settings: &Settings,
    status: Status,
    output: &[Item],
    usage: Option<Usage>,
    error: Option<&ApiError>,
) -> Value {
    let incomplete = (status == Status::Incomplete).then(|| json!({"reason": "max_output_tokens"}));
    let error = error.map(|error| json!({"code": code(error), "message": error.message}));
    let usage = usage.map(|usage| {
        json!({
            "input_tokens": usage.prompt_tokens,
            // Whatever is computed of a prompt is cached, and nobody pays for it.
            "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        })
    });
    json!({
        "id": envelope.id, "object": "response", "created_at": envelope.created, "status": status.word(),
        "background": false, "error": error, "incomplete_details": incomplete,
        "instructions": settings.instructions, "max_output_tokens": settings.max_output_tokens,
        "max_tool_calls": null, "model": envelope.model, "output": output,
        "parallel_tool_calls": settings.parallel_tool_calls, "previous_response_id": null,
        "reasoning": {"effort": null, "summary": null}, "service_tier": "default", "store": false,
        "temperature": settings.temperature, "text": settings.text, "tool_choice": settings.tool_choice,
        "tools": settings.tools, "top_logprobs": settings.top_logprobs, "top_p": settings.top_p,
        "truncation": "disabled", "usage": usage, "user": null, "metadata": settings.metadata,
    })
}
