//! Messages with calls and results, as templates expect them.
//!
//! OpenAI's form has the arguments of a call as a string of JSON; templates want the JSON. Templates that know no tools get the tools
//! as text in the system's message, calls as the JSON that the model would have written, and results as the user's messages.

use serde_json::{Map, Value, json};

use crate::text::{ChatMessage, ChatTemplateError};

/// What a template without tools is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolTexts {
    /// The template writes tools itself.
    Template,
    /// They are written into the messages.
    Messages,
}

/// Messages, each an object of OpenAI's form, for a template. `tools_json` is a list of tools in OpenAI's form, or nothing.
///
/// # Errors
/// [`ChatTemplateError::Json`] for what is no message or no list of tools.
pub fn conversation(
    messages: Vec<Value>,
    tools_json: Option<&str>,
    texts: ToolTexts,
) -> Result<Vec<ChatMessage>, ChatTemplateError> {
    let mut messages = messages;
    messages.iter_mut().for_each(open_arguments);
    if texts == ToolTexts::Messages {
        messages.iter_mut().for_each(write_out);
        if let Some(tools) = tools_json {
            explain(&mut messages, tools)?;
        }
    }
    messages
        .iter()
        .map(|message| ChatMessage::from_json(&message.to_string()))
        .collect()
}

/// The functions of the calls of a message.
fn calls(message: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    calls
        .into_iter()
        .flatten()
        .filter_map(|call| call.get_mut("function").and_then(Value::as_object_mut))
}

fn open_arguments(message: &mut Value) {
    for function in calls(message) {
        if let Some(Value::String(text)) = function.get("arguments") {
            let empty = text.trim().is_empty();
            // What is no JSON object, the template sees as the model wrote it.
            let open = serde_json::from_str(text).ok().filter(Value::is_object);
            if let Some(open) = open.or(empty.then(|| json!({}))) {
                function.insert("arguments".to_owned(), open);
            }
        }
    }
}

fn write_out(message: &mut Value) {
    let written: Vec<String> = calls(message)
        .map(|function| {
            json!({"name": function.get("name"), "parameters": function.get("arguments")}).to_string()
        })
        .collect();
    let content = message
        .get("content")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let Some(message) = message.as_object_mut() else {
        return;
    };
    message.remove("tool_calls");
    let role = message.get("role").and_then(Value::as_str);
    if matches!(role, Some("tool" | "ipython")) {
        message.insert("role".to_owned(), "user".into());
        message.insert(
            "content".to_owned(),
            format!("Result of the function call: {content}").into(),
        );
    } else if !written.is_empty() {
        let text = if content.is_empty() {
            String::new()
        } else {
            content + "\n"
        };
        message.insert("content".to_owned(), (text + &written.join("; ")).into());
    }
}

fn explain(messages: &mut Vec<Value>, tools: &str) -> Result<(), ChatTemplateError> {
    let wrong = |reason: String| ChatTemplateError::Json {
        what: "the list of tools",
        reason,
    };
    let tools: Vec<Value> = serde_json::from_str(tools).map_err(|error| wrong(error.to_string()))?;
    let functions: Vec<String> = tools
        .iter()
        .map(|tool| tool.get("function").unwrap_or(tool).to_string())
        .collect();
    let text = format!(
        "You can call these functions. To call one, answer with nothing but JSON of the form \
         {{\"name\": function name, \"parameters\": {{argument name: value}}}}.\n\n{}",
        functions.join("\n")
    );
    let first = messages.first_mut().filter(|message| message["role"] == "system");
    match first {
        Some(system) => {
            let before = system["content"].as_str().unwrap_or_default();
            system["content"] = format!("{before}\n\n{text}").into();
        }
        None => messages.insert(0, json!({"role": "system", "content": text})),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(messages: Value, texts: ToolTexts) -> Vec<String> {
        let Value::Array(messages) = messages else {
            panic!()
        };
        let tools = r#"[{"type": "function", "function": {"name": "f"}}]"#;
        let messages = conversation(messages, Some(tools), texts).unwrap();
        messages
            .iter()
            .map(|message| message.fields().to_string())
            .collect()
    }

    fn history() -> Value {
        json!([
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        ])
    }

    #[test]
    fn templates_with_tools_get_arguments_as_json() {
        let shown = shown(history(), ToolTexts::Template);
        assert_eq!(shown.len(), 3);
        assert!(shown[1].contains("'arguments': {'a': 1}"), "{}", shown[1]);
        assert!(shown[2].contains("'role': 'tool'"));
    }

    #[test]
    fn templates_without_get_texts() {
        let shown = shown(history(), ToolTexts::Messages);
        assert_eq!(shown.len(), 4);
        assert!(
            shown[0].contains("system") && shown[0].contains(r#"{"name":"f"}"#),
            "{}",
            shown[0]
        );
        assert!(
            shown[2].contains(r#"{"name":"f","parameters":{"a":1}}"#) && !shown[2].contains("tool_calls"),
            "{}",
            shown[2]
        );
        assert!(
            shown[3].contains("user") && shown[3].contains("Result of the function call: 3"),
            "{}",
            shown[3]
        );
    }
}
