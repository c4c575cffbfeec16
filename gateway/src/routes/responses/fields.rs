//! Every field of a request of the Responses API, and what is done with it.

use crate::routes::completion::asked::Harmless::{Nothing, Null, Only, Words};
use crate::routes::completion::fields::Treatment::{Accepted, Refused, Used};
use crate::routes::completion::fields::{Field, On::Responses, row};

const STORED: &str = "nothing is stored here; send the items of the conversation as input";

/// The table.
pub const FIELDS: &[Field] = &[
    row(Responses, "model", Used("picks the deployment; required")),
    row(
        Responses,
        "input",
        Used("text, or items: messages, function_call, function_call_output; reasoning is passed over"),
    ),
    row(
        Responses,
        "instructions",
        Used("stands before the input as a system's message"),
    ),
    row(Responses, "stream", Used("server-sent events")),
    row(
        Responses,
        "max_output_tokens",
        Used("at least 1; default: the rest of the context"),
    ),
    row(
        Responses,
        "temperature",
        Used("0 to 2; default: the checkpoint's"),
    ),
    row(
        Responses,
        "top_p",
        Used("above 0, at most 1; default: the checkpoint's"),
    ),
    row(Responses, "top_logprobs", Used("0 to 20 of the likeliest tokens")),
    row(
        Responses,
        "include",
        Used("message.output_text.logprobs: log-probabilities; others add nothing"),
    ),
    row(
        Responses,
        "text",
        Used("format: text, json_object, json_schema (always enforced)"),
    ),
    row(Responses, "tools", Used("functions, at most 128")),
    row(
        Responses,
        "tool_choice",
        Used(
            "none, auto, required, or a function; the last two give one call that has the parameters' schema",
        ),
    ),
    row(Responses, "parallel_tool_calls", Used("false: at most one call")),
    row(Responses, "metadata", Used("is given back")),
    row(Responses, "store", Accepted("nothing is stored")),
    row(Responses, "stream_options", Accepted("no obfuscation is added")),
    row(Responses, "user", Accepted("keeps books")),
    row(Responses, "service_tier", Accepted("there is one tier")),
    row(Responses, "safety_identifier", Accepted("keeps books")),
    row(
        Responses,
        "prompt_cache_key",
        Used("requests with the same one go to the same group, as far as its load allows"),
    ),
    row(
        Responses,
        "prompt_cache_retention",
        Accepted("only speed could depend on it"),
    ),
    row(Responses, "previous_response_id", Refused(Nothing, STORED)),
    row(Responses, "conversation", Refused(Null, STORED)),
    row(Responses, "prompt", Refused(Null, STORED)),
    row(
        Responses,
        "background",
        Refused(Nothing, "stream the answer, or wait for it"),
    ),
    row(
        Responses,
        "max_tool_calls",
        Refused(Null, "tools are called by the client, who can count"),
    ),
    row(
        Responses,
        "reasoning",
        Refused(Nothing, "the model does not reason apart from its answer"),
    ),
    row(
        Responses,
        "truncation",
        Refused(Words(&["disabled"]), "shorten the input yourself"),
    ),
    row(
        Responses,
        "modalities",
        Refused(Only("text"), "the model writes text only"),
    ),
];
