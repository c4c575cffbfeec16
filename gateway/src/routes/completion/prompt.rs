//! Prompts of text completion, and texts to be embedded: text or token ids, alone or in a list.

use std::fmt;

use llamero_proto::v1::{TokenIds, completion_request::Prompt};
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::check::MAX_CHOICES;
use crate::error::ApiError;

/// One prompt or several, at most `MOST`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts<const MOST: usize = MAX_CHOICES>(Vec<Prompt>);

impl<const MOST: usize> Prompts<MOST> {
    /// The prompts, at least one, each with something in it.
    ///
    /// # Errors
    /// 400.
    pub fn checked(self) -> Result<Vec<Prompt>, ApiError> {
        let empty = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.is_empty(),
            Prompt::TokenIds(tokens) => tokens.ids.is_empty(),
            Prompt::Chat(chat) => chat.messages.is_empty(),
        };
        if self.0.is_empty() || self.0.iter().any(empty) {
            return Err(ApiError::invalid(
                Some("prompt"),
                "'prompt' is empty; send some text to go on from.",
            ));
        }
        Ok(self.0)
    }
}

/// An entry of a list: a prompt of its own, or a token of the only prompt.
enum Entry {
    Prompt(Prompt),
    Token(u32),
}

const EXPECTED: &str = "a string, a list of token ids, or a list of these";

impl<'de, const MOST: usize> Deserialize<'de> for Prompts<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All<const MOST: usize>;

        impl<'de, const MOST: usize> Visitor<'de> for All<MOST> {
            type Value = Prompts<MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
                Ok(Prompts(vec![Prompt::Text(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let (mut prompts, mut ids) = (Vec::new(), Vec::new());
                while let Some(entry) = list.next_element()? {
                    match entry {
                        Entry::Token(token) if prompts.is_empty() => ids.push(token),
                        Entry::Prompt(prompt) if ids.is_empty() => prompts.push(prompt),
                        _ => return Err(A::Error::custom("texts and token ids are mixed in one list")),
                    }
                    if prompts.len() > MOST {
                        return Err(A::Error::custom(format_args!(
                            "more than {MOST} entries; send several requests"
                        )));
                    }
                }
                if !ids.is_empty() {
                    prompts.push(Prompt::TokenIds(TokenIds { ids }));
                }
                Ok(Prompts(prompts))
            }
        }

        deserializer.deserialize_any(All::<MOST>)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;

        impl<'de> Visitor<'de> for One {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<Entry, E> {
                let token = u32::try_from(token);
                token
                    .map(Entry::Token)
                    .map_err(|_| E::custom("a token id is too large"))
            }

            fn visit_str<E>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::Prompt(Prompt::Text(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entry, A::Error> {
                let mut ids = Vec::new();
                while let Some(token) = list.next_element()? {
                    ids.push(token);
                }
                Ok(Entry::Prompt(Prompt::TokenIds(TokenIds { ids })))
            }
        }

        deserializer.deserialize_any(One)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(prompt: Value) -> Result<Vec<Prompt>, ApiError> {
        serde_json::from_value::<Prompts>(prompt).unwrap().checked()
    }

    #[test]
    fn prompts_come_in_four_forms() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        let tokens = |ids: &[u32]| Prompt::TokenIds(TokenIds { ids: ids.to_vec() });
        assert_eq!(read(json!("hi")).unwrap(), [text("hi")]);
        assert_eq!(read(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(read(json!([1, 2])).unwrap(), [tokens(&[1, 2])]);
        assert_eq!(
            read(json!([[1, 2], [3]])).unwrap(),
            [tokens(&[1, 2]), tokens(&[3])]
        );
    }

    #[test]
    fn each_mistake_gets_its_sentence() {
        for empty in [json!(""), json!([]), json!([""]), json!([[]]), json!(["a", ""])] {
            assert!(read(empty).unwrap_err().message.contains("is empty"));
        }
        for (wrong, words) in [
            (json!(7), "a string, a list of token ids"),
            (json!([-1]), "a string, a list of token ids"),
            (json!([1_u64 << 40]), "too large"),
            (json!(["a", 1]), "mixed"),
            (json!([1, [2]]), "mixed"),
            (json!(vec!["a"; 129]), "more than 128 entries"),
        ] {
            let error = serde_json::from_value::<Prompts>(wrong).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
