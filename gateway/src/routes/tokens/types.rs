//! Requests and answers.

use llamero_proto::v1::{ChatPrompt, CompletionRequest, completion_request::Prompt};
use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::check::refusal;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::{MAX_MESSAGES, Message, conversation};
use crate::routes::completion::request::Take;
use crate::routes::completion::{template, tools};

/// Most tokens of a text.
const MAX_TOKENS: usize = 1 << 20;

/// `POST /tokenize`: a text, or messages as in chat completion.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct Tokenize {
    pub model: String,
    pub prompt: Option<String>,
    pub messages: Option<Vec<Message>>,
    pub add_special_tokens: Option<bool>,
    pub template: template::Asked,
    pub tools: Option<Kept>,
    pub return_token_strs: Option<bool>,
    /// The first field that asks for something that is not built, and what to do instead.
    pub refused: Option<(&'static str, &'static str)>,
}

impl Take for Tokenize {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "model" => self.model = map.next_value()?,
            "prompt" => self.prompt = map.next_value()?,
            "messages" => {
                let messages: Option<Bounded<Message, MAX_MESSAGES>> = map.next_value()?;
                self.messages = messages.map(|messages| messages.0);
            }
            "tools" => self.tools = map.next_value()?,
            "add_special_tokens" => self.add_special_tokens = map.next_value()?,
            "add_generation_prompt" => self.template.add_generation_prompt = map.next_value()?,
            "continue_final_message" => self.template.continue_final_message = map.next_value()?,
            "chat_template_kwargs" => self.template.chat_template_kwargs = map.next_value()?,
            "return_token_strs" => self.return_token_strs = map.next_value()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn refused(&mut self) -> &mut Option<(&'static str, &'static str)> {
        &mut self.refused
    }
}

impl Tokenize {
    /// The question to the worker.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn request(self) -> Result<CompletionRequest, ApiError> {
        if let Some((field, instead)) = self.refused {
            return Err(refusal(field, instead));
        }
        let prompt = match (self.prompt, self.messages) {
            (Some(text), None) => Prompt::Text(text),
            (None, Some(messages)) => {
                let mut chat = ChatPrompt {
                    messages: conversation(messages, |index| format!("messages[{index}]"))?,
                    ..ChatPrompt::default()
                };
                let tools = tools::Asked {
                    tools: self.tools,
                    ..tools::Asked::default()
                };
                tools.apply(&mut chat)?;
                self.template.apply(&mut chat)?;
                Prompt::Chat(chat)
            }
            _ => {
                let message = "Send either a 'prompt' or 'messages'.";
                return Err(ApiError::invalid(Some("prompt"), message));
            }
        };
        Ok(CompletionRequest {
            prompt: Some(prompt),
            no_special_tokens: self.add_special_tokens == Some(false),
            ..CompletionRequest::default()
        })
    }
}

/// The tokens.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct Tokens {
    pub count: usize,
    pub max_model_len: u32,
    pub tokens: Vec<u32>,
    pub token_strs: Option<Vec<String>>,
}

/// `POST /detokenize`.
#[derive(Debug, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct Detokenize {
    pub model: String,
    pub tokens: Bounded<u32, MAX_TOKENS>,
}

/// The text.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct Text {
    pub prompt: String,
}
