//! Items of a conversation, those that an earlier response gave among them.

use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::json;

use crate::error::ApiError;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::{Content, MAX_MESSAGES, Message};

/// A text, or items.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// What the user says.
    Text(String),
    /// A conversation.
    Items(Vec<Item>),
}

/// One item. Which fields it has depends on its type.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the Responses API")]
pub struct Item {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub role: Option<String>,
    pub content: Option<Content>,
    pub call_id: Option<String>,
    pub name: Option<String>,
    pub arguments: Option<String>,
    pub output: Option<Content>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Input;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of items")
            }

            fn visit_str<E>(self, text: &str) -> Result<Input, E> {
                Ok(Input::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Input, A::Error> {
                let list = SeqAccessDeserializer::new(list);
                Bounded::<Item, MAX_MESSAGES>::deserialize(list).map(|items| Input::Items(items.0))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The messages of a chat, each with the item that it comes from; the instructions come from none.
#[derive(Debug, Default)]
pub struct Chat {
    /// The messages.
    pub messages: Vec<Message>,
    items: Vec<Option<usize>>,
    /// The assistant's turn that is being gathered: its text and its calls stand in one message.
    turn: Option<(usize, Option<Content>, Vec<String>)>,
}

impl Chat {
    /// What the client calls a message.
    #[must_use]
    pub fn place(&self, message: usize) -> String {
        match self.items.get(message) {
            Some(Some(item)) => format!("input[{item}]"),
            Some(None) => "instructions".to_owned(),
            None => "input".to_owned(),
        }
    }

    fn push(&mut self, item: Option<usize>, message: Message) {
        self.end_turn();
        self.items.push(item);
        self.messages.push(message);
    }

    fn turn(&mut self, item: usize) -> &mut (usize, Option<Content>, Vec<String>) {
        self.turn.get_or_insert_with(|| (item, None, Vec::new()))
    }

    fn end_turn(&mut self) {
        if let Some((item, content, calls)) = self.turn.take() {
            self.items.push(Some(item));
            self.messages.push(Message {
                content,
                tool_calls: (!calls.is_empty()).then(|| Kept(format!("[{}]", calls.join(",")))),
                ..Message::of("assistant")
            });
        }
    }
}

/// The chat that says the same.
///
/// # Errors
/// 400 naming the item.
pub fn chat(instructions: Option<String>, input: Input) -> Result<Chat, ApiError> {
    let mut chat = Chat::default();
    let text = |role: &str, text: String| Message {
        content: Some(Content::of(text)),
        ..Message::of(role)
    };
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        chat.push(None, text("system", instructions));
    }
    match input {
        Input::Text(said) => chat.push(Some(0), text("user", said)),
        Input::Items(items) => {
            for (index, item) in items.into_iter().enumerate() {
                add(&mut chat, index, item)?;
            }
        }
    }
    chat.end_turn();
    Ok(chat)
}

fn add(chat: &mut Chat, index: usize, item: Item) -> Result<(), ApiError> {
    let kind = item.kind.as_deref().unwrap_or("message");
    match (kind, item.role.as_deref()) {
        ("message", Some("assistant")) => {
            chat.end_turn();
            chat.turn(index).1 = Some(item.content.unwrap_or_default());
        }
        ("function_call", _) => {
            let call = call(index, item)?;
            chat.turn(index).2.push(call);
        }
        // The model does not reason apart from its answer.
        ("reasoning", _) => {}
        ("message", Some(role)) => {
            let message = Message {
                content: item.content,
                ..Message::of(role)
            };
            chat.push(Some(index), message);
        }
        ("function_call_output", _) => {
            let message = Message {
                content: item.output,
                tool_call_id: item.call_id,
                ..Message::of("tool")
            };
            chat.push(Some(index), message);
        }
        (kind, _) => return Err(unknown(index, kind)),
    }
    Ok(())
}

fn call(index: usize, item: Item) -> Result<String, ApiError> {
    let missing = |field: &str| {
        let param = format!("input[{index}].{field}");
        ApiError::invalid(
            Some(&param),
            format!("'{param}' is missing; a function_call needs it."),
        )
    };
    let name = item.name.ok_or_else(|| missing("name"))?;
    let arguments = item.arguments.ok_or_else(|| missing("arguments"))?;
    let id = item.call_id.ok_or_else(|| missing("call_id"))?;
    let function = json!({"name": name, "arguments": arguments});
    Ok(json!({"id": id, "type": "function", "function": function}).to_string())
}

fn unknown(index: usize, kind: &str) -> ApiError {
    let param = format!("input[{index}]");
    let kind: String = kind.chars().take(64).collect();
    let message = match kind.as_str() {
        "message" => format!("'{param}' has no role; use user, assistant, system or developer."),
        "item_reference" => {
            format!("'{param}' is a reference, but nothing is stored here; send the item itself.")
        }
        _ => format!(
            "'{param}' is of the type '{kind}'; use message, function_call, function_call_output or reasoning."
        ),
    };
    ApiError::unsupported(&param, message)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::routes::completion::messages::conversation;

    fn read(input: Value) -> Result<Vec<(String, String)>, ApiError> {
        let input = serde_json::from_value(input).unwrap();
        let mut chat = chat(Some("be kind".to_owned()), input)?;
        let messages = std::mem::take(&mut chat.messages);
        let chat = conversation(messages, |index| chat.place(index))?;
        let said = |message: &llamero_proto::v1::ChatMessage| {
            if message.json.is_empty() {
                return (message.role.clone(), message.content.clone());
            }
            let json: Value = serde_json::from_str(&message.json).unwrap();
            let calls = json["tool_calls"].as_array().map_or(0, Vec::len);
            let content = json["content"].as_str().unwrap();
            (
                json["role"].as_str().unwrap().to_owned(),
                format!("{content}+{calls}"),
            )
        };
        Ok(chat.iter().map(said).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    #[test]
    fn what_a_response_gave_can_be_sent_back() {
        assert_eq!(
            read(json!("hi")).unwrap(),
            pairs(&[("system", "be kind"), ("user", "hi")])
        );
        let call = |id: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": "{}", "status": "completed"});
        let items = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "b", "annotations": []}]},
            call("c1"), call("c2"),
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
            call("c3"),
            {"role": "developer", "content": "d"},
        ]);
        assert_eq!(
            read(items).unwrap(),
            pairs(&[
                ("system", "be kind"),
                ("user", "a"),
                ("assistant", "b+2"),
                ("tool", "1+0"),
                ("tool", "2+0"),
                ("assistant", "+1"),
                ("system", "d"),
            ])
        );
    }

    #[test]
    fn each_mistake_names_its_item() {
        for (item, param) in [
            (json!({"type": "item_reference", "id": "x"}), "input[0]"),
            (json!({"type": "web_search_call"}), "input[0]"),
            (json!({"content": "x"}), "input[0]"),
            (
                json!({"type": "function_call", "call_id": "c", "name": "f"}),
                "input[0].arguments",
            ),
            (json!({"role": "robot", "content": "x"}), "input[0].role"),
            (
                json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}),
                "input[0].content",
            ),
        ] {
            let error = read(json!([item])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        }
    }
}
