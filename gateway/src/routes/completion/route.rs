//! What differs between the two routes.

use super::fields::{FIELDS, Field};
use crate::routes::{embeddings, messages, responses, tokens};

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Text,
    /// `POST /v1/responses`.
    Responses,
    /// `POST /v1/messages`.
    Messages,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `POST /tokenize`.
    Tokenize,
}

impl Route {
    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat_completions",
            Self::Text => "completions",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::Embeddings => "embeddings",
            Self::Tokenize => "tokenize",
        }
    }

    /// How ids of its answers begin.
    #[must_use]
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Text => "cmpl-",
            Self::Responses => "resp_",
            Self::Messages => "msg_",
            Self::Embeddings => "embd-",
            Self::Tokenize => "tok-",
        }
    }

    /// The `object` of a whole answer, or of a chunk of one.
    #[must_use]
    pub fn object(self, chunk: bool) -> &'static str {
        match (self, chunk) {
            (Self::Chat, false) => "chat.completion",
            (Self::Chat, true) => "chat.completion.chunk",
            (Self::Text, _) => "text_completion",
            (Self::Responses, _) => "response",
            (Self::Messages, _) => "message",
            (Self::Embeddings | Self::Tokenize, _) => "list",
        }
    }

    /// Every field of its requests.
    #[must_use]
    pub fn fields(self) -> &'static [Field] {
        match self {
            Self::Chat | Self::Text => FIELDS,
            Self::Responses => responses::fields::FIELDS,
            Self::Messages => messages::fields::FIELDS,
            Self::Embeddings => embeddings::fields::FIELDS,
            Self::Tokenize => tokens::fields::FIELDS,
        }
    }

    /// The parameter that holds the prompt.
    #[must_use]
    pub fn prompt(self) -> &'static str {
        match self {
            Self::Chat | Self::Messages => "messages",
            Self::Text | Self::Tokenize => "prompt",
            Self::Responses | Self::Embeddings => "input",
        }
    }
}
