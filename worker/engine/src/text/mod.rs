//! The text side of a request: from messages or text to a validated request in tokens, and from tokens back to text.
//!
//! | module | what it is |
//! |---|---|
//! | [`tokenizer`] | `tokenizer.json`: text to tokens, tokens to bytes |
//! | `encoding` | text to tokens in bounded memory |
//! | `shared_model` | two tokenizers with one vocabulary |
//! | [`detokenizer`] | tokens to text as they come, whole characters only |
//! | [`stop`] | stop strings across the borders of tokens |
//! | [`output`] | the text of one answer: detokeniser, stop tokens and stop strings together |
//! | [`chat_template`] | messages to the prompt the model was trained on |
//! | [`chat_message`] | one message, as a template sees it |
//! | [`template_files`] | where a checkpoint keeps its template |
//! | [`prompt`] | what a template wrote: its control tokens, and text |
//! | [`tool_calls`] | how a model is told of tools, and its calls read |
//! | [`request`] | a validated request |

mod byte_level;
pub mod chat_message;
pub mod chat_template;
pub mod detokenizer;
mod encoding;
mod markers;
mod nesting;
mod operators;
pub mod output;
pub mod prompt;
mod python;
pub mod request;
mod shared_model;
pub mod stop;
mod tags;
pub mod template_files;
pub mod tokenizer;
pub mod tool_calls;

#[cfg(test)]
pub(crate) mod testing;

pub use chat_message::ChatMessage;
pub use chat_template::{ChatTemplate, ChatTemplateError, Conversation};
pub use detokenizer::Detokenizer;
pub use output::{Finished, OutputText, Piece};
pub use prompt::Prompt;
pub use request::{GenerationRequest, RequestDraft, RequestError, RequestLimits, StopConditions};
pub use template_files::TemplateFiles;
pub use tokenizer::{Tokenizer, TokenizerError};
