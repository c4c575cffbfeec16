//! Between OpenAI's objects and `llamero.v1`.

use llamero_proto::v1::{CompletionRequest, completion_request::Prompt};

use super::types::{Choice, TextCompletion, TextRequest};
use crate::error::ApiError;
use crate::routes::answer::{ChunkWriter, Envelope, Whole};
use crate::routes::sampling::Sampling;
use crate::routes::usage::Usage;

/// The OpenAI API's default for this route.
const DEFAULT_MAX_TOKENS: i64 = 16;

/// The request for the worker.
///
/// # Errors
/// 400 when a sampling value is out of range.
pub fn request(request: TextRequest, prompt: Prompt) -> Result<CompletionRequest, ApiError> {
    let mut converted = CompletionRequest {
        model: request.model,
        prompt: Some(prompt),
        ..CompletionRequest::default()
    };
    let sampling = Sampling {
        max_tokens: Some((request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS), "max_tokens")),
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
pub fn whole(envelope: Envelope, answer: Whole) -> TextCompletion {
    let choice = Choice {
        index: 0,
        text: answer.text,
        logprobs: None,
        finish_reason: Some(answer.finish_reason),
    };
    completion(envelope, vec![choice], Some(Some(answer.usage)))
}

fn completion(envelope: Envelope, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> TextCompletion {
    let Envelope { id, created, model } = envelope;
    TextCompletion {
        id,
        object: "text_completion",
        created,
        model,
        choices,
        usage,
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
    fn chunk(&self, text: String, finish_reason: Option<&'static str>) -> TextCompletion {
        let choice = Choice {
            index: 0,
            text,
            logprobs: None,
            finish_reason,
        };
        completion(
            self.envelope.clone(),
            vec![choice],
            self.include_usage.then_some(None),
        )
    }
}

impl ChunkWriter for Chunks {
    type Chunk = TextCompletion;

    fn opening(&self) -> Option<TextCompletion> {
        None
    }

    fn text(&self, text: String) -> TextCompletion {
        self.chunk(text, None)
    }

    fn finish(&self, reason: &'static str) -> TextCompletion {
        self.chunk(String::new(), Some(reason))
    }

    fn usage(&self, usage: Usage) -> Option<TextCompletion> {
        self.include_usage
            .then(|| completion(self.envelope.clone(), Vec::new(), Some(Some(usage))))
    }
}
