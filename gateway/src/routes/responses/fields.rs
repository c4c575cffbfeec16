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
        Used(
            "format: text, json_object, json_schema (always enforced); verbosity: medium; others are refused",
        ),
    ),
    row(
        Responses,
        "tools",
        Used("functions, at most 128; calls of strict ones have the schema"),
    ),
    row(
        Responses,
        "tool_choice",
        Used(
            "none, auto, required (at least one call), or a function (one call); arguments then have the parameters' schema",
        ),
    ),
    row(Responses, "parallel_tool_calls", Used("false: at most one call")),
    row(Responses, "metadata", Used("is given back")),
    row(Responses, "store", Accepted("nothing is stored")),
    row(
        Responses,
        "seed",
        Used("any whole number; the same seed gives the same answer"),
    ),
    row(
        Responses,
        "top_k",
        Used("−1 and 0: off; default: the checkpoint's"),
    ),
    row(Responses, "min_p", Used("0 (off) to 1")),
    row(Responses, "presence_penalty", Used("−2 to 2")),
    row(Responses, "frequency_penalty", Used("−2 to 2")),
    row(
        Responses,
        "repetition_penalty",
        Used("above 0, at most 10; 1 is off; counts tokens of the prompt too"),
    ),
    row(
        Responses,
        "logit_bias",
        Used("−100 to 100 by token id; at most 1,024"),
    ),
    row(Responses, "stop", Used("a string or up to 16")),
    row(Responses, "stop_token_ids", Used("at most 1,024")),
    row(Responses, "ignore_eos", Used("go on behind the end of the text")),
    row(Responses, "min_tokens", Used("nothing ends the answer before")),
    row(Responses, "bad_words", Used("at most 64")),
    row(
        Responses,
        "include_stop_str_in_output",
        Used("the stop string ends the text"),
    ),
    row(
        Responses,
        "skip_special_tokens",
        Used("false: names of special tokens are part of the text"),
    ),
    row(
        Responses,
        "structured_outputs",
        Used("one of json, regex, choice, grammar, json_object; not beside text.format"),
    ),
    row(
        Responses,
        "priority",
        Used("lower ones begin first; a request that waits is overtaken at most 64 times"),
    ),
    row(
        Responses,
        "cache_salt",
        Used("what is cached of a prompt is used for requests with the same salt only"),
    ),
    row(Responses, "request_id", Accepted("give the header x-request-id")),
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
        "prompt_cache_options",
        Accepted("only speed could depend on it"),
    ),
    row(
        Responses,
        "access_programs",
        Accepted("a model is open to whoever may ask for it"),
    ),
    row(Responses, "background_options", Accepted("says how, not whether")),
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
    row(Responses, "image", Refused(Nothing, "the model writes text only")),
    row(
        Responses,
        "moderation",
        Refused(Nothing, "texts are not judged here; judge them yourself"),
    ),
    row(
        Responses,
        "context_management",
        Refused(Nothing, "shorten the input yourself"),
    ),
    row(
        Responses,
        "mm_processor_kwargs",
        Refused(Nothing, "the model reads text only"),
    ),
    row(
        Responses,
        "enable_response_messages",
        Refused(Nothing, "use /tokenize"),
    ),
    row(Responses, "previous_input_messages", Refused(Nothing, STORED)),
    row(Responses, "previous_response", Refused(Nothing, STORED)),
    row(Responses, "vllm_xargs", Refused(Nothing, "leave it out")),
];
