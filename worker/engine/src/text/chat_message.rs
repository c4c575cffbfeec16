//! One message of a conversation, as a chat template sees it.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::chat_template::ChatTemplateError;
use super::markers::guard;

/// A message: an object with at least a `role`. What else it has (`content`, `tool_calls`, `name`, `tool_call_id`) is for the template to
/// say; what is null counts as absent.
#[derive(Debug, Clone)]
pub struct ChatMessage {
    fields: Value,
    bytes: usize,
}

impl ChatMessage {
    /// A message of text.
    #[must_use]
    pub fn new(role: &str, content: &str) -> Self {
        Self {
            fields: Value::from_pairs([("role", guard(role)), ("content", guard(content))]),
            bytes: role.len() + content.len(),
        }
    }

    /// A message in OpenAI's form, as JSON.
    ///
    /// # Errors
    /// [`ChatTemplateError::Json`] when it is not a JSON object with a role.
    pub fn from_json(json: &str) -> Result<Self, ChatTemplateError> {
        let fields = from_json("a message", json)?;
        let role = fields.get_attr("role").unwrap_or_default();
        if fields.kind() != ValueKind::Map || role.as_str().is_none() {
            return Err(ChatTemplateError::Json {
                what: "a message",
                reason: "it must be an object with a \"role\" that is a string".to_owned(),
            });
        }
        // As transformers: what is null is not there, since many templates only ask whether a field is.
        let held = fields.try_iter().into_iter().flatten();
        let held = held.filter_map(|name| {
            let value = fields.get_item(&name).unwrap_or_default();
            (!value.is_none()).then_some((name, value))
        });
        Ok(Self {
            fields: Value::from_pairs(held),
            bytes: json.len(),
        })
    }

    /// What the template sees.
    pub(super) fn fields(&self) -> Value {
        self.fields.clone()
    }

    /// About how long it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A value from outside in which no text can be taken for a control token.
pub(super) fn from_json(what: &'static str, json: &str) -> Result<Value, ChatTemplateError> {
    let value = serde_json::from_str(json).map_err(|error| ChatTemplateError::Json {
        what,
        reason: error.to_string(),
    })?;
    Ok(guarded(value))
}

/// The parser bounds the depth of what it reads, and so of this.
fn guarded(value: Value) -> Value {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::String => value
            .as_str()
            .map(|text| Value::from(guard(text)))
            .unwrap_or_default(),
        ValueKind::Seq => items().map(guarded).collect(),
        ValueKind::Map => {
            let pairs = items().map(|key| {
                let held = value.get_item(&key).unwrap_or_default();
                (guarded(key), guarded(held))
            });
            Value::from_pairs(pairs)
        }
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_no_message_is_refused() {
        for json in [
            "",
            "[]",
            "\"user\"",
            "{}",
            r#"{"role": 1}"#,
            r#"{"content": "x"}"#,
        ] {
            let error = ChatMessage::from_json(json).unwrap_err().to_string();
            assert!(error.contains("a message"), "{error}");
        }
        let deep = format!(
            r#"{{"role": "user", "content": {}1{}}}"#,
            "[".repeat(500),
            "]".repeat(500)
        );
        assert!(ChatMessage::from_json(&deep).is_err());
    }

    #[test]
    fn every_text_of_a_message_is_guarded_and_its_order_kept() {
        let json =
            "{\"role\": \"user\", \"z\": {\"b\\udbc0\\udc00\": [\"\u{100001}\", 1.5, null, true]}, \"a\": 1}";
        let message = ChatMessage::from_json(json).unwrap();
        let shown = message.fields().to_string();
        assert!(!shown.contains(['\u{100000}', '\u{100001}']), "{shown}");
        let keys: Vec<String> = message
            .fields()
            .try_iter()
            .unwrap()
            .map(|key| key.to_string())
            .collect();
        assert_eq!(keys, ["role", "z", "a"]);
    }
}
