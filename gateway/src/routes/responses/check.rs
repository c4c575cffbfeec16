//! From what was read to what is ordered.

use llamero_proto::v1::{ChatPrompt, CompletionRequest, Structure, completion_request::Prompt};
use serde::Deserialize;
use serde_json::Value;

use super::input::chat;
use super::objects::Settings;
use super::request::Request;
use crate::error::ApiError;
use crate::routes::completion::asked::{Asked, Harmless};
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::check::{Checked, Form, refusal};
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::conversation;
use crate::routes::completion::route::Route;
use crate::routes::completion::sampling::Sampling;
use crate::routes::completion::structure::{self, Format};
use crate::routes::completion::tools::{self, MAX_TOOLS, function_json};
use crate::upstream::Affinity;

/// The word of `include` that asks for log-probabilities.
const LOGPROBS: &str = "message.output_text.logprobs";

/// A tool: the function's fields stand in the tool itself.
#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Kept>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct Chosen {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    format: Option<Format>,
    verbosity: Option<Asked>,
}

/// Check everything that can be checked without the model.
///
/// # Errors
/// 400 naming the parameter.
pub fn check(request: Request) -> Result<(Checked, Settings), ApiError> {
    let settings = Settings::new(&request)?;
    let missing = || {
        ApiError::invalid(
            Some("input"),
            "'input' is missing; it holds what the model answers to.",
        )
    };
    let mut chat = chat(request.instructions, request.input.ok_or_else(missing)?)?;
    let messages = std::mem::take(&mut chat.messages);
    let mut prompt = ChatPrompt {
        messages: conversation(messages, |index| chat.place(index))?,
        ..ChatPrompt::default()
    };
    let asked = tools::Asked {
        tools: request
            .tools
            .filter(|tools| !tools.is_nothing())
            .map(nested)
            .transpose()?,
        tool_choice: request.tool_choice.map(choice).transpose()?,
        parallel_tool_calls: request.parallel_tool_calls,
    };
    asked.apply(&mut prompt)?;
    let wants_logprobs = request.include.iter().any(|word| word == LOGPROBS);
    let most = request.sampling.top_logprobs;
    let sampling = Sampling {
        max_tokens: request.max_output_tokens.map(|most| (most, "max_output_tokens")),
        logprobs: (wants_logprobs || most.is_some_and(|most| most != 0)).then_some(Asked::Flag(true)),
        ..request.sampling
    };
    let mut converted = CompletionRequest::default();
    sampling.apply(&mut converted)?;
    converted.logprobs = sampling.logprobs(Route::Responses)?;
    converted.structure = structure(request.text, request.structure)?;
    converted.cache_salt = request.cache_salt.unwrap_or_default();
    let checked = Checked {
        model: request.model,
        prompts: vec![Prompt::Chat(prompt)],
        n: 1,
        sampling: converted,
        stream: request.stream,
        form: Form::PLAIN,
        session: request.prompt_cache_key.as_deref().map(Affinity::of_session),
    };
    Ok((checked, settings))
}

/// Tools in the form of chat completion, which templates know.
fn nested(tools: Kept) -> Result<Kept, ApiError> {
    let wrong = |error: serde_json::Error| {
        ApiError::invalid(Some("tools"), format!("'tools' is not as expected: {error}."))
    };
    let tools: Bounded<Tool, MAX_TOOLS> = serde_json::from_str(&tools.0).map_err(wrong)?;
    let mut written = Vec::new();
    for (index, tool) in tools.0.into_iter().enumerate() {
        let name = tool.name.filter(|_| tool.kind == "function");
        let Some(name) = name else {
            let at = format!("tools[{index}]");
            let message =
                format!("'{at}' is no function with a name; only tools of type 'function' are supported.");
            return Err(ApiError::unsupported(&at, message));
        };
        written.push(function_json(
            &name,
            tool.description.as_deref(),
            tool.parameters.as_ref(),
            tool.strict,
        ));
    }
    Ok(Kept(format!("[{}]", written.join(","))))
}

/// A word stays as it is, and a function is named as in chat completion.
fn choice(choice: Kept) -> Result<Kept, ApiError> {
    match serde_json::from_str::<Chosen>(&choice.0) {
        Ok(Chosen {
            kind,
            name: Some(name),
        }) if kind == "function" => {
            let name = Value::from(name);
            Ok(Kept(format!(
                "{{\"type\":\"function\",\"function\":{{\"name\":{name}}}}}"
            )))
        }
        Ok(Chosen { .. }) => Err(ApiError::unsupported(
            "tool_choice",
            "'tool_choice' may only name a function.",
        )),
        Err(_) => Ok(choice),
    }
}

/// What the answer must look like: OpenAI's `text.format`, or one of vLLM's fields.
fn structure(text: Option<Kept>, asked: structure::Asked) -> Result<Option<Structure>, ApiError> {
    let first = text.map(format).transpose()?.flatten();
    let second = asked.checked()?;
    if let (Some(_), Some(second)) = (&first, &second) {
        let name = &second.parameter;
        let message = format!(
            "'{name}' cannot be used beside 'text.format': an answer has one form; leave one of them out."
        );
        return Err(ApiError::invalid(Some(name), message));
    }
    Ok(first.or(second))
}

/// What `text` asks for.
fn format(text: Kept) -> Result<Option<Structure>, ApiError> {
    const VERBOSITY: &str = "text.verbosity";
    let wrong = |error: serde_json::Error| {
        ApiError::invalid(Some("text"), format!("'text' is not as expected: {error}."))
    };
    let Some(text) = serde_json::from_str::<Option<Text>>(&text.0).map_err(wrong)? else {
        return Ok(None);
    };
    // The same words as chat completion's `verbosity`.
    if text
        .verbosity
        .is_some_and(|asked| !Harmless::Words(&["medium"]).covers(&asked))
    {
        return Err(refusal(VERBOSITY, "ask for it in the prompt"));
    }
    text.format
        .map_or(Ok(None), |format| format.checked("text.format"))
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeSeed as _;
    use serde_json::json;

    use super::*;
    use crate::routes::completion::request::Reader;

    fn read(extra: Value) -> Result<CompletionRequest, ApiError> {
        let mut body = json!({"model": "m", "input": "hi"});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let request: Request = Reader::new(Route::Responses).deserialize(body).unwrap();
        match request.refused {
            Some((field, instead)) => Err(refusal(field, instead)),
            None => check(request).map(|(checked, _)| checked.sampling),
        }
    }

    #[test]
    fn what_vllm_s_server_takes_is_ordered() {
        let asked = read(json!({"seed": 7, "top_k": 3, "stop": "x", "logit_bias": {"5": 1}, "repetition_penalty": 1.5, "ignore_eos": true,
            "skip_special_tokens": false, "include_stop_str_in_output": true, "priority": -2, "cache_salt": "s", "presence_penalty": 0.5,
            "structured_outputs": {"regex": "a+"}, "top_logprobs": 2}))
        .unwrap();
        assert_eq!(
            (asked.seed, asked.top_k, asked.logprobs),
            (Some(7), Some(3), Some(2))
        );
        assert_eq!(
            (asked.stop, asked.priority, asked.cache_salt.as_str()),
            (vec!["x".to_owned()], -2, "s")
        );
        assert_eq!(
            (asked.repetition_penalty, asked.presence_penalty),
            (Some(1.5), Some(0.5))
        );
        assert!(asked.ignore_eos && asked.show_special_tokens && asked.include_stop_string);
        assert_eq!(
            (asked.logit_bias[&5], asked.structure.unwrap().parameter.as_str()),
            (1.0, "structured_outputs")
        );
        read(json!({"text": {"verbosity": "medium", "format": {"type": "text"}}, "truncation": "disabled"}))
            .unwrap();
    }

    #[test]
    fn each_mistake_is_named() {
        for (extra, param) in [
            (json!({"seed": 1, "top_k": -2}), "top_k"),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (
                json!({"text": {"format": {"type": "json_schema"}}}),
                "text.format.schema",
            ),
            (
                json!({"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}}),
                "structured_outputs",
            ),
            (
                json!({"enable_response_messages": true}),
                "enable_response_messages",
            ),
            (json!({"previous_response": {"id": "x"}}), "previous_response"),
        ] {
            let error = read(extra).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
    }
}
