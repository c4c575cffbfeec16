//! Every field of a request that OpenAI's API or vLLM's server knows, and what is done with it. The page
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

const fn used(on: On, name: &'static str, how: &'static str) -> Field {
    let treatment = Treatment::Used(how);
    Field { name, on, treatment }
}

const fn accepted(name: &'static str, why: &'static str) -> Field {
    let treatment = Treatment::Accepted(why);
    Field {
        name,
        on: On::Both,
        treatment,
    }
}

const fn refused(on: On, name: &'static str, harmless: Harmless, instead: &'static str) -> Field {
    let treatment = Treatment::Refused(harmless, instead);
    Field { name, on, treatment }
}

use Harmless::{Nothing, Null, Number, Only, True, Words};
use On::{Both, Chat, Text};

const OUT: &str = "leave it out";
const TOOLS: &str = "use tools and tool_choice";
const TEMPLATE: &str = "the checkpoint's own chat template is used as it is";

/// The table.
pub const FIELDS: &[Field] = &[
    used(Both, "model", "picks the deployment; required"),
    used(
        Chat,
        "messages",
        "system, developer, user, assistant (with tool calls) and tool; text, or parts of type text; at most 4,096",
    ),
    used(Text, "prompt", "text or token ids, alone or up to 128 in a list"),
    used(Both, "stream", "server-sent events"),
    used(Both, "stream_options", "include_usage, continuous_usage_stats"),
    used(
        Both,
        "n",
        "answers to a prompt; at most 128 a request over all prompts; with a seed, answer i has seed + i",
    ),
    used(Text, "best_of", "must equal n"),
    used(
        Both,
        "max_tokens",
        "at least 1; default: the rest of the context (chat), 16 (text)",
    ),
    used(Chat, "max_completion_tokens", "goes before max_tokens"),
    used(Both, "temperature", "0 to 2; default: the checkpoint's"),
    used(Both, "top_p", "above 0, at most 1; default: the checkpoint's"),
    used(Both, "top_k", "−1 and 0: off; default: the checkpoint's"),
    used(
        Both,
        "seed",
        "any whole number; the same seed gives the same answer",
    ),
    used(Both, "presence_penalty", "−2 to 2"),
    used(Both, "frequency_penalty", "−2 to 2"),
    used(Both, "logit_bias", "−100 to 100 by token id; at most 1,024"),
    used(Both, "stop", "a string or up to 16"),
    used(Both, "stop_token_ids", "at most 1,024"),
    used(Both, "ignore_eos", "go on behind the end of the text"),
    used(Both, "min_p", "0 (off) to 1"),
    used(Both, "min_tokens", "nothing ends the answer before"),
    used(Both, "bad_words", "at most 64"),
    used(
        Both,
        "include_stop_str_in_output",
        "the stop string ends the text",
    ),
    used(
        Both,
        "skip_special_tokens",
        "false: names of special tokens are part of the text",
    ),
    used(
        Chat,
        "logprobs",
        "true: of the answer's tokens, at temperature 1, penalties and form applied",
    ),
    used(Text, "logprobs", "the same, with 0 to 20 of the likeliest tokens"),
    used(
        Chat,
        "top_logprobs",
        "0 to 20 of the likeliest tokens; needs logprobs",
    ),
    used(
        Both,
        "response_format",
        "text, json_object, json_schema (always enforced)",
    ),
    used(
        Both,
        "structured_outputs",
        "one of json, regex, choice, grammar, json_object",
    ),
    used(Both, "guided_json", "a JSON schema"),
    used(Both, "guided_regex", "the syntax of Rust's crate regex"),
    used(Both, "guided_choice", "texts"),
    used(Both, "guided_grammar", "llguidance's variant of Lark"),
    used(Chat, "tools", "functions, at most 128"),
    used(
        Chat,
        "tool_choice",
        "none, auto, required, or a function; the last two give one call that has the parameters' schema",
    ),
    used(Chat, "parallel_tool_calls", "false: at most one call"),
    accepted("user", "keeps books"),
    accepted("metadata", "keeps books"),
    accepted("store", "nothing is stored"),
    accepted("service_tier", "there is one tier"),
    accepted("safety_identifier", "keeps books"),
    accepted("prompt_cache_key", "only speed could depend on it"),
    accepted("prompt_cache_retention", "only speed could depend on it"),
    accepted("cache_salt", "only speed could depend on it"),
    accepted("request_id", "give the header x-request-id"),
    refused(Both, "guided_decoding_backend", Nothing, OUT),
    refused(Both, "guided_whitespace_pattern", Nothing, OUT),
    refused(Both, "structural_tag", Nothing, "use response_format"),
    refused(Chat, "functions", Nothing, TOOLS),
    refused(Chat, "function_call", Words(&["none", "auto"]), TOOLS),
    refused(Both, "prompt_logprobs", Null, OUT),
    refused(Both, "return_tokens_as_token_ids", Nothing, OUT),
    refused(Both, "return_token_ids", Nothing, OUT),
    refused(Both, "echo", Nothing, "put the prompt before the answer yourself"),
    refused(Text, "suffix", Nothing, "the model only writes forward"),
    refused(Both, "repetition_penalty", Number(1.0), "use frequency_penalty"),
    refused(Both, "length_penalty", Number(1.0), OUT),
    refused(Both, "use_beam_search", Nothing, "use n"),
    refused(Both, "early_stopping", Nothing, OUT),
    refused(Both, "allowed_token_ids", Nothing, "use logit_bias"),
    refused(Both, "logits_processors", Nothing, OUT),
    refused(Both, "spaces_between_special_tokens", True, OUT),
    refused(
        Both,
        "truncate_prompt_tokens",
        Nothing,
        "shorten the prompt yourself",
    ),
    refused(Chat, "add_special_tokens", Nothing, TEMPLATE),
    refused(Text, "add_special_tokens", True, "send token ids"),
    refused(Both, "priority", Nothing, "requests are served in their order"),
    refused(Chat, "chat_template", Nothing, TEMPLATE),
    refused(Chat, "chat_template_kwargs", Nothing, TEMPLATE),
    refused(Chat, "documents", Nothing, "put documents in the prompt"),
    refused(Chat, "add_generation_prompt", True, "use /v1/completions"),
    refused(Chat, "continue_final_message", Nothing, "use /v1/completions"),
    refused(
        Chat,
        "reasoning_effort",
        Words(&["none"]),
        "the model does not reason apart from its answer",
    ),
    refused(Chat, "verbosity", Words(&["medium"]), "ask for it in the prompt"),
    refused(Chat, "modalities", Only("text"), "the model writes text only"),
    refused(Chat, "audio", Nothing, "the model writes text only"),
    refused(Chat, "prediction", Nothing, OUT),
    refused(
        Chat,
        "web_search_options",
        Nothing,
        "put what the model should know in the prompt",
    ),
    refused(Both, "kv_transfer_params", Nothing, OUT),
    refused(Both, "vllm_xargs", Nothing, OUT),
];

/// The row of a field on a route.
#[must_use]
pub fn find(route: Route, name: &str) -> Option<&'static Field> {
    FIELDS
        .iter()
        .find(|field| field.name == name && field.on.has(route))
}

impl On {
    fn has(self, route: Route) -> bool {
        matches!(
            (self, route),
            (Self::Both, _) | (Self::Chat, Route::Chat) | (Self::Text, Route::Text)
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
             Of `/v1/chat/completions` (chat) and `/v1/completions` (text). What changes an answer and is not built is refused by\n\
             name: status 400, `param` is the field, `code` is `unsupported_parameter`. Fields that are not listed are ignored.\n\n\
             | field | route | what is done with it |\n|---|---|---|\n",
        );
        for field in FIELDS {
            let route = match field.on {
                On::Both => "both",
                On::Chat => "chat",
                On::Text => "text",
            };
            let what = match field.treatment {
                Treatment::Used(how) => format!("used: {how}"),
                Treatment::Accepted(why) => format!("accepted: {why}"),
                Treatment::Refused(harmless, instead) => {
                    format!("**refused** ({instead}), but for {harmless}")
                }
            };
            writeln!(page, "| `{}` | {route} | {what} |", field.name).unwrap();
        }
        page
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

    #[test]
    fn each_field_has_one_row_on_a_route() {
        for route in [Route::Chat, Route::Text] {
            let mut names: Vec<_> = FIELDS
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
