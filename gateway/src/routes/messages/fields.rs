//! Every field of a request of the Messages API, and what is done with it.

use crate::routes::completion::asked::Harmless::{Nothing, Null, Words};
use crate::routes::completion::fields::Treatment::{Accepted, Refused, Used};
use crate::routes::completion::fields::{Field, On::Messages, row};

/// The table.
pub const FIELDS: &[Field] = &[
    row(Messages, "model", Used("picks the deployment; required")),
    row(
        Messages,
        "messages",
        Used(
            "user and assistant; text, or blocks: text, tool_use, tool_result (is_error: its text begins with Error); thinking is passed over; a last turn of the assistant is gone on with, not beside a form or a demanded call",
        ),
    ),
    row(Messages, "system", Used("text, or text blocks")),
    row(Messages, "max_tokens", Used("at least 1; required")),
    row(Messages, "stream", Used("server-sent events")),
    row(Messages, "temperature", Used("0 to 2; default: the checkpoint's")),
    row(
        Messages,
        "top_p",
        Used("above 0, at most 1; default: the checkpoint's"),
    ),
    row(Messages, "top_k", Used("default: the checkpoint's")),
    row(Messages, "stop_sequences", Used("at most 16")),
    row(
        Messages,
        "tools",
        Used("tools with an input_schema, at most 128; calls of strict ones have it"),
    ),
    row(
        Messages,
        "tool_choice",
        Used(
            "auto, none, any (at least one call), or a tool (one call); arguments then have the tool's schema",
        ),
    ),
    row(Messages, "thinking", Used("type: disabled; others are refused")),
    row(Messages, "metadata", Accepted("keeps books")),
    row(Messages, "service_tier", Accepted("there is one tier")),
    row(Messages, "speed", Accepted("there is one speed")),
    row(
        Messages,
        "cache_control",
        Accepted("prompts are cached by themselves"),
    ),
    row(Messages, "user_profile_id", Accepted("keeps books")),
    row(Messages, "workspace_id", Accepted("keeps books")),
    row(Messages, "billing_policy", Accepted("keeps books")),
    row(Messages, "fallback_credit_token", Accepted("keeps books")),
    row(
        Messages,
        "fallbacks",
        Accepted("no request is declined for its content"),
    ),
    row(
        Messages,
        "diagnostics",
        Refused(Nothing, "usage says how much of the prompt was cached"),
    ),
    row(
        Messages,
        "compaction",
        Refused(Nothing, "ask for a summary in a message"),
    ),
    row(
        Messages,
        "thread",
        Refused(Null, "nothing is stored here; send the whole conversation"),
    ),
    row(
        Messages,
        "container",
        Refused(Null, "tools are called by the client"),
    ),
    row(
        Messages,
        "mcp_servers",
        Refused(Nothing, "tools are called by the client"),
    ),
    row(
        Messages,
        "context_management",
        Refused(Nothing, "shorten the conversation yourself"),
    ),
    row(
        Messages,
        "output_config",
        Used("format: a json_schema that the answer has; effort: high; others are refused"),
    ),
    row(
        Messages,
        "output_format",
        Used("the older name of output_config.format"),
    ),
    row(
        Messages,
        "inference_geo",
        Refused(Words(&["global"]), "leave it out"),
    ),
];
