//! The objects that are sent, whole or in pieces.

use serde::Serialize;

use super::logprobs::{Logprobs, PromptLogprobs};
use super::order::Envelope;
use super::route::Route;
use crate::relay::StopReason;
use crate::routes::usage::Usage;

/// An answer or a chunk of one.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Completion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    /// What the weights are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<&'a str>,
    pub choices: &'a [Choice<'a>],
    /// vLLM's, of a whole chat answer that was asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    /// In streams absent unless asked for; then null in all chunks that have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

impl<'a> Completion<'a> {
    /// An object without usage.
    #[must_use]
    pub fn new(route: Route, chunk: bool, envelope: &'a Envelope, choices: &'a [Choice<'a>]) -> Self {
        Self {
            id: &envelope.id,
            object: route.object(chunk),
            created: envelope.created,
            model: &envelope.model,
            system_fingerprint: None,
            choices,
            prompt_logprobs: None,
            usage: None,
        }
    }
}

/// One of the answers, or a piece of it. Its text stands in one of three places.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Choice<'a> {
    pub index: usize,
    /// Of a whole chat answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Message<'a>>,
    /// Of a piece of a chat answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta<'a>>,
    /// Of a text completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<&'a str>,
    pub logprobs: Option<Logprobs>,
    /// vLLM's, of a whole text completion that was asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<PromptLogprobs>,
    pub finish_reason: Option<&'static str>,
    /// vLLM's: what ended the answer, if the request asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason<'a>>,
}

/// The model's message.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Message<'a> {
    pub role: &'static str,
    /// Null when there is nothing but calls.
    pub content: Option<&'a str>,
    pub refusal: Option<()>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub tool_calls: &'a [ToolCall<'a>],
}

/// A call, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct ToolCall<'a> {
    /// In streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    pub function: Function<'a>,
}

/// What is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    pub arguments: &'a str,
}

/// What is new.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
}

impl<'a> Choice<'a> {
    /// A whole answer.
    #[must_use]
    pub fn whole(route: Route, index: usize, text: &'a str, calls: &'a [ToolCall<'a>]) -> Self {
        let mut choice = Self {
            index,
            ..Self::default()
        };
        match route {
            Route::Text => choice.text = Some(text),
            _ => {
                choice.message = Some(Message {
                    role: "assistant",
                    content: (!text.is_empty() || calls.is_empty()).then_some(text),
                    refusal: None,
                    tool_calls: calls,
                });
            }
        }
        choice
    }

    /// A piece of an answer; without text it says nothing.
    #[must_use]
    pub fn piece(route: Route, index: usize, text: Option<&'a str>) -> Self {
        let mut choice = Self {
            index,
            ..Self::default()
        };
        match route {
            Route::Text => choice.text = Some(text.unwrap_or_default()),
            _ => {
                choice.delta = Some(Delta {
                    content: text,
                    ..Delta::default()
                });
            }
        }
        choice
    }
}

/// Why an answer ended, in OpenAI's words. `called` tells that it has tool calls.
#[must_use]
pub fn finish_reason(reason: llamero_proto::v1::FinishReason, called: bool) -> &'static str {
    use llamero_proto::v1::FinishReason::{Abort, Length, Stop, Unspecified};
    match reason {
        Length => "length",
        Stop if called => "tool_calls",
        // The relay turns the others into errors.
        Stop | Abort | Unspecified => "stop",
    }
}
