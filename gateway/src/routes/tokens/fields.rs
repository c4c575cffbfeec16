//! Every field of a question for tokens, and what is done with it.

use crate::routes::completion::asked::Harmless::Nothing;
use crate::routes::completion::fields::Treatment::{Refused, Used};
use crate::routes::completion::fields::{Field, On::Tokenize, TEMPLATE, row};

const TEXT_ONLY: &str = "the model reads text only";

/// The table.
pub const FIELDS: &[Field] = &[
    row(Tokenize, "model", Used("picks the deployment; required")),
    row(Tokenize, "prompt", Used("a text; or messages")),
    row(Tokenize, "messages", Used("as in chat completion; or a prompt")),
    row(
        Tokenize,
        "tools",
        Used("functions that the chat template is told of, at most 128"),
    ),
    row(
        Tokenize,
        "add_special_tokens",
        Used("false: no begin-of-text token before a text"),
    ),
    row(
        Tokenize,
        "add_generation_prompt",
        Used("false: the prompt does not open the assistant's turn"),
    ),
    row(
        Tokenize,
        "continue_final_message",
        Used("true: the answer would go on with the last message"),
    ),
    row(
        Tokenize,
        "chat_template_kwargs",
        Used("variables of the checkpoint's chat template, by name"),
    ),
    row(
        Tokenize,
        "return_token_strs",
        Used("true: what each token spells"),
    ),
    row(Tokenize, "chat_template", Refused(Nothing, TEMPLATE)),
    row(Tokenize, "media_io_kwargs", Refused(Nothing, TEXT_ONLY)),
    row(Tokenize, "mm_processor_kwargs", Refused(Nothing, TEXT_ONLY)),
];
