//! Tools: how a model is told of them, and how its calls are read from its answer as it comes.
//!
//! | module | what it is |
//! |---|---|
//! | [`parser`] | an answer as text and calls, piece by piece |
//! | [`head`] | the beginning of a call in JSON |
//! | [`opening`] | the beginning of a call as forms write it |
//! | [`python_call`] | what stands behind Llama's `<\|python_tag\|>` |
//! | [`history`] | messages with calls and results, as templates expect them |

mod head;
pub mod history;
pub(crate) mod opening;
pub mod parser;
mod python_call;

pub use history::{ToolTexts, conversation};
pub use parser::{ToolCallParser, ToolPiece};

/// Llama's token that stands before calls of built-in tools and code.
pub const PYTHON_TAG: &str = "<|python_tag|>";
