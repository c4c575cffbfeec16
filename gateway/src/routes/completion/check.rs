//! From what was read to what is ordered.

use llamero_proto::v1::{ChatPrompt, CompletionRequest, completion_request::Prompt};
use prost::Message as _;

use super::messages::conversation;
use super::request::{Request, StreamOptions};
use super::route::Route;
use crate::error::ApiError;
use crate::upstream::Affinity;

/// Most answers to one request, over all its prompts.
pub const MAX_CHOICES: usize = 128;
/// The OpenAI API's default for text completion.
const DEFAULT_TEXT_TOKENS: i64 = 16;

/// A request that asks for nothing that is not built.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The name that the client asked for.
    pub model: String,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub n: usize,
    /// How to sample; without prompt and id.
    pub sampling: CompletionRequest,
    /// Whether the answer comes as server-sent events.
    pub stream: bool,
    /// How it is written.
    pub form: Form,
    /// What the client says that the request belongs to.
    pub session: Option<Affinity>,
}

/// What is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// When usage is sent in a stream.
    pub usage: UsageEvents,
    /// The prompt's tokens are among those of the answer.
    pub echo: bool,
    /// vLLM's `prompt_logprobs` are wanted.
    pub prompt_logprobs: bool,
}

impl Form {
    /// The answers' text and nothing else.
    pub const PLAIN: Self = Self {
        usage: UsageEvents::Never,
        echo: false,
        prompt_logprobs: false,
    };
}

/// When usage is sent in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageEvents {
    /// Never.
    Never,
    /// In a last chunk of its own.
    Last,
    /// In every chunk, and in the last one.
    Always,
}

/// Tokens of an answer whose length the request does not bound, for the limits of keys; corrected at its end.
const USUAL_ANSWER: u64 = 256;
/// Bytes of a usual token of text.
const BYTES_A_TOKEN: usize = 4;

impl Checked {
    /// How many tokens prompts and answers are likely to have: what a key's limits are charged before it is known.
    #[must_use]
    pub fn likely_tokens(&self) -> u64 {
        let count = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.len() / BYTES_A_TOKEN,
            Prompt::TokenIds(tokens) => tokens.ids.len(),
            Prompt::Chat(chat) => chat.encoded_len() / BYTES_A_TOKEN,
        };
        let prompts: usize = self.prompts.iter().map(count).sum();
        let answers = (self.prompts.len() * self.n) as u64;
        let longest = self.sampling.max_tokens.map_or(USUAL_ANSWER, u64::from);
        (prompts as u64).saturating_add(answers.saturating_mul(longest))
    }
}

impl UsageEvents {
    fn new(options: StreamOptions) -> Self {
        // As in vLLM, the second flag says nothing without the first.
        match (options.include_usage, options.continuous_usage_stats) {
            (Some(true), Some(true)) => Self::Always,
            (Some(true), _) => Self::Last,
            _ => Self::Never,
        }
    }
}

/// A field asks for something that is not built.
#[must_use]
pub fn refusal(field: &str, instead: &str) -> ApiError {
    ApiError::unsupported(field, format!("'{field}' is not supported; {instead}."))
}

/// Check everything else that can be checked without the model.
///
/// # Errors
/// 400 naming the parameter.
pub fn check(route: Route, request: Request) -> Result<Checked, ApiError> {
    let mut sampling = request.sampling;
    let (prompts, most) = match route {
        Route::Text => {
            let prompts = request.prompt.ok_or_else(|| missing(route))?.checked()?;
            let most = sampling.max_tokens.unwrap_or((DEFAULT_TEXT_TOKENS, "max_tokens"));
            (prompts, Some(most))
        }
        _ => {
            let messages = request.messages.ok_or_else(|| missing(route))?;
            let messages = conversation(messages, |index| format!("messages[{index}]"))?;
            let mut prompt = ChatPrompt {
                messages,
                ..ChatPrompt::default()
            };
            request.tools.apply(&mut prompt)?;
            request.template.apply(&mut prompt)?;
            let prompt = Prompt::Chat(prompt);
            // The newer name goes before the older one.
            let most = request
                .max_completion_tokens
                .map(|most| (most, "max_completion_tokens"));
            (vec![prompt], most)
        }
    };
    sampling.max_tokens = most.or(sampling.max_tokens);
    let n = answers(request.n, prompts.len())?;
    if request.best_of.is_some_and(|best| usize::try_from(best) != Ok(n)) {
        let message = "'best_of' differs from 'n', but answers are not ranked; leave 'best_of' out.";
        return Err(ApiError::unsupported("best_of", message));
    }
    let mut converted = CompletionRequest::default();
    sampling.apply(&mut converted)?;
    converted.logprobs = sampling.logprobs(route)?;
    converted.structure = request.structure.checked()?;
    converted.cache_salt = request.cache_salt.unwrap_or_default();
    converted.echo = request.echo.unwrap_or(false);
    converted.no_special_tokens = request.add_special_tokens == Some(false);
    if converted.prompt_logprobs.is_some() && request.stream {
        let message = "'prompt_logprobs' cannot be used beside 'stream'; leave one out.";
        return Err(ApiError::unsupported("prompt_logprobs", message));
    }
    // The tokens of an echoed prompt are among those whose log-probabilities are given.
    if converted.echo && converted.logprobs.is_some() {
        let asked = [converted.logprobs, converted.prompt_logprobs];
        converted.prompt_logprobs = asked.into_iter().flatten().max();
    }
    Ok(Checked {
        model: request.model,
        prompts,
        n,
        form: Form {
            usage: UsageEvents::new(request.stream_options),
            echo: converted.echo,
            prompt_logprobs: sampling.prompt_logprobs.is_some(),
        },
        sampling: converted,
        stream: request.stream,
        session: request
            .prompt_cache_key
            .or(request.session_id)
            .as_deref()
            .map(Affinity::of_session),
    })
}

fn answers(n: Option<i64>, prompts: usize) -> Result<usize, ApiError> {
    let most = MAX_CHOICES / prompts;
    let n = n.unwrap_or(1);
    usize::try_from(n)
        .ok()
        .filter(|n| (1..=most).contains(n))
        .ok_or_else(|| {
            let message = format!("'n' is {n}; it must be from 1 to {most}, send several requests for more.");
            ApiError::invalid(Some("n"), message)
        })
}

fn missing(route: Route) -> ApiError {
    let field = route.prompt();
    ApiError::invalid(
        Some(field),
        format!("'{field}' is missing; it holds what the model answers to."),
    )
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeSeed;
    use serde_json::{Value, json};

    use super::super::request::Reader;
    use super::*;

    fn checked(route: Route, extra: Value) -> Result<Checked, ApiError> {
        let mut request = match route {
            Route::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            _ => json!({"model": "m", "prompt": "hi"}),
        };
        request
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let request: Request = Reader::new(route).deserialize(request).unwrap();
        match request.refused {
            Some((field, instead)) => Err(refusal(field, instead)),
            None => check(route, request),
        }
    }

    #[test]
    fn values_that_ask_for_nothing_pass() {
        checked(
            Route::Chat,
            json!({"n": 1, "tools": [], "tool_choice": "none", "logprobs": false, "top_logprobs": 0, "functions": [],
            "response_format": {"type": "text"}, "user": "u", "metadata": {}, "store": true, "made_up": 1,
            "parallel_tool_calls": true, "modalities": ["text"], "min_p": 0, "repetition_penalty": 1.0}),
        )
        .unwrap();
        checked(
            Route::Text,
            json!({"echo": false, "suffix": null, "logprobs": null, "best_of": 1}),
        )
        .unwrap();
        checked(Route::Text, json!({"n": 2, "best_of": 2})).unwrap();
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        for (route, extra, param) in [
            (
                Route::Chat,
                json!({"tools": [{"type": "web_search"}]}),
                "tools[0]",
            ),
            (
                Route::Chat,
                json!({"prompt_logprobs": 1, "stream": true}),
                "prompt_logprobs",
            ),
            (Route::Chat, json!({"functions": [{}]}), "functions"),
            (
                Route::Chat,
                json!({"response_format": {"type": "xml"}}),
                "response_format",
            ),
            (Route::Chat, json!({"audio": {"voice": "a"}}), "audio"),
            (Route::Chat, json!({"echo": true}), "echo"),
            (Route::Text, json!({"best_of": 3}), "best_of"),
            (Route::Text, json!({"suffix": "end"}), "suffix"),
        ] {
            let error = checked(route, extra).unwrap_err();
            assert_eq!(
                (error.param.as_deref(), error.code),
                (Some(param), Some("unsupported_parameter"))
            );
            assert!(error.message.contains(param), "{}", error.message);
        }
    }

    #[test]
    fn what_is_out_of_range_or_missing_is_named() {
        for (route, extra, param) in [
            (Route::Chat, json!({"n": 0}), "n"),
            (Route::Chat, json!({"top_logprobs": 5}), "top_logprobs"),
            (
                Route::Chat,
                json!({"logprobs": true, "top_logprobs": 21}),
                "top_logprobs",
            ),
            (Route::Chat, json!({"logprobs": 3}), "logprobs"),
            (Route::Text, json!({"logprobs": -1}), "logprobs"),
            (Route::Text, json!({"logprobs": true}), "logprobs"),
            (Route::Text, json!({"min_p": 1.5}), "min_p"),
            (Route::Text, json!({"min_tokens": -1}), "min_tokens"),
            (Route::Text, json!({"bad_words": [""]}), "bad_words"),
            (Route::Chat, json!({"n": 129}), "n"),
            (Route::Text, json!({"n": 65, "prompt": ["a", "b"]}), "n"),
            (Route::Chat, json!({"messages": null}), "messages"),
            (Route::Text, json!({"prompt": null}), "prompt"),
            (
                Route::Chat,
                json!({"max_completion_tokens": 0}),
                "max_completion_tokens",
            ),
        ] {
            let error = checked(route, extra).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_ordered() {
        let sampling = |route, extra| checked(route, extra).unwrap().sampling;
        let chat = json!({"logprobs": true, "top_logprobs": 4, "min_p": 0.1, "min_tokens": 2, "bad_words": ["x"],
            "include_stop_str_in_output": true, "skip_special_tokens": false, "guided_choice": ["a", "b"]});
        let chat = sampling(Route::Chat, chat);
        assert_eq!(
            (chat.logprobs, chat.min_p, chat.min_tokens),
            (Some(4), Some(0.1), 2)
        );
        assert_eq!(chat.bad_words, ["x"]);
        assert!(chat.include_stop_string && chat.show_special_tokens);
        assert_eq!(chat.structure.unwrap().parameter, "guided_choice");
        assert_eq!(sampling(Route::Chat, json!({"logprobs": true})).logprobs, Some(0));
        assert_eq!(sampling(Route::Text, json!({"logprobs": 0})).logprobs, Some(0));
        let text = json!({"echo": true, "logprobs": 2, "priority": -4, "repetition_penalty": 1.5});
        let text = sampling(Route::Text, text);
        assert_eq!((text.logprobs, text.prompt_logprobs), (Some(2), Some(2)));
        assert_eq!((text.priority, text.repetition_penalty), (-4, Some(1.5)));
        assert_eq!(sampling(Route::Text, json!({})).logprobs, None);
    }

    #[test]
    fn defaults_and_names_of_the_longest_answer() {
        let most = |route, extra| checked(route, extra).unwrap().sampling.max_tokens;
        assert_eq!(most(Route::Chat, json!({})), None);
        assert_eq!(most(Route::Text, json!({})), Some(16));
        assert_eq!(most(Route::Text, json!({"max_tokens": 7})), Some(7));
        assert_eq!(most(Route::Chat, json!({"max_tokens": 7})), Some(7));
        let both = json!({"max_tokens": 7, "max_completion_tokens": 8});
        assert_eq!(most(Route::Chat, both), Some(8));
    }
}
