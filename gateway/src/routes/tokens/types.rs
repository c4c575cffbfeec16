//! Requests and answers.

use llamero_proto::v1::{ChatPrompt, CompletionRequest, completion_request::Prompt};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::{MAX_MESSAGES, Message, conversation};
use crate::routes::completion::{template, tools};

/// Most tokens of a text.
const MAX_TOKENS: usize = 1 << 20;

/// `POST /tokenize`: a text, or messages as in chat completion.
#[derive(Debug, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of vLLM's server")]
pub struct Tokenize {
    pub model: String,
    pub prompt: Option<String>,
    pub messages: Option<Bounded<Message, MAX_MESSAGES>>,
    pub add_special_tokens: Option<bool>,
    pub add_generation_prompt: Option<bool>,
    pub continue_final_message: Option<bool>,
    pub chat_template_kwargs: Option<Kept>,
    pub tools: Option<Kept>,
    pub return_token_strs: Option<bool>,
}

impl Tokenize {
    /// The question to the worker.
    ///
    /// # Errors
    /// 400 naming the parameter.
    pub fn request(self) -> Result<CompletionRequest, ApiError> {
        let prompt = match (self.prompt, self.messages) {
            (Some(text), None) => Prompt::Text(text),
            (None, Some(Bounded(messages))) => {
                let mut chat = ChatPrompt {
                    messages: conversation(messages, |index| format!("messages[{index}]"))?,
                    ..ChatPrompt::default()
                };
                let tools = tools::Asked {
                    tools: self.tools,
                    ..tools::Asked::default()
                };
                tools.apply(&mut chat)?;
                let template = template::Asked {
                    chat_template_kwargs: self.chat_template_kwargs,
                    add_generation_prompt: self.add_generation_prompt,
                    continue_final_message: self.continue_final_message,
                };
                template.apply(&mut chat)?;
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
