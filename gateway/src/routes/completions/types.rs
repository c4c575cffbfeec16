//! Text completion objects of the OpenAI API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::routes::sampling::{Stop, StreamOptions};
use crate::routes::usage::Usage;

/// The request. Fields that are not listed are ignored; those of type `Value` are looked at only to refuse them.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct TextRequest {
    pub model: String,
    pub prompt: Prompt,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub max_tokens: Option<i64>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<i64>,
    pub seed: Option<i64>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub stop: Option<Stop>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub ignore_eos: Option<bool>,
    pub n: Option<i64>,
    pub best_of: Option<i64>,
    pub logprobs: Option<Value>,
    pub echo: Option<Value>,
    pub suffix: Option<Value>,
    pub response_format: Option<Value>,
}

/// Text or tokens, alone or in a list.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "a string, a list of token ids, or a list with one of these"
)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Token ids.
    Tokens(Vec<u32>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

/// The answer, whole or a piece of it.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct TextCompletion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<Choice>,
    /// In streams absent unless asked for; then null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// The only choice.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Choice {
    pub index: u32,
    pub text: String,
    pub logprobs: Option<()>,
    pub finish_reason: Option<&'static str>,
}
