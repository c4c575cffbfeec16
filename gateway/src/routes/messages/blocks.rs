//! Turns made of blocks.

use std::fmt;

use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::error::ApiError;
use crate::routes::completion::bounded::Bounded;
use crate::routes::completion::kept::Kept;
use crate::routes::completion::messages::{Content, Message};

/// Most blocks of a turn.
const MAX_BLOCKS: usize = 1024;

/// One turn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Turn {
    /// `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: Blocks,
}

/// A text, or blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks(Vec<Block>);

/// One block. Which fields it has depends on its type.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Kept>,
    tool_use_id: Option<String>,
    content: Option<Content>,
    is_error: Option<bool>,
}

impl<'de> Deserialize<'de> for Blocks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Blocks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of blocks")
            }

            fn visit_str<E>(self, text: &str) -> Result<Blocks, E> {
                Ok(Blocks(vec![Block {
                    kind: "text".to_owned(),
                    text: Some(text.to_owned()),
                    ..Block::default()
                }]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Blocks, A::Error> {
                let list = SeqAccessDeserializer::new(list);
                Bounded::<Block, MAX_BLOCKS>::deserialize(list).map(|blocks| Blocks(blocks.0))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The messages of a chat that say the same, each with the name of the turn that it comes from.
///
/// # Errors
/// 400 naming the block.
pub fn messages(system: Option<Blocks>, turns: Vec<Turn>) -> Result<Vec<(String, Message)>, ApiError> {
    let mut messages = Vec::new();
    if let Some(system) = system {
        let mut parts = Parts::default();
        parts.read("system", "system", system)?;
        if !parts.text.is_empty() {
            messages.push(("system".to_owned(), text("system", parts.text)));
        }
    }
    for (index, turn) in turns.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        let mut parts = Parts::default();
        parts.read(&at, &turn.role, turn.content)?;
        messages.extend(parts.results.into_iter().map(|result| (at.clone(), result)));
        let called = !parts.calls.is_empty();
        // A turn of results alone says nothing besides.
        if called || !parts.text.is_empty() || !parts.has_results {
            let message = Message {
                tool_calls: called.then(|| Kept(format!("[{}]", parts.calls.join(",")))),
                ..text(&turn.role, parts.text)
            };
            messages.push((at, message));
        }
    }
    Ok(messages)
}

fn text(role: &str, text: String) -> Message {
    Message {
        content: Some(Content::of(text)),
        ..Message::of(role)
    }
}

/// What the blocks of a turn say.
#[derive(Default)]
struct Parts {
    text: String,
    /// JSON of OpenAI's form.
    calls: Vec<String>,
    results: Vec<Message>,
    has_results: bool,
}

impl Parts {
    fn read(&mut self, at: &str, role: &str, blocks: Blocks) -> Result<(), ApiError> {
        for (index, block) in blocks.0.into_iter().enumerate() {
            let at = format!("{at}.content[{index}]");
            match (block.kind.as_str(), role) {
                ("text", _) => self.text.push_str(&block.text.unwrap_or_default()),
                ("tool_use", "assistant") => self.calls.push(call(&at, block)?),
                ("tool_result", "user") => {
                    self.has_results = true;
                    self.results.push(Message {
                        content: match block.is_error {
                            Some(true) => Some(block.content.unwrap_or_default().as_error()),
                            _ => block.content,
                        },
                        tool_call_id: block.tool_use_id,
                        ..Message::of("tool")
                    });
                }
                // The model does not think apart from its answer.
                ("thinking" | "redacted_thinking", "assistant") => {}
                (kind, _) => {
                    let kind: String = kind.chars().take(64).collect();
                    let message = format!(
                        "'{at}' is of the type '{kind}', which is not supported in a turn of the role '{role}'; use text, \
                         tool_use (assistant) and tool_result (user)."
                    );
                    return Err(ApiError::unsupported(&at, message));
                }
            }
        }
        Ok(())
    }
}

fn call(at: &str, block: Block) -> Result<String, ApiError> {
    let (Some(id), Some(name)) = (block.id, block.name) else {
        let message = format!("'{at}' needs an id and a name.");
        return Err(ApiError::invalid(Some(at), message));
    };
    let input = block.input.map_or_else(|| "{}".to_owned(), |Kept(input)| input);
    let (id, name, arguments) = (Value::from(id), Value::from(name), Value::from(input));
    Ok(format!(
        "{{\"id\":{id},\"type\":\"function\",\"function\":{{\"name\":{name},\"arguments\":{arguments}}}}}"
    ))
}
