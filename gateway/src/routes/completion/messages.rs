//! A conversation.

use std::fmt;

use llamero_proto::v1::ChatMessage;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::asked::{Asked, Harmless};
use super::bounded::Bounded;
use super::kept::Kept;
use crate::error::ApiError;

/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 4096;
/// Most calls of a message.
const MAX_CALLS: usize = 128;

/// One message. Fields that are not listed (`refusal`, …) do not reach the model.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Message {
    pub role: String,
    pub content: Option<Content>,
    pub tool_calls: Option<Kept>,
    pub tool_call_id: Option<String>,
    pub name: Option<String>,
    pub function_call: Option<Asked>,
    pub audio: Option<Asked>,
}

/// The text of a message, given as such or in parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    text: String,
    /// A part that is no text was among them.
    other: bool,
}

impl Message {
    /// Without anything said.
    #[must_use]
    pub fn of(role: &str) -> Self {
        Self {
            role: role.to_owned(),
            ..Self::default()
        }
    }
}

impl Content {
    /// A text.
    #[must_use]
    pub fn of(text: String) -> Self {
        Self { text, other: false }
    }

    /// What is said.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same as what went wrong: chat templates know no other way to say so.
    #[must_use]
    pub fn as_error(self) -> Self {
        let text = match self.text.as_str() {
            "" => "Error".to_owned(),
            text => format!("Error: {text}"),
        };
        Self { text, ..self }
    }
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content { text, other: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut content = Content {
                    text: String::new(),
                    other: false,
                };
                while let Some(part) = parts.next_element::<Part>()? {
                    match (part.kind.as_str(), part.text) {
                        ("text" | "input_text" | "output_text", Some(text)) => content.text.push_str(&text),
                        _ => content.other = true,
                    }
                }
                Ok(content)
            }
        }

        deserializer.deserialize_any(Text)
    }
}

/// The conversation for the worker. `place` is what the client calls the message of an index.
///
/// # Errors
/// 400 naming the message and its field.
pub fn conversation(
    messages: Vec<Message>,
    place: impl Fn(usize) -> String,
) -> Result<Vec<ChatMessage>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            Some("messages"),
            "'messages' is empty; send at least one message.",
        ));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(index, found)| message(|| place(index), found))
        .collect()
}

fn message(place: impl Fn() -> String, message: Message) -> Result<ChatMessage, ApiError> {
    let at = |field: &str| format!("{}.{field}", place());
    let role = role(&message.role, || at("role"))?;
    for (field, asked) in [
        ("function_call", &message.function_call),
        ("audio", &message.audio),
    ] {
        if asked
            .as_ref()
            .is_some_and(|asked| !Harmless::Nothing.covers(asked))
        {
            let field = at(field);
            let message = format!(
                "'{field}' is not supported; send the assistant's text as content, and its calls as tool_calls."
            );
            return Err(ApiError::unsupported(&field, message));
        }
    }
    let content = match message.content {
        Some(Content { other: true, .. }) => {
            return Err(ApiError::unsupported(
                &at("content"),
                "Only parts of type 'text' with a 'text' are supported; the model reads text only.",
            ));
        }
        Some(Content { text, .. }) => text,
        // An assistant's message may be empty, and so may be what a tool says.
        None if matches!(role, "assistant" | "tool") => String::new(),
        None => {
            return Err(ApiError::invalid(
                Some(&at("content")),
                "The message has no content; send its text.",
            ));
        }
    };
    let calls = message.tool_calls.filter(|calls| !calls.is_nothing());
    let named = message.name.as_ref().is_some_and(|name| !name.is_empty());
    if calls.is_none() && role != "tool" && !named {
        return Ok(ChatMessage {
            role: role.to_owned(),
            content,
            ..ChatMessage::default()
        });
    }
    if let Some(calls) = &calls {
        check_calls(role, calls, &at("tool_calls"))?;
    }
    Ok(ChatMessage {
        role: role.to_owned(),
        json: with_calls(role, &content, calls.as_ref(), message.tool_call_id, message.name),
        ..ChatMessage::default()
    })
}

#[derive(Deserialize)]
struct Call {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: Option<String>,
}

fn check_calls(role: &str, calls: &Kept, at: &str) -> Result<(), ApiError> {
    if role != "assistant" {
        let message =
            format!("'{at}' stands in a message of the role '{role}'; only the assistant calls tools.");
        return Err(ApiError::invalid(Some(at), message));
    }
    let calls: Bounded<Call, MAX_CALLS> = serde_json::from_str(&calls.0)
        .map_err(|error| ApiError::invalid(Some(at), format!("'{at}' is not as expected: {error}.")))?;
    for (index, Call { function }) in calls.0.iter().enumerate() {
        let arguments = function.arguments.as_deref().unwrap_or("{}").trim();
        let object: Result<Map<String, Value>, _> = serde_json::from_str(arguments);
        if function.name.is_empty() || !(arguments.is_empty() || object.is_ok()) {
            let param = format!("{at}[{index}].function");
            let message =
                format!("'{param}' must have a name, and arguments that are a JSON object in a string.");
            return Err(ApiError::invalid(Some(&param), message));
        }
    }
    Ok(())
}

/// The message in OpenAI's form. The calls stay as they came.
fn with_calls(
    role: &str,
    content: &str,
    calls: Option<&Kept>,
    call_id: Option<String>,
    name: Option<String>,
) -> String {
    let mut json = format!(
        "{{\"role\":{},\"content\":{}",
        Value::from(role),
        Value::from(content)
    );
    if let Some(Kept(calls)) = calls {
        json += &format!(",\"tool_calls\":{calls}");
    }
    for (key, value) in [("tool_call_id", call_id), ("name", name)] {
        if let Some(value) = value {
            json += &format!(",\"{key}\":{}", Value::from(value));
        }
    }
    json + "}"
}

fn role(written: &str, at: impl Fn() -> String) -> Result<&'static str, ApiError> {
    match written {
        // OpenAI's newer word for system.
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" => Ok("tool"),
        "function" => Err(ApiError::unsupported(
            &at(),
            "The role 'function' is not supported; send results with the role 'tool'.",
        )),
        other => {
            let shown: String = other.chars().take(64).collect();
            let message = format!("The role '{shown}' is not known; use system, user, assistant or tool.");
            Err(ApiError::invalid(Some(&at()), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(messages: Value) -> Result<Vec<ChatMessage>, ApiError> {
        conversation(serde_json::from_value(messages).unwrap(), |index| {
            format!("messages[{index}]")
        })
    }

    #[test]
    fn content_is_text_parts_or_nothing_and_developer_is_system() {
        let messages = check(json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": ""},
            {"role": "user", "content": []},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": []},
            {"role": "assistant", "content": "c", "tool_calls": null},
        ]))
        .unwrap();
        let texts: Vec<_> = messages
            .iter()
            .map(|found| (found.role.as_str(), found.content.as_str()))
            .collect();
        assert_eq!(
            texts,
            [
                ("system", "ab"),
                ("user", ""),
                ("user", ""),
                ("assistant", ""),
                ("assistant", "c")
            ]
        );
    }

    #[test]
    fn calls_and_results_are_passed_on_in_their_own_form() {
        let calls = json!([{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"z\": 1, \"a\": 2}"}}]);
        let messages = check(json!([
            {"role": "assistant", "content": null, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "3\n"}]},
        ]))
        .unwrap();
        let named = check(json!([{"role": "user", "content": "hi", "name": "ann"}])).unwrap();
        assert_eq!(named[0].json, r#"{"role":"user","content":"hi","name":"ann"}"#);
        let passed: Vec<Value> = messages
            .iter()
            .map(|found| serde_json::from_str(&found.json).unwrap())
            .collect();
        assert_eq!(
            passed[0],
            json!({"role": "assistant", "content": "", "tool_calls": calls})
        );
        assert_eq!(
            passed[1],
            json!({"role": "tool", "content": "3\n", "tool_call_id": "call_1"})
        );
        for (message, param) in [
            (
                json!({"role": "user", "content": "x", "tool_calls": calls}),
                "messages[0].tool_calls",
            ),
            (
                json!({"role": "assistant", "tool_calls": {"a": 1}}),
                "messages[0].tool_calls",
            ),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}),
                "messages[0].tool_calls[0].function",
            ),
        ] {
            assert_eq!(check(json!([message])).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn each_mistake_gets_its_sentence() {
        for (messages, param) in [
            (json!([]), "messages"),
            (json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "function", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": null}]), "messages[0].content"),
            (
                json!([{"role": "assistant", "content": null, "tool_calls": [{}]}]),
                "messages[0].tool_calls",
            ),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                "messages[0].content",
            ),
        ] {
            let error = check(messages).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
            assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST);
        }
    }
}
