//! Every field of a request that OpenAI's API, vLLM's server or Anthropic's API knows, and what is done with it. The page
//! `docs/gateway-fields.md` is made from this table.
//!
//! What changes an answer and is not built is refused by name; what only keeps books is accepted. Fields that are not
//! in the table are ignored.

use super::asked::Harmless;
use super::route::Route;

/// Where a field is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// On both routes.
    Both,
    /// Chat completion only.
    Chat,
    /// Text completion only.
    Text,
    /// The Responses API.
    Responses,
    /// The Messages API.
    Messages,
    /// Embeddings.
    Embeddings,
    /// The tokens of a prompt.
    Tokenize,
}

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Treatment {
    /// It does what it should; how, in a few words.
    Used(&'static str),
    /// It keeps books or has no effect here; why that changes no answer.
    Accepted(&'static str),
    /// Refused by name unless harmless; what to do instead.
    Refused(Harmless, &'static str),
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Where.
    pub on: On,
    /// What is done with it.
    pub treatment: Treatment,
}

/// A row.
#[must_use]
pub const fn row(on: On, name: &'static str, treatment: Treatment) -> Field {
    Field { name, on, treatment }
}

use Harmless::{Nothing, Number, Only, True, Words};
use On::{Both, Chat, Text};
use Treatment::{Accepted, Refused, Used};

const OUT: &str = "leave it out";
const TOOLS: &str = "use tools and tool_choice";
const TEXT_ONLY: &str = "the model reads text only";
/// For a chat template of the client's own.
pub const TEMPLATE: &str = "the checkpoint's own chat template is used as it is";

/// The table.
pub const FIELDS: &[Field] = &[
    row(Both, "model", Used("picks the deployment; required")),
    row(
        Chat,
        "messages",
        Used(
            "system, developer, user, assistant (with tool calls) and tool; text, or parts of type text; at most 4,096",
        ),
    ),
    row(
        Text,
        "prompt",
        Used("text or token ids, alone or up to 128 in a list"),
    ),
    row(Both, "stream", Used("server-sent events")),
    row(
        Both,
        "stream_options",
        Used("include_usage, continuous_usage_stats"),
    ),
    row(
        Both,
        "n",
        Used(
            "answers to a prompt; at most 128 a request over all prompts; with a seed, answer i has seed + i",
        ),
    ),
    row(Text, "best_of", Used("must equal n")),
    row(
        Both,
        "max_tokens",
        Used("at least 1; default: the rest of the context (chat), 16 (text)"),
    ),
    row(Chat, "max_completion_tokens", Used("goes before max_tokens")),
    row(Both, "temperature", Used("0 to 2; default: the checkpoint's")),
    row(
        Both,
        "top_p",
        Used("above 0, at most 1; default: the checkpoint's"),
    ),
    row(Both, "top_k", Used("−1 and 0: off; default: the checkpoint's")),
    row(
        Both,
        "seed",
        Used("any whole number; the same seed gives the same answer"),
    ),
    row(Both, "presence_penalty", Used("−2 to 2")),
    row(Both, "frequency_penalty", Used("−2 to 2")),
    row(Both, "logit_bias", Used("−100 to 100 by token id; at most 1,024")),
    row(Both, "stop", Used("a string or up to 16")),
    row(Both, "stop_token_ids", Used("at most 1,024")),
    row(
        Both,
        "allowed_token_ids",
        Used(
            "the answer has no others, also not its end-of-text token unless it is named or its form is complete",
        ),
    ),
    row(Both, "ignore_eos", Used("go on behind the end of the text")),
    row(
        Both,
        "repetition_penalty",
        Used("above 0, at most 10; 1 is off; counts tokens of the prompt too"),
    ),
    row(
        Both,
        "priority",
        Used("lower ones begin first; a request that waits is overtaken at most 64 times"),
    ),
    row(
        Both,
        "prompt_logprobs",
        Used(
            "of the prompt's tokens, with 0 to 20 of the likeliest; not in a stream; computes the whole prompt",
        ),
    ),
    row(Both, "min_p", Used("0 (off) to 1")),
    row(Both, "min_tokens", Used("nothing ends the answer before")),
    row(Both, "bad_words", Used("at most 64")),
    row(
        Both,
        "include_stop_str_in_output",
        Used("the stop string ends the text"),
    ),
    row(
        Both,
        "skip_special_tokens",
        Used("false: names of special tokens are part of the text"),
    ),
    row(
        Chat,
        "logprobs",
        Used("true: of the answer's tokens, at temperature 1, penalties and form applied"),
    ),
    row(
        Text,
        "logprobs",
        Used("the same, with 0 to 20 of the likeliest tokens"),
    ),
    row(
        Chat,
        "top_logprobs",
        Used("0 to 20 of the likeliest tokens; needs logprobs"),
    ),
    row(
        Both,
        "response_format",
        Used("text, json_object (also with a schema), json_schema (always enforced)"),
    ),
    row(
        Both,
        "structured_outputs",
        Used("one of json, regex, choice, grammar, json_object"),
    ),
    row(Both, "guided_json", Used("a JSON schema")),
    row(Both, "guided_regex", Used("the syntax of Rust's crate regex")),
    row(Both, "guided_choice", Used("texts")),
    row(Both, "guided_grammar", Used("llguidance's variant of Lark")),
    row(
        Chat,
        "tools",
        Used(
            "functions, at most 128; calls have the schema where tool_choice demands one, or the tool is strict",
        ),
    ),
    row(
        Chat,
        "tool_choice",
        Used(
            "none, auto, required (at least one call), or a function (one call); arguments then have the parameters' schema",
        ),
    ),
    row(Chat, "parallel_tool_calls", Used("false: at most one call")),
    row(
        Chat,
        "chat_template_kwargs",
        Used("variables of the checkpoint's chat template, by name"),
    ),
    row(
        Chat,
        "add_generation_prompt",
        Used("false: the prompt does not open the assistant's turn"),
    ),
    row(
        Chat,
        "continue_final_message",
        Used("true: the answer goes on with the last message"),
    ),
    row(
        Text,
        "echo",
        Used("true: the prompt stands before the answer, and beside logprobs its tokens before the answer's"),
    ),
    row(
        Text,
        "add_special_tokens",
        Used("false: no begin-of-text token before a text"),
    ),
    row(Both, "user", Accepted("keeps books")),
    row(Both, "metadata", Accepted("keeps books")),
    row(Both, "store", Accepted("nothing is stored")),
    row(Both, "service_tier", Accepted("there is one tier")),
    row(Both, "safety_identifier", Accepted("keeps books")),
    row(
        Both,
        "prompt_cache_key",
        Used("requests with the same one go to the same group, as far as its load allows"),
    ),
    row(
        Both,
        "session_id",
        Used("the same as prompt_cache_key, which goes before it"),
    ),
    row(
        Chat,
        "prompt_cache_options",
        Accepted("only speed could depend on it"),
    ),
    row(
        Both,
        "prompt_cache_retention",
        Accepted("only speed could depend on it"),
    ),
    row(
        Both,
        "cache_salt",
        Used("what is cached of a prompt is used for requests with the same salt only"),
    ),
    row(Both, "request_id", Accepted("give the header x-request-id")),
    row(Both, "guided_decoding_backend", Refused(Nothing, OUT)),
    row(Both, "guided_whitespace_pattern", Refused(Nothing, OUT)),
    row(Both, "structural_tag", Refused(Nothing, "use response_format")),
    row(
        Chat,
        "echo",
        Refused(Nothing, "put the prompt before the answer yourself"),
    ),
    row(Chat, "functions", Refused(Nothing, TOOLS)),
    row(Chat, "function_call", Refused(Words(&["none", "auto"]), TOOLS)),
    row(Both, "return_tokens_as_token_ids", Refused(Nothing, OUT)),
    row(Both, "return_token_ids", Refused(Nothing, OUT)),
    row(Text, "suffix", Refused(Nothing, "the model only writes forward")),
    row(Both, "length_penalty", Refused(Number(1.0), OUT)),
    row(Both, "use_beam_search", Refused(Nothing, "use n")),
    row(Both, "early_stopping", Refused(Nothing, OUT)),
    row(Both, "logits_processors", Refused(Nothing, OUT)),
    row(Both, "spaces_between_special_tokens", Refused(True, OUT)),
    row(
        Both,
        "truncate_prompt_tokens",
        Refused(Nothing, "shorten the prompt yourself"),
    ),
    row(Chat, "add_special_tokens", Refused(Nothing, TEMPLATE)),
    row(Chat, "chat_template", Refused(Nothing, TEMPLATE)),
    row(Chat, "documents", Refused(Nothing, "put documents in the prompt")),
    row(
        Chat,
        "reasoning_effort",
        Refused(
            Words(&["none"]),
            "the model does not reason apart from its answer",
        ),
    ),
    row(
        Chat,
        "verbosity",
        Refused(Words(&["medium"]), "ask for it in the prompt"),
    ),
    row(
        Chat,
        "modalities",
        Refused(Only("text"), "the model writes text only"),
    ),
    row(Chat, "audio", Refused(Nothing, "the model writes text only")),
    row(Chat, "prediction", Refused(Nothing, OUT)),
    row(
        Chat,
        "web_search_options",
        Refused(Nothing, "put what the model should know in the prompt"),
    ),
    row(
        Chat,
        "moderation",
        Refused(Nothing, "texts are not judged here; judge them yourself"),
    ),
    row(
        Both,
        "thinking_token_budget",
        Refused(Nothing, "the model does not reason apart from its answer"),
    ),
    row(
        Chat,
        "include_reasoning",
        Accepted("the model does not reason apart from its answer"),
    ),
    row(
        Both,
        "truncation_side",
        Refused(Nothing, "shorten the prompt yourself"),
    ),
    row(
        Both,
        "logprob_token_ids",
        Refused(Nothing, "ask for the likeliest tokens"),
    ),
    row(Both, "repetition_detection", Refused(Nothing, "use a penalty")),
    row(Both, "watermarking", Refused(Nothing, OUT)),
    row(Chat, "mm_processor_kwargs", Refused(Nothing, TEXT_ONLY)),
    row(Chat, "media_io_kwargs", Refused(Nothing, TEXT_ONLY)),
    row(Both, "return_mm_kwargs", Accepted("there are none")),
    row(Chat, "return_prompt_text", Refused(Nothing, "use /tokenize")),
    row(Both, "return_token_offsets", Refused(Nothing, "use /tokenize")),
    row(
        Both,
        "routed_experts_prompt_start",
        Refused(Nothing, "the model has no experts"),
    ),
    row(Both, "stream_interval", Accepted("pieces come as they are made")),
    row(
        Text,
        "prompt_embeds",
        Refused(Nothing, "send a text, or token ids"),
    ),
    row(Both, "ec_transfer_params", Refused(Nothing, OUT)),
    row(Both, "kv_transfer_params", Refused(Nothing, OUT)),
    row(Both, "vllm_xargs", Refused(Nothing, OUT)),
];

/// The row of a field on a route.
#[must_use]
pub fn find(route: Route, name: &str) -> Option<&'static Field> {
    let mut fields = route.fields().iter();
    fields.find(|field| field.name == name && field.on.has(route))
}

impl On {
    fn has(self, route: Route) -> bool {
        matches!(
            (self, route),
            (Self::Both, Route::Chat | Route::Text)
                | (Self::Chat, Route::Chat)
                | (Self::Text, Route::Text)
                | (Self::Responses, Route::Responses)
                | (Self::Messages, Route::Messages)
                | (Self::Embeddings, Route::Embeddings)
                | (Self::Tokenize, Route::Tokenize)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/gateway-fields.md");

    fn page() -> String {
        let mut page = String::from(
            "# Fields of a request\n\n\
             <!-- Made from gateway/src/routes/completion/fields.rs; LLAMERO_UPDATE=1 cargo test --release -p llamero-gateway page_of_fields writes it. -->\n\n\
             What changes an answer and is not built is refused by name: status 400, `param` is the field, `code` is\n\
             `unsupported_parameter`. Fields that are not listed are ignored.\n",
        );
        section(
            &mut page,
            "`/v1/chat/completions` (chat) and `/v1/completions` (text)",
            FIELDS,
        );
        section(&mut page, "`/v1/responses`", Route::Responses.fields());
        section(&mut page, "`/v1/messages`", Route::Messages.fields());
        section(&mut page, "`/v1/embeddings`", Route::Embeddings.fields());
        section(&mut page, "`/tokenize`", Route::Tokenize.fields());
        page
    }

    fn section(page: &mut String, title: &str, fields: &[Field]) {
        let several = fields.iter().any(|field| field.on == On::Both);
        let (head, line) = if several { ("| route ", "|---") } else { ("", "") };
        writeln!(
            page,
            "\n## {title}\n\n| field {head}| what is done with it |\n|---{line}|---|"
        )
        .unwrap();
        for field in fields {
            let route = match field.on {
                On::Both => "| both ",
                On::Chat => "| chat ",
                On::Text => "| text ",
                On::Responses | On::Messages | On::Embeddings | On::Tokenize => "",
            };
            let what = match field.treatment {
                Treatment::Used(how) => format!("used: {how}"),
                Treatment::Accepted(why) => format!("accepted: {why}"),
                Treatment::Refused(harmless, instead) => {
                    format!("**refused** ({instead}), but for {harmless}")
                }
            };
            writeln!(page, "| `{}` {route}| {what} |", field.name).unwrap();
        }
    }

    #[test]
    fn the_page_of_fields_is_made_from_the_code() {
        if std::env::var_os("LLAMERO_UPDATE").is_some() {
            std::fs::write(PAGE, page()).unwrap();
        }
        let written = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert!(
            written == page(),
            "docs/gateway-fields.md is stale; run: LLAMERO_UPDATE=1 cargo test --release -p llamero-gateway page_of_fields"
        );
    }

    /// Requests of vLLM's server (protocol.py of each route) and of the Python package anthropic 2.14.0, by route.
    const OTHERS: &str = include_str!("known-fields.json");

    #[test]
    fn every_field_of_other_servers_has_a_row() {
        let others: std::collections::BTreeMap<String, Vec<String>> = serde_json::from_str(OTHERS).unwrap();
        for route in [
            Route::Chat,
            Route::Text,
            Route::Responses,
            Route::Messages,
            Route::Tokenize,
        ] {
            let names = &others[route.name()];
            assert!(names.len() > 10);
            let missing: Vec<_> = names.iter().filter(|name| find(route, name).is_none()).collect();
            assert!(missing.is_empty(), "{route:?}: {missing:?}");
        }
    }

    #[test]
    fn each_field_has_one_row_on_a_route() {
        for route in [
            Route::Chat,
            Route::Text,
            Route::Responses,
            Route::Messages,
            Route::Embeddings,
            Route::Tokenize,
        ] {
            let mut names: Vec<_> = route
                .fields()
                .iter()
                .filter(|field| field.on.has(route))
                .map(|field| field.name)
                .collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
