//! The beginning of a call in JSON: `{"name": "f", "parameters": {`, with white space anywhere.
//!
//! `arguments` is another word for `parameters`, and `function` for `name`. Calls whose arguments stand before their name, or in a
//! string, are read once they are whole.

use serde_json::Value;

/// What the beginning of a text is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Not known yet.
    More,
    /// No call.
    No,
    /// A call of this name, whose arguments begin at this byte with their brace.
    Begins { name: String, at: usize },
    /// A whole call.
    Whole { name: String, arguments: String },
}

/// Read the beginning of a text that starts with a brace.
pub(super) fn head(text: &str) -> Head {
    let mut cursor = Cursor { text, at: 0 };
    match cursor.head() {
        Ok(head) => head,
        Err(Stop::End) => Head::More,
        Err(Stop::Wrong) => Head::No,
        Err(Stop::Later) => whole(text),
    }
}

enum Stop {
    /// The text ends.
    End,
    Wrong,
    /// Only the whole object tells.
    Later,
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    fn head(&mut self) -> Result<Head, Stop> {
        self.expect(b'{')?;
        let mut name = None;
        loop {
            let key = self.string()?;
            self.expect(b':')?;
            match key.as_str() {
                "name" | "function" => name = Some(self.string()?),
                "parameters" | "arguments" => {
                    let begins = self.peek()? == b'{';
                    return match name.take() {
                        Some(name) if begins => Ok(Head::Begins { name, at: self.at }),
                        _ => Err(Stop::Later),
                    };
                }
                // Llama 3.2 says `"type": "function"` in front.
                "type" | "id" => drop(self.string()?),
                _ => return Err(Stop::Wrong),
            }
            match (self.peek()?, name.clone()) {
                (b',', _) => self.at += 1,
                (b'}', Some(name)) => {
                    let arguments = "{}".to_owned();
                    return Ok(Head::Whole { name, arguments });
                }
                _ => return Err(Stop::Wrong),
            }
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Result<u8, Stop> {
        let rest = self.text.as_bytes().get(self.at..).ok_or(Stop::End)?;
        let space = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.at += space;
        rest.get(space).copied().ok_or(Stop::End)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        if self.peek()? != byte {
            return Err(Stop::Wrong);
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<String, Stop> {
        if self.peek()? != b'"' {
            return Err(Stop::Wrong);
        }
        let rest = self.text.get(self.at..).ok_or(Stop::End)?;
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let end = end.ok_or(Stop::End)? + 2;
        self.at += end;
        let string = rest.get(..end).ok_or(Stop::Wrong)?;
        serde_json::from_str(string).map_err(|_| Stop::Wrong)
    }
}

fn whole(text: &str) -> Head {
    if !text.trim_end().ends_with('}') {
        return Head::More;
    }
    let object: Value = match serde_json::from_str(text) {
        Ok(object) => object,
        Err(error) if error.is_eof() => return Head::More,
        Err(_) => return Head::No,
    };
    let either = |a, b| object.get(a).or_else(|| object.get(b));
    let name = either("name", "function").and_then(Value::as_str);
    let arguments = match either("parameters", "arguments") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(arguments @ Value::Object(_)) => Some(arguments.to_string()),
        Some(Value::Null) => Some("{}".to_owned()),
        _ => None,
    };
    match (name, arguments) {
        (Some(name), Some(arguments)) => Head::Whole {
            name: name.to_owned(),
            arguments,
        },
        _ => Head::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_known_as_soon_as_they_can_be() {
        let begins = |name: &str, at| Head::Begins {
            name: name.to_owned(),
            at,
        };
        assert_eq!(head(r#"{"name": "f", "parameters": {"#), begins("f", 28));
        assert_eq!(
            head("{ \"type\":\"function\",\n\"name\":\"a\\\"b\",\"arguments\" : {"),
            begins("a\"b", 49)
        );
        for more in [
            "{",
            "{\"na",
            r#"{"name": "f"#,
            r#"{"name": "f", "parameters":"#,
            r#"{"parameters": {"a": {}}"#,
        ] {
            assert_eq!(head(more), Head::More, "{more}");
        }
        for no in [
            "{}",
            r#"{"answer": 4"#,
            r#"{"name": 4"#,
            "{1",
            r#"{"parameters": {}}"#,
            r#"{"parameters": [}"#,
        ] {
            assert_eq!(head(no), Head::No, "{no}");
        }
        let whole = |arguments: &str| Head::Whole {
            name: "f".to_owned(),
            arguments: arguments.to_owned(),
        };
        assert_eq!(head(r#"{"name": "f"}"#), whole("{}"));
        assert_eq!(
            head(r#"{"arguments": {"a": 1}, "name": "f"}"#),
            whole(r#"{"a":1}"#)
        );
        assert_eq!(
            head(r#"{"name": "f", "arguments": "{\"a\": 1}"}"#),
            whole(r#"{"a": 1}"#)
        );
    }
}
