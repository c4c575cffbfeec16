//! From what was read to what is ordered.

use llamero_proto::v1::{ChatPrompt, CompletionRequest, Structure, ToolChoice, completion_request::Prompt};
use serde::Deserialize;
use serde_json::Value;

use super::blocks::messages;
use super::request::Request;
use crate::error::ApiError;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::check::{Checked, Form};
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::{Content, Message, conversation};
use crate::routes::completion::structure::Format;
use crate::routes::completion::tools::{self, MAX_TOOLS, function_json};

#[derive(Deserialize)]
struct Tool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Kept>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct OutputConfig {
    format: Option<Format>,
    effort: Option<String>,
}

/// Check everything that can be checked without the model.
///
/// # Errors
/// 400 naming the parameter.
pub fn check(request: Request) -> Result<Checked, ApiError> {
    let Some(most) = request.max_tokens else {
        let message = "'max_tokens' is missing; it bounds the answer.";
        return Err(ApiError::invalid(Some("max_tokens"), message));
    };
    let mut sampling = request.sampling.clone();
    sampling.max_tokens = Some((most, "max_tokens"));
    let (model, stream) = (request.model.clone(), request.stream);
    let structure = structure(request.output_config.as_ref(), request.output_format.as_ref())?;
    let prompt = prompt(request)?;
    refuse_form_beside_prefill(&prompt, structure.as_ref())?;
    let mut converted = CompletionRequest::default();
    sampling
        .apply(&mut converted)
        .map_err(|error| error.renamed("stop", "stop_sequences"))?;
    converted.structure = structure;
    Ok(Checked {
        model,
        prompts: vec![Prompt::Chat(prompt)],
        n: 1,
        sampling: converted,
        stream,
        form: Form::PLAIN,
        session: None,
    })
}

/// A turn that is gone on with has no other form: what stands in the prompt is no part of it.
fn refuse_form_beside_prefill(prompt: &ChatPrompt, structure: Option<&Structure>) -> Result<(), ApiError> {
    let form = match structure {
        Some(structure) => structure.parameter.as_str(),
        None if prompt.tool_choice() == ToolChoice::Required => "tool_choice",
        None => return Ok(()),
    };
    if !prompt.continue_final_message {
        return Ok(());
    }
    let message = format!(
        "'messages' ends with a turn of the assistant, which cannot be gone on with beside '{form}'; end with a turn of the user."
    );
    Err(ApiError::invalid(Some("messages"), message))
}

/// What an answer must look like that calls no tool.
fn structure(config: Option<&Kept>, format: Option<&Kept>) -> Result<Option<Structure>, ApiError> {
    const FORMAT: &str = "output_config.format";
    let said = |kept: Option<&Kept>| kept.filter(|kept| !kept.is_nothing()).cloned();
    let mut form = None;
    if let Some(config) = said(config) {
        let config: OutputConfig = parse("output_config", &config)?;
        if config.effort.is_some_and(|effort| effort != "high") {
            let message =
                "'output_config.effort' may only be high; the model does not think apart from its answer.";
            return Err(ApiError::unsupported("output_config.effort", message));
        }
        form = config.format.map(|format| (format, FORMAT));
    }
    if let Some(format) = said(format) {
        if form.is_some() {
            let message = format!(
                "'output_format' cannot be used beside '{FORMAT}', whose older name it is; leave it out."
            );
            return Err(ApiError::invalid(Some("output_format"), message));
        }
        form = Some((parse("output_format", &format)?, "output_format"));
    }
    form.map_or(Ok(None), |(format, name)| format.checked(name))
}

/// The prompt of a request.
///
/// # Errors
/// 400 naming the parameter.
pub fn prompt(request: Request) -> Result<ChatPrompt, ApiError> {
    if let Some(thinking) = request.thinking.filter(|thinking| !thinking.is_nothing()) {
        let thinking: Thinking = parse("thinking", &thinking)?;
        if thinking.kind != "disabled" {
            let message = "'thinking' is not supported; the model does not think apart from its answer.";
            return Err(ApiError::unsupported("thinking", message));
        }
    }
    let turns = request.messages.unwrap_or_default();
    if turns.is_empty() {
        let message = "'messages' is empty; send at least one message.";
        return Err(ApiError::invalid(Some("messages"), message));
    }
    let mut messages = messages(request.system, turns)?;
    let continue_final_message = prefilled(&mut messages)?;
    let (places, messages): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
    let place = |index: usize| places.get(index).cloned().unwrap_or_default();
    let mut prompt = ChatPrompt {
        messages: conversation(messages, place)?,
        continue_final_message,
        ..ChatPrompt::default()
    };
    let mut asked = tools::Asked {
        tools: request
            .tools
            .filter(|tools| !tools.is_nothing())
            .map(nested)
            .transpose()?,
        ..tools::Asked::default()
    };
    if let Some(choice) = request.tool_choice.filter(|choice| !choice.is_nothing()) {
        let choice: Choice = parse("tool_choice", &choice)?;
        asked.parallel_tool_calls = choice.disable_parallel_tool_use.map(|disable| !disable);
        asked.tool_choice = Some(Kept(chosen(&choice)?));
    }
    asked.apply(&mut prompt)?;
    Ok(prompt)
}

/// Whether the last turn is the beginning of the answer, which the client has written. An empty one is taken away.
fn prefilled(messages: &mut Vec<(String, Message)>) -> Result<bool, ApiError> {
    let Some((place, last)) = messages.last().filter(|(_, last)| last.role == "assistant") else {
        return Ok(false);
    };
    if last.tool_calls.is_some() {
        let message =
            format!("'{place}' ends the conversation with a tool_use; send its tool_result behind it.");
        return Err(ApiError::invalid(Some(place), message));
    }
    let text = last.content.as_ref().map_or("", Content::text);
    if text.is_empty() {
        messages.pop();
        return Ok(false);
    }
    if text.ends_with(char::is_whitespace) {
        let message =
            format!("'{place}' begins the answer, but ends with white space; leave that to the model.");
        return Err(ApiError::invalid(Some(place), message));
    }
    Ok(true)
}

/// Tools in the form of chat completion, which templates know.
fn nested(tools: Kept) -> Result<Kept, ApiError> {
    let tools: Bounded<Tool, MAX_TOOLS> = parse("tools", &tools)?;
    let mut written = Vec::new();
    for (index, tool) in tools.0.into_iter().enumerate() {
        if tool.kind.as_deref().is_some_and(|kind| kind != "custom") {
            let at = format!("tools[{index}]");
            let message =
                format!("'{at}' is built in elsewhere; only tools with an input_schema are supported.");
            return Err(ApiError::unsupported(&at, message));
        }
        written.push(function_json(
            &tool.name,
            tool.description.as_deref(),
            tool.input_schema.as_ref(),
            tool.strict,
        ));
    }
    Ok(Kept(format!("[{}]", written.join(","))))
}

/// The choice in the words of chat completion.
fn chosen(choice: &Choice) -> Result<String, ApiError> {
    Ok(match (choice.kind.as_str(), &choice.name) {
        ("auto", _) => "\"auto\"".to_owned(),
        ("none", _) => "\"none\"".to_owned(),
        ("any", _) => "\"required\"".to_owned(),
        ("tool", Some(name)) => {
            let name = Value::from(name.as_str());
            format!("{{\"type\":\"function\",\"function\":{{\"name\":{name}}}}}")
        }
        _ => {
            let message = "'tool_choice' must be of the type auto, any, none, or tool with a name.";
            return Err(ApiError::invalid(Some("tool_choice"), message));
        }
    })
}

fn parse<T: for<'de> Deserialize<'de>>(name: &str, kept: &Kept) -> Result<T, ApiError> {
    serde_json::from_str(&kept.0)
        .map_err(|error| ApiError::invalid(Some(name), format!("'{name}' is not as expected: {error}.")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::routes::completion::request::{Reader, Take as _};
    use crate::routes::completion::route::Route;
    use serde::de::DeserializeSeed as _;

    fn read(extra: Value) -> Result<Checked, ApiError> {
        let mut body =
            json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let mut request = Reader::<Request>::new(Route::Messages).deserialize(body).unwrap();
        match request.refused() {
            Some((field, instead)) => Err(ApiError::unsupported(field, *instead)),
            None => check(request),
        }
    }

    fn chat(extra: Value) -> ChatPrompt {
        match read(extra).unwrap().prompts.remove(0) {
            Prompt::Chat(chat) => chat,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn turns_of_blocks_become_a_chat() {
        let turns = json!({"system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "…", "signature": "s"},
                {"type": "text", "text": "c"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"z": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}], "is_error": false},
                {"type": "text", "text": "d"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t2", "content": "no such city", "is_error": true}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t3", "is_error": true}]},
        ]});
        let chat = chat(turns);
        let told: Vec<Value> = chat
            .messages
            .iter()
            .map(|message| match message.json.as_str() {
                "" => json!([message.role, message.content]),
                json => serde_json::from_str(json).unwrap(),
            })
            .collect();
        assert_eq!(
            (&told[0], &told[1]),
            (&json!(["system", "be kind"]), &json!(["user", "ab"]))
        );
        let call = &told[2]["tool_calls"][0];
        assert_eq!(
            (&call["id"], &call["function"]["arguments"]),
            (&json!("t1"), &json!("{\"z\":1}"))
        );
        assert_eq!(
            told[3],
            json!({"role": "tool", "content": "3", "tool_call_id": "t1"})
        );
        assert_eq!(told[4], json!(["user", "d"]));
        assert_eq!((told.len(), &told[5]["role"]), (8, &json!("tool")));
        assert_eq!(
            (&told[6]["content"], &told[7]["content"]),
            (&json!("Error: no such city"), &json!("Error"))
        );
    }

    #[test]
    fn tools_and_choices_are_those_of_chat_completion() {
        let tools = json!([{"name": "f", "description": "d", "input_schema": {"type": "object"}}]);
        let prompt = |choice: Value| chat(json!({"tools": tools, "tool_choice": choice}));
        let named = prompt(json!({"type": "tool", "name": "f", "disable_parallel_tool_use": true}));
        assert_eq!((named.tool_name.as_str(), named.one_tool_call), ("f", true));
        let written: Value = serde_json::from_str(&named.tools_json).unwrap();
        let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
        assert_eq!(written, json!([{"type": "function", "function": &function}]));
        let strict = |strict: bool| {
            let mut tools = tools.clone();
            tools[0]["strict"] = strict.into();
            let written = chat(json!({"tools": tools})).tools_json;
            serde_json::from_str::<Value>(&written).unwrap()[0]["function"].clone()
        };
        assert_eq!(strict(true)["strict"], true);
        // What changes no answer changes no prompt.
        assert_eq!(strict(false), function);
        assert_eq!(prompt(json!({"type": "any"})).tool_choice, 1);
        assert_eq!(prompt(json!({"type": "none"})).tools_json, "");
    }

    #[test]
    fn a_last_turn_of_the_assistant_begins_the_answer() {
        let turns = |last: Value| json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": last}]});
        let begun = chat(turns(
            json!([{"type": "text", "text": "The ans"}, {"type": "text", "text": "wer"}]),
        ));
        assert!(begun.continue_final_message);
        assert_eq!(begun.messages[1].content, "The answer");
        for nothing in [
            json!(""),
            json!([]),
            json!([{"type": "thinking", "thinking": "…"}]),
        ] {
            let none = chat(turns(nothing));
            assert_eq!((none.messages.len(), none.continue_final_message), (1, false));
        }
        assert!(!chat(json!({})).continue_final_message);
        // A form would begin anew behind it.
        let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
        for extra in [
            json!({"output_config": {"format": {"type": "json_schema", "schema": {}}}}),
            json!({"tools": tools, "tool_choice": {"type": "any"}}),
        ] {
            let mut asked = turns(json!("The answer"));
            asked
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            let error = read(asked).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("messages"), "{error:?}");
        }
    }

    #[test]
    fn a_form_is_that_of_chat_completion() {
        let format = json!({"type": "json_schema", "schema": {"type": "null"}});
        for (extra, parameter) in [
            (
                json!({"output_config": {"format": format, "effort": "high"}}),
                "output_config.format",
            ),
            (
                json!({"output_format": format, "output_config": {}}),
                "output_format",
            ),
        ] {
            let structure = read(extra).unwrap().sampling.structure.unwrap();
            let form = llamero_proto::v1::structure::Form::JsonSchema(r#"{"type":"null"}"#.to_owned());
            assert_eq!(
                (structure.parameter.as_str(), structure.form),
                (parameter, Some(form))
            );
        }
        let none = json!({"output_config": {"effort": null, "format": null}, "output_format": null});
        assert_eq!(read(none).unwrap().sampling.structure, None);
    }

    #[test]
    fn each_mistake_is_named() {
        for (extra, param) in [
            (json!({"max_tokens": null}), "max_tokens"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"messages": []}), "messages"),
            (
                json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}),
                "thinking",
            ),
            (
                json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
                "tools[0]",
            ),
            (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"stop_sequences": [""]}), "stop_sequences"),
            (json!({"mcp_servers": [{}]}), "mcp_servers"),
            (
                json!({"output_config": {"effort": "low"}}),
                "output_config.effort",
            ),
            (
                json!({"output_config": {"format": {"type": "xml"}}}),
                "output_config.format",
            ),
            (
                json!({"output_format": {"type": "json_schema"}}),
                "output_format.schema",
            ),
            (
                json!({"output_format": {"type": "json_object"}, "output_config": {"format": {"type": "json_object"}}}),
                "output_format",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "The "}]}),
                "messages[1]",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content":
                    [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}]}),
                "messages[1]",
            ),
            (
                json!({"messages": [{"role": "system", "content": "x"}, {"role": "robot", "content": "x"}]}),
                "messages[1].role",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
                "messages[0].content[0]",
            ),
        ] {
            let error = read(extra).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
        read(json!({"thinking": {"type": "disabled"}, "metadata": {"user_id": "u"}})).unwrap();
    }
}
