//! From what was read to what is ordered.

use llamero_proto::v1::{ChatPrompt, CompletionRequest, completion_request::Prompt};
use serde::Deserialize;
use serde_json::Value;

use super::input::chat;
use super::objects::Settings;
use super::request::Request;
use crate::error::ApiError;
use crate::routes::completion::asked::Asked;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::check::{Checked, Form};
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::conversation;
use crate::routes::completion::route::Route;
use crate::routes::completion::sampling::Sampling;
use crate::routes::completion::structure;
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
}

#[derive(Deserialize)]
struct Chosen {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    format: Option<structure::Format>,
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
    let sampling = Sampling {
        max_tokens: request.max_output_tokens.map(|most| (most, "max_output_tokens")),
        temperature: request.temperature,
        top_p: request.top_p,
        logprobs: (wants_logprobs || request.top_logprobs.is_some_and(|most| most != 0))
            .then_some(Asked::Flag(true)),
        top_logprobs: request.top_logprobs,
        ..Sampling::default()
    };
    let mut converted = CompletionRequest::default();
    sampling.apply(&mut converted)?;
    converted.logprobs = sampling.logprobs(Route::Responses)?;
    converted.structure = request.text.map(format).transpose()?.flatten();
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

/// What `text.format` asks for.
fn format(text: Kept) -> Result<Option<llamero_proto::v1::Structure>, ApiError> {
    const NAME: &str = "text.format";
    let wrong = |error: serde_json::Error| {
        ApiError::invalid(Some("text"), format!("'text' is not as expected: {error}."))
    };
    let text: Option<Text> = serde_json::from_str(&text.0).map_err(wrong)?;
    match text.and_then(|text| text.format) {
        Some(format) => format.checked(NAME),
        None => Ok(None),
    }
}
