//! A value that is passed on as it came, in the client's order of keys, without white space. It is written down while it is being read,
//! so it takes no more memory than its JSON.

use std::cell::RefCell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::bounded::MAX_DEPTH;

/// JSON, nested no deeper than [`MAX_DEPTH`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept(pub String);

impl Kept {
    /// Whether it says nothing: null, or something empty.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        matches!(self.0.as_str(), "null" | "[]" | "{}" | "\"\"" | "false")
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = RefCell::new(String::new());
        let writer = Writer {
            json: &json,
            depth: 0,
        };
        writer.deserialize(deserializer)?;
        Ok(Self(json.into_inner()))
    }
}

#[derive(Clone, Copy)]
struct Writer<'a> {
    json: &'a RefCell<String>,
    depth: usize,
}

impl Writer<'_> {
    fn write(self, value: impl Into<Value>) {
        self.text(&value.into().to_string());
    }

    fn text(self, text: &str) {
        self.json.borrow_mut().push_str(text);
    }

    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!(
                "it is nested more than {MAX_DEPTH} levels deep; send a flatter value"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<(), E> {
        self.write(flag);
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        self.write(number);
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.write(number);
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.write(number);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.write(text);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.text("null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let mut separator = "[";
        loop {
            let before = self.json.borrow().len();
            self.text(separator);
            if list.next_element_seed(inner)?.is_none() {
                self.json.borrow_mut().truncate(before);
                break;
            }
            separator = ",";
        }
        self.text(if separator == "[" { "[]" } else { "]" });
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        let mut separator = "{";
        while let Some(key) = map.next_key::<String>()? {
            self.text(separator);
            self.write(key);
            self.text(":");
            map.next_value_seed(inner)?;
            separator = ",";
        }
        self.text(if separator == "{" { "{}" } else { "}" });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_in_their_order() {
        for json in [
            r#"{"z":1,"a":{"é\"\n":[-1,2.5,true,null,[],{}]},"b":"x"}"#,
            "[]",
            "[[],[1,[2]]]",
            "\"a\"",
            "18446744073709551615",
        ] {
            let kept: Kept = serde_json::from_str(json).unwrap();
            assert_eq!(kept.0, json);
            let kept: Kept = serde_json::from_str(&json.replace(':', " : ").replace(',', " ,\n")).unwrap();
            assert_eq!(kept.0, json);
        }
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let error = serde_json::from_str::<Kept>(&deep).unwrap_err().to_string();
        assert!(error.contains("nested more than 64"), "{error}");
    }
}
