//! What the value of a field asks for that is not built. A value that asks for nothing (null, the default) is fine.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::bounded::Ignored;

/// Longest word that is kept.
const MAX_WORD: usize = 64;

/// A value, as far as it matters; large ones are not kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// null.
    Null,
    /// A flag.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A string; cut when long.
    Word(String),
    /// A list, with its only entry when that is a word.
    List {
        /// Whether it has no entry.
        empty: bool,
        /// Its only entry.
        only: Option<String>,
    },
    /// An object.
    Object {
        /// Whether it has no field.
        empty: bool,
    },
}

/// Values of a refused field that ask for nothing; null is always among them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Harmless {
    /// Only null.
    Null,
    /// Also false, 0, and what is empty.
    Nothing,
    /// Also true, where that is what happens anyhow.
    True,
    /// Also this number.
    Number(f64),
    /// Also these words, and what is empty.
    Words(&'static [&'static str]),
    /// Also a list with only this word, and an empty one.
    Only(&'static str),
}

impl Harmless {
    /// Whether `asked` asks for nothing.
    #[must_use]
    pub fn covers(self, asked: &Asked) -> bool {
        let nothing = match asked {
            Asked::Null => return true,
            Asked::Flag(flag) => !flag,
            Asked::Number(number) => *number == 0.0,
            Asked::Word(word) => word.is_empty(),
            Asked::List { empty, .. } | Asked::Object { empty } => *empty,
        };
        match self {
            Self::Null => false,
            Self::Nothing => nothing,
            Self::True => *asked == Asked::Flag(true),
            Self::Number(number) => *asked == Asked::Number(number),
            Self::Words(words) => {
                nothing || matches!(asked, Asked::Word(word) if words.contains(&word.as_str()))
            }
            Self::Only(word) => {
                nothing || matches!(asked, Asked::List { only: Some(only), .. } if only == word)
            }
        }
    }
}

/// As the table of fields shows it.
impl fmt::Display for Harmless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Nothing => f.write_str("null, false, 0, empty"),
            Self::True => f.write_str("null, true"),
            Self::Number(number) => write!(f, "null, {number}"),
            Self::Words(words) => write!(f, "null, empty, {}", words.join(", ")),
            Self::Only(word) => write!(f, "null, empty, [\"{word}\"]"),
        }
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Look)
    }
}

struct Look;

fn word(text: &str) -> String {
    text.chars().take(MAX_WORD).collect()
}

impl<'de> Visitor<'de> for Look {
    type Value = Asked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Asked, E> {
        Ok(Asked::Flag(flag))
    }

    #[expect(clippy::cast_precision_loss, reason = "only compared with small numbers")]
    fn visit_i64<E>(self, number: i64) -> Result<Asked, E> {
        Ok(Asked::Number(number as f64))
    }

    #[expect(clippy::cast_precision_loss, reason = "only compared with small numbers")]
    fn visit_u64<E>(self, number: u64) -> Result<Asked, E> {
        Ok(Asked::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Asked, E> {
        Ok(Asked::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Asked, E> {
        Ok(Asked::Word(word(text)))
    }

    fn visit_unit<E>(self) -> Result<Asked, E> {
        Ok(Asked::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Asked, A::Error> {
        let Some(first) = list.next_element::<Entry>()? else {
            return Ok(Asked::List {
                empty: true,
                only: None,
            });
        };
        let mut only = first.0;
        while list.next_element_seed(Ignored::FIELD)?.is_some() {
            only = None;
        }
        Ok(Asked::List { empty: false, only })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Asked, A::Error> {
        let mut empty = true;
        while map.next_key_seed(Ignored::FIELD)?.is_some() {
            empty = false;
            map.next_value_seed(Ignored::FIELD)?;
        }
        Ok(Asked::Object { empty })
    }
}

/// A word, or anything else, which is not kept.
struct Entry(Option<String>);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LookDeeper;

        impl<'de> Visitor<'de> for LookDeeper {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_str<E>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry(Some(word(text))))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Entry, E> {
                Ok(Entry(None))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Entry, E> {
                Ok(Entry(None))
            }

            fn visit_u64<E>(self, _: u64) -> Result<Entry, E> {
                Ok(Entry(None))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Entry, E> {
                Ok(Entry(None))
            }

            fn visit_unit<E>(self) -> Result<Entry, E> {
                Ok(Entry(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Entry, A::Error> {
                Ignored::FIELD.visit_seq(list).map(|()| Entry(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                Ignored::FIELD.visit_map(map).map(|()| Entry(None))
            }
        }

        deserializer.deserialize_any(LookDeeper)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_ask_for_nothing_and_others_for_something() {
        let cases = [
            (Harmless::Null, vec![json!(null)], vec![json!(0), json!(false)]),
            (
                Harmless::Nothing,
                vec![
                    json!(false),
                    json!(0),
                    json!(0.0),
                    json!(""),
                    json!([]),
                    json!({}),
                ],
                vec![
                    json!(true),
                    json!(0.1),
                    json!("x"),
                    json!([null]),
                    json!({"a": []}),
                ],
            ),
            (Harmless::True, vec![json!(true)], vec![json!(false), json!(1)]),
            (
                Harmless::Number(1.0),
                vec![json!(1), json!(1.0)],
                vec![json!(0), json!(1.5)],
            ),
            (
                Harmless::Words(&["none", "auto"]),
                vec![json!("none"), json!("auto")],
                vec![json!("required"), json!({"type": "function"})],
            ),
            (
                Harmless::Only("text"),
                vec![json!(["text"]), json!([])],
                vec![json!(["text", "audio"]), json!(["audio"]), json!([["text"]])],
            ),
        ];
        for (harmless, nothing, something) in cases {
            for value in nothing.iter().chain([&json!(null)]) {
                let asked = serde_json::from_value(value.clone()).unwrap();
                assert!(harmless.covers(&asked), "{harmless:?} {value}");
            }
            for value in &something {
                let asked = serde_json::from_value(value.clone()).unwrap();
                assert!(!harmless.covers(&asked), "{harmless:?} {value}");
            }
        }
    }
}
