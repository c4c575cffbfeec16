//! A request as it is read, and the question to the worker.

use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{self, EmbedInput, EmbedRequest, embed_input::Input};
use llamero_settings::limits::MAX_EMBED_INPUTS;
use serde::Deserialize;
use serde::de::MapAccess;

use crate::error::ApiError;
use crate::routes::completion::check::refusal;
use crate::routes::completion::prompt::Prompts;
use crate::routes::completion::request::Take;

/// Bytes of a usual token of text.
const BYTES_A_TOKEN: usize = 4;

/// How the values are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// 32-bit floats, little end first, in base64.
    Base64,
}

/// Which hidden states make an embedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Pooling {
    /// The last token's.
    #[default]
    Last,
    /// The mean of all.
    Mean,
}

// Serde's own enums take what is no word for bad JSON, without the field's name.
impl TryFrom<String> for EncodingFormat {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "float" => Ok(Self::Float),
            "base64" => Ok(Self::Base64),
            _ => Err(format!("use float or base64, not {word:?}")),
        }
    }
}

impl TryFrom<String> for Pooling {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        match word.as_str() {
            "last" => Ok(Self::Last),
            "mean" => Ok(Self::Mean),
            _ => Err(format!("use last or mean, not {word:?}")),
        }
    }
}

/// What was read. Absent and null are the same.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(
    missing_docs,
    reason = "the fields are those of the OpenAI API and of the table"
)]
pub struct Request {
    pub model: String,
    pub input: Option<Prompts<MAX_EMBED_INPUTS>>,
    pub encoding_format: EncodingFormat,
    pub dimensions: Option<u32>,
    pub pooling: Pooling,
    pub add_special_tokens: Option<bool>,
    pub cache_salt: Option<String>,
    pub priority: Option<i32>,
    /// The first field that asks for something that is not built, and what to do instead.
    pub refused: Option<(&'static str, &'static str)>,
}

impl Take for Request {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "model" => self.model = map.next_value()?,
            "input" => self.input = map.next_value()?,
            "encoding_format" => {
                self.encoding_format = map.next_value::<Option<_>>()?.unwrap_or_default();
            }
            "dimensions" => self.dimensions = map.next_value()?,
            "pooling" => self.pooling = map.next_value::<Option<_>>()?.unwrap_or_default(),
            "add_special_tokens" => self.add_special_tokens = map.next_value()?,
            "cache_salt" => self.cache_salt = map.next_value()?,
            "priority" => self.priority = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn refused(&mut self) -> &mut Option<(&'static str, &'static str)> {
        &mut self.refused
    }
}

/// What is wanted, checked as far as that goes without the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The question to the worker, without the model's name.
    pub question: EmbedRequest,
    /// The name that the client asked for.
    pub model: String,
    /// Tokens that it is likely to cost.
    pub likely_tokens: u64,
    /// How the values are written.
    pub format: EncodingFormat,
    /// How many values the client expects.
    pub dimensions: Option<u32>,
}

impl Request {
    /// # Errors
    /// 400 naming the parameter.
    pub fn checked(self) -> Result<Checked, ApiError> {
        if let Some((field, instead)) = self.refused {
            return Err(refusal(field, instead));
        }
        let missing = || {
            ApiError::invalid(
                Some("input"),
                "'input' is missing; send a text, or a list of texts.",
            )
        };
        let inputs = self.input.ok_or_else(missing)?.checked();
        let inputs = inputs.map_err(|error| ApiError {
            message: "'input' is empty, or one of its entries is; send some text.".to_owned(),
            ..error.renamed("prompt", "input")
        })?;
        let likely = |input: &Prompt| match input {
            Prompt::Text(text) => text.len().div_ceil(BYTES_A_TOKEN),
            Prompt::TokenIds(tokens) => tokens.ids.len(),
            Prompt::Chat(_) => 0,
        };
        let likely_tokens: usize = inputs.iter().map(likely).sum();
        let input = |prompt| EmbedInput {
            input: match prompt {
                Prompt::Text(text) => Some(Input::Text(text)),
                Prompt::TokenIds(tokens) => Some(Input::TokenIds(tokens)),
                Prompt::Chat(_) => None,
            },
        };
        let pooling = match self.pooling {
            Pooling::Last => v1::Pooling::LastToken,
            Pooling::Mean => v1::Pooling::Mean,
        };
        Ok(Checked {
            question: EmbedRequest {
                inputs: inputs.into_iter().map(input).collect(),
                pooling: pooling.into(),
                no_special_tokens: self.add_special_tokens == Some(false),
                cache_salt: self.cache_salt.unwrap_or_default(),
                priority: self.priority.unwrap_or_default(),
                ..EmbedRequest::default()
            },
            model: self.model,
            likely_tokens: likely_tokens as u64,
            format: self.encoding_format,
            dimensions: self.dimensions,
        })
    }
}
