//! The beginning of a call as forms of answers write it, to the byte, so that a form and the parser agree on what is a call:
//!
//! ```text
//! {"name": "f", "parameters":
//! ```
//!
//! in which `function` may stand for `name`, `arguments` for `parameters`, `"type": "function",` before the name, and white space between
//! the parts. Before the first call of an answer may stand `[` or `<tool_call>`. [`GRAMMAR`] says the same to the compiler of forms.

/// Most white space between two parts, in bytes.
const SPACE: usize = 16;
/// Longest beginning in bytes. What is not known then is text.
pub(crate) const MOST: usize = 64 << 10;

/// Terminals of llguidance's Lark. `SPACES`: white space, or none. `OPEN name KEY` is the beginning of a call of the tool of that name, `ANY` any name,
/// `LEAD` what may stand before an answer's first one.
pub(crate) const GRAMMAR: &str = r#"SPACES: /[ \n\r\t]{0,16}/
TYPE: "\"type\"" SPACES ":" SPACES "\"function\"" SPACES "," SPACES
OPEN: "{" SPACES TYPE? ("\"name\"" | "\"function\"") SPACES ":" SPACES
KEY: SPACES "," SPACES ("\"parameters\"" | "\"arguments\"") SPACES ":"
ANY: /"([^"\\]|\\(?s:.))*"/
LEAD: SPACES (("[" | "<tool_call>") SPACES)?
"#;

/// What a text that begins so is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening<'a> {
    /// Not known yet: a call may begin here.
    More,
    /// No call, whatever comes.
    Text,
    /// A call of a tool.
    Call {
        /// The name, in quotation marks as it is written.
        quoted: &'a [u8],
        /// What stands behind the colon.
        rest: &'a [u8],
    },
}

/// Read the beginning of an answer, or with `alone` of a text in which nothing stands before a call but white space.
pub(crate) fn opening(text: &[u8], alone: bool) -> Opening<'_> {
    let mut cursor = Cursor(text);
    match cursor.call(alone) {
        Ok(quoted) => Opening::Call {
            quoted,
            rest: cursor.0,
        },
        Err(End::Early) => Opening::More,
        Err(End::Other) => Opening::Text,
    }
}

/// Why no call was read.
enum End {
    /// The text ends.
    Early,
    /// It goes on otherwise.
    Other,
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// The name of the call.
    fn call(&mut self, alone: bool) -> Result<&'a [u8], End> {
        self.space();
        if alone {
            self.one_of(&["{"])?;
        } else if self.one_of(&["{", "[", "<tool_call>"])? != 0 {
            self.space();
            self.one_of(&["{"])?;
        }
        self.space();
        if self.one_of(&["\"type\"", "\"name\"", "\"function\""])? == 0 {
            self.parts(&[&[":"], &["\"function\""], &[","], &["\"name\"", "\"function\""]])?;
        }
        self.parts(&[&[":"]])?;
        self.space();
        let name = self.string()?;
        self.parts(&[&[","], &["\"parameters\"", "\"arguments\""], &[":"]])?;
        Ok(name)
    }

    /// Parts, each one of some words, with white space before them.
    fn parts(&mut self, parts: &[&[&str]]) -> Result<(), End> {
        for words in parts {
            self.space();
            self.one_of(words)?;
        }
        Ok(())
    }

    fn space(&mut self) {
        let space = self.0.iter().take(SPACE);
        let space = space.take_while(|byte| b" \n\r\t".contains(byte)).count();
        self.0 = self.0.get(space..).unwrap_or_default();
    }

    /// Which of the words comes. None begins another one.
    fn one_of(&mut self, words: &[&str]) -> Result<usize, End> {
        for (index, word) in words.iter().enumerate() {
            if let Some(rest) = self.0.strip_prefix(word.as_bytes()) {
                self.0 = rest;
                return Ok(index);
            }
        }
        let may_come = words.iter().any(|word| word.as_bytes().starts_with(self.0));
        Err(if may_come { End::Early } else { End::Other })
    }

    /// A string with its quotation marks.
    fn string(&mut self) -> Result<&'a [u8], End> {
        let text = self.0;
        self.one_of(&["\""])?;
        let mut escaped = false;
        while let Some((byte, rest)) = self.0.split_first() {
            self.0 = rest;
            if *byte == b'"' && !escaped {
                return Ok(text.get(..text.len() - rest.len()).unwrap_or_default());
            }
            escaped = *byte == b'\\' && !escaped;
        }
        Err(End::Early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_begins_with_its_name_and_ends_at_the_colon_of_its_arguments() {
        for (text, name) in [
            (r#"{"name": "f", "parameters":"#, r#""f""#),
            (
                "  [\n{ \"type\" : \"function\",\"function\":\"a\\\"b\"\t,\"arguments\" :",
                r#""a\"b""#,
            ),
            ("<tool_call>\n{\"name\": \"é\", \"arguments\":", "\"é\""),
        ] {
            let Opening::Call { quoted, rest } = opening(text.as_bytes(), false) else {
                panic!("{text}")
            };
            assert_eq!((quoted, rest), (name.as_bytes(), &b""[..]), "{text}");
            for end in 0..text.len() {
                assert_eq!(
                    opening(&text.as_bytes()[..end], false),
                    Opening::More,
                    "{text} to {end}"
                );
            }
            let alone = opening(text.as_bytes(), true);
            assert_eq!(alone == Opening::Text, !text.starts_with('{'), "{text}");
        }
        for text in [
            "a",
            "{}",
            "[[",
            "{\"parameters\": {",
            r#"{"name": 4"#,
            r#"{"name": "f"}"#,
            r#"{"name": "f", "age"#,
            r#"{"type": "object"#,
            "                 {",
        ] {
            assert_eq!(opening(text.as_bytes(), false), Opening::Text, "{text}");
        }
    }
}
