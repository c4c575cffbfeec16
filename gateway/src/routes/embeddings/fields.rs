//! Every field of a request for embeddings, and what is done with it.

use crate::routes::completion::asked::Harmless::{Nothing, True, Words};
use crate::routes::completion::fields::Treatment::{Accepted, Refused, Used};
use crate::routes::completion::fields::{Field, On::Embeddings, row};

/// The table.
pub const FIELDS: &[Field] = &[
    row(Embeddings, "model", Used("picks the deployment; required")),
    row(
        Embeddings,
        "input",
        Used("text or token ids, alone or up to 2,048 in a list; each fits the context; required"),
    ),
    row(
        Embeddings,
        "encoding_format",
        Used("float or base64; default: float"),
    ),
    row(
        Embeddings,
        "dimensions",
        Used("only the model's own width: a part of a hidden state is no embedding"),
    ),
    row(
        Embeddings,
        "pooling",
        Used("last (the last token's hidden state; default) or mean (of all tokens)"),
    ),
    row(
        Embeddings,
        "add_special_tokens",
        Used("false: no begin-of-text token before a text"),
    ),
    row(
        Embeddings,
        "cache_salt",
        Used("what is cached of a text is used for requests with the same salt only"),
    ),
    row(Embeddings, "priority", Used("lower ones begin first")),
    row(Embeddings, "user", Accepted("keeps books")),
    row(Embeddings, "request_id", Accepted("give the header x-request-id")),
    row(
        Embeddings,
        "normalize",
        Refused(True, "every embedding has length 1"),
    ),
    row(Embeddings, "messages", Refused(Nothing, "send the text as input")),
    row(
        Embeddings,
        "truncate_prompt_tokens",
        Refused(Nothing, "shorten the input yourself"),
    ),
    row(Embeddings, "additional_data", Refused(Nothing, "leave it out")),
    row(
        Embeddings,
        "embed_dtype",
        Refused(Words(&["float32"]), "values are 32-bit floats"),
    ),
];
