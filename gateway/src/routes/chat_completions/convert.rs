//! Between OpenAI's objects and `llamero.v1`.

use llamero_proto::v1::{ChatMessage, ChatPrompt, CompletionRequest, completion_request::Prompt};

use super::types::{
    AssistantMessage, ChatCompletion, ChatCompletionChunk, ChatRequest, Choice, ChunkChoice, ChunkDelta,
};
use super::validate::TextMessage;
use crate::error::ApiError;
use crate::routes::answer::{ChunkWriter, Envelope, Whole};
use crate::routes::sampling::Sampling;
use crate::routes::usage::Usage;

/// The request for the worker.
///
/// # Errors
/// 400 when a sampling value is out of range.
pub fn request(request: ChatRequest, messages: Vec<TextMessage>) -> Result<CompletionRequest, ApiError> {
    let messages = messages
        .into_iter()
        .map(|message| ChatMessage {
            role: message.role.to_owned(),
            content: message.content,
        })
        .collect();
    let mut converted = CompletionRequest {
        model: request.model,
        prompt: Some(Prompt::Chat(ChatPrompt {
            messages,
            tools_json: String::new(),
        })),
        ..CompletionRequest::default()
    };
    let newer = request
        .max_completion_tokens
        .map(|value| (value, "max_completion_tokens"));
    let sampling = Sampling {
        max_tokens: newer.or(request.max_tokens.map(|value| (value, "max_tokens"))),
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        seed: request.seed,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: request.logit_bias,
        stop: request.stop,
        stop_token_ids: request.stop_token_ids,
        ignore_eos: request.ignore_eos,
    };
    sampling.apply(&mut converted)?;
    Ok(converted)
}

/// The whole answer.
#[must_use]
pub fn whole(envelope: Envelope, answer: Whole) -> ChatCompletion {
    ChatCompletion {
        id: envelope.id,
        object: "chat.completion",
        created: envelope.created,
        model: envelope.model,
        choices: [Choice {
            index: 0,
            message: AssistantMessage {
                role: "assistant",
                content: answer.text,
                refusal: None,
            },
            logprobs: None,
            finish_reason: answer.finish_reason,
        }],
        usage: answer.usage,
    }
}

/// Writes the chunks of a stream.
#[derive(Debug)]
pub struct Chunks {
    /// What all chunks carry.
    pub envelope: Envelope,
    /// Whether the client asked for `usage`.
    pub include_usage: bool,
}

impl Chunks {
    fn chunk(&self, delta: ChunkDelta, finish_reason: Option<&'static str>) -> ChatCompletionChunk {
        let choice = ChunkChoice {
            index: 0,
            delta,
            logprobs: None,
            finish_reason,
        };
        self.with(vec![choice], self.include_usage.then_some(None))
    }

    fn with(&self, choices: Vec<ChunkChoice>, usage: Option<Option<Usage>>) -> ChatCompletionChunk {
        let Envelope { id, created, model } = self.envelope.clone();
        ChatCompletionChunk {
            id,
            object: "chat.completion.chunk",
            created,
            model,
            choices,
            usage,
        }
    }
}

impl ChunkWriter for Chunks {
    type Chunk = ChatCompletionChunk;

    fn opening(&self) -> Option<ChatCompletionChunk> {
        Some(self.chunk(
            ChunkDelta {
                role: Some("assistant"),
                content: Some(String::new()),
            },
            None,
        ))
    }

    fn text(&self, text: String) -> ChatCompletionChunk {
        self.chunk(
            ChunkDelta {
                role: None,
                content: Some(text),
            },
            None,
        )
    }

    fn finish(&self, reason: &'static str) -> ChatCompletionChunk {
        self.chunk(ChunkDelta::default(), Some(reason))
    }

    fn usage(&self, usage: Usage) -> Option<ChatCompletionChunk> {
        self.include_usage
            .then(|| self.with(Vec::new(), Some(Some(usage))))
    }
}
