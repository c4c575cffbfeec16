//! An answer as text and calls, piece by piece.
//!
//! Calls are JSON objects, `{"name": "f", "parameters": {…}}`, at the beginning of the answer: alone, one after another (with `;`, `,`
//! or white space between), in a list, or each within `<tool_call>` and `</tool_call>`. Behind Llama's `<|python_tag|>` stands one too,
//! a call of a built-in tool, or code. JSON that names no tool of the request is text, and so is everything else.

use serde_json::Value;

use super::head::{Head, head};
use super::opening::{MOST, Opening, opening};
use super::python_call;

/// Longest beginning of a call, and longest code.
const MAX_HELD: usize = MOST;
const OPENING: &str = "<tool_call>";
const CLOSING: &str = "</tool_call>";

/// What is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolPiece {
    /// Text.
    Text(String),
    /// The call of this number begins, from 0.
    Begin {
        /// Its number.
        index: u32,
        /// The tool.
        name: String,
    },
    /// More of the arguments of the call of this number: JSON as the model writes it.
    Arguments {
        /// Its number.
        index: u32,
        /// What comes next.
        text: String,
    },
}

/// Reads one answer. Where its pieces are cut does not matter.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    names: Vec<String>,
    at_most_one: bool,
    /// Set when the answer has a form that tells calls from text: the tools whose calls it writes.
    formed: Option<Vec<String>>,
    state: State,
    /// Text that is not understood yet.
    held: String,
    /// What stood before it, which is text only if this is.
    lead: String,
    /// Calls that have begun.
    begun: u32,
    done: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before the first call, or between two.
    Between,
    Head,
    /// Within the braces of the arguments.
    Arguments {
        depth: u32,
        quoted: bool,
        escaped: bool,
    },
    /// Behind the arguments, before the object's brace.
    Closing,
    Python,
    Text,
}

impl ToolCallParser {
    /// For an answer that may call the tools of these names, or only one of them once.
    #[must_use]
    pub fn new(names: Vec<String>, at_most_one: bool) -> Self {
        Self {
            names,
            at_most_one,
            formed: None,
            state: State::Between,
            held: String::new(),
            lead: String::new(),
            begun: 0,
            done: false,
        }
    }

    /// For an answer with a form that knows calls: only what [`opening`](super::opening) takes for a call is one. Built-in tools and code are called
    /// behind `<|python_tag|>` unless they are `strict`, which are called with arguments of their schema or not at all.
    #[must_use]
    pub fn formed(self, strict: Vec<String>) -> Self {
        Self {
            formed: Some(strict),
            ..self
        }
    }

    /// Whether a call has ended and no other may follow.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Take text.
    pub fn push(&mut self, text: &str) -> Vec<ToolPiece> {
        let mut pieces = Vec::new();
        for character in text.chars() {
            self.take(character, &mut pieces);
        }
        pieces
    }

    /// The token `<|python_tag|>` has come.
    pub fn python_tag(&mut self) -> Vec<ToolPiece> {
        let mut pieces = Vec::new();
        if matches!(self.state, State::Between | State::Text) {
            self.give_up(&mut pieces);
            self.state = State::Python;
        }
        pieces
    }

    /// The answer has ended.
    pub fn finish(&mut self) -> Vec<ToolPiece> {
        let mut pieces = Vec::new();
        if let State::Python = self.state {
            let (name, arguments) = python_call::read(&self.held);
            let may_call = |strict: &Vec<String>| !strict.contains(&name) && !self.held_is_json();
            let may_call = self.formed.as_ref().is_none_or(may_call);
            if !self.held.trim().is_empty() && self.knows(&name) && may_call {
                self.held.clear();
                self.whole(name, arguments, &mut pieces);
            }
        }
        if matches!(self.state, State::Between)
            && self.begun > 0
            && behind_separators(&self.held, false).is_empty()
        {
            self.held.clear();
        }
        self.give_up(&mut pieces);
        pieces
    }

    fn take(&mut self, character: char, pieces: &mut Vec<ToolPiece>) {
        match self.state {
            _ if self.done => {}
            State::Text => add(pieces, ToolPiece::Text(character.into())),
            State::Between if self.formed.is_some() && self.begun == 0 => {
                self.formed_head(character, pieces);
            }
            State::Head | State::Python if self.formed.is_some() => self.formed_head(character, pieces),
            State::Between => self.between(character, pieces),
            State::Head => self.head(character, pieces),
            State::Arguments { .. } => self.arguments(character, pieces),
            State::Closing if character == '}' => self.ended(),
            // Whatever else the model adds to its call tells nothing about it.
            State::Closing => {}
            State::Python if character == '{' && self.held.trim().is_empty() => {
                self.held = character.into();
                self.state = State::Head;
            }
            State::Python => {
                self.held.push(character);
                self.bound(pieces);
            }
        }
    }

    fn between(&mut self, character: char, pieces: &mut Vec<ToolPiece>) {
        self.held.push(character);
        let first = self.begun == 0;
        let rest = behind_separators(&self.held, first);
        if rest == "{" {
            self.held.pop();
            self.lead = std::mem::replace(&mut self.held, "{".to_owned());
            self.state = State::Head;
        } else if rest.is_empty() || OPENING.starts_with(rest) || (!first && CLOSING.starts_with(rest)) {
            self.bound(pieces);
        } else {
            self.give_up(pieces);
        }
    }

    fn head(&mut self, character: char, pieces: &mut Vec<ToolPiece>) {
        self.held.push(character);
        match head(&self.held) {
            Head::More => self.bound(pieces),
            Head::Begins { name, at } if self.knows(&name) => self.begin_arguments(name, at, pieces),
            Head::Whole { name, arguments } if self.knows(&name) => {
                self.held.clear();
                self.whole(name, arguments, pieces);
                self.ended();
            }
            Head::No | Head::Begins { .. } | Head::Whole { .. } => self.give_up(pieces),
        }
    }

    fn formed_head(&mut self, character: char, pieces: &mut Vec<ToolPiece>) {
        self.held.push(character);
        let alone = !matches!(self.state, State::Between);
        match opening(self.held.as_bytes(), alone) {
            Opening::More => self.bound(pieces),
            Opening::Call { quoted, rest } => match rest.trim_ascii_start() {
                [] => self.bound(pieces),
                b"{" => {
                    let is_named =
                        |name: &&String| Value::from(name.as_str()).to_string().as_bytes() == quoted;
                    match self.names.iter().find(is_named).cloned() {
                        Some(name) => self.begin_arguments(name, self.held.len() - 1, pieces),
                        None => self.give_up(pieces),
                    }
                }
                _ => self.give_up(pieces),
            },
            // Code goes on to the end.
            Opening::Text if matches!(self.state, State::Python) && !self.held_is_json() => {
                self.bound(pieces);
            }
            Opening::Text => self.give_up(pieces),
        }
    }

    fn held_is_json(&self) -> bool {
        self.held.trim_start().starts_with('{')
    }

    /// The brace of the arguments is at this byte of what is held, the last one.
    fn begin_arguments(&mut self, name: String, at: usize, pieces: &mut Vec<ToolPiece>) {
        let index = self.begin(name, pieces);
        let text = self.held.split_off(at);
        self.held.clear();
        add(pieces, ToolPiece::Arguments { index, text });
        self.state = State::Arguments {
            depth: 1,
            quoted: false,
            escaped: false,
        };
    }

    fn arguments(&mut self, character: char, pieces: &mut Vec<ToolPiece>) {
        let State::Arguments {
            mut depth,
            quoted,
            escaped,
        } = self.state
        else {
            return;
        };
        match character {
            '{' | '[' if !quoted => depth = depth.saturating_add(1),
            '}' | ']' if !quoted => depth -= 1,
            _ => {}
        }
        let text = character.into();
        let index = self.begun.saturating_sub(1);
        add(pieces, ToolPiece::Arguments { index, text });
        self.state = if depth == 0 {
            State::Closing
        } else {
            State::Arguments {
                depth,
                quoted: quoted != (character == '"' && !escaped),
                escaped: quoted && character == '\\' && !escaped,
            }
        };
    }

    fn knows(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn begin(&mut self, name: String, pieces: &mut Vec<ToolPiece>) -> u32 {
        self.lead.clear();
        let index = self.begun;
        self.begun = index.saturating_add(1);
        add(pieces, ToolPiece::Begin { index, name });
        index
    }

    fn whole(&mut self, name: String, text: String, pieces: &mut Vec<ToolPiece>) {
        let index = self.begin(name, pieces);
        add(pieces, ToolPiece::Arguments { index, text });
    }

    fn ended(&mut self) {
        self.state = State::Between;
        self.done = self.at_most_one;
    }

    fn bound(&mut self, pieces: &mut Vec<ToolPiece>) {
        if self.held.len() > MAX_HELD {
            self.give_up(pieces);
        }
    }

    /// What is held is text after all, and so is what follows.
    fn give_up(&mut self, pieces: &mut Vec<ToolPiece>) {
        let held = std::mem::take(&mut self.lead) + &std::mem::take(&mut self.held);
        if !held.is_empty() {
            add(pieces, ToolPiece::Text(held));
        }
        self.state = State::Text;
    }
}

/// What follows white space and what may stand before a call: the first one, or another one.
fn behind_separators(text: &str, first: bool) -> &str {
    let mut rest = text.trim_start();
    let separators: &[&str] = if first {
        &["[", OPENING]
    } else {
        &["[", "]", ",", ";", OPENING, CLOSING]
    };
    while let Some(behind) = separators
        .iter()
        .find_map(|separator| rest.strip_prefix(separator))
    {
        rest = behind.trim_start();
        if first {
            break;
        }
    }
    rest
}

/// Join what belongs together.
fn add(pieces: &mut Vec<ToolPiece>, piece: ToolPiece) {
    match (pieces.last_mut(), piece) {
        (Some(ToolPiece::Text(text)), ToolPiece::Text(more)) => text.push_str(&more),
        (Some(ToolPiece::Arguments { index: a, text }), ToolPiece::Arguments { index: b, text: more })
            if *a == b =>
        {
            text.push_str(&more);
        }
        (_, piece) => pieces.push(piece),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `\u{1}` stands for the python tag. Shown as `text|#0 name args|…`.
    fn read(answer: &str, cuts: &[usize], at_most_one: bool) -> String {
        let mut parser = ToolCallParser::new(
            vec!["f".into(), "g".into(), "code_interpreter".into()],
            at_most_one,
        );
        let mut pieces: Vec<ToolPiece> = Vec::new();
        let mut start = 0;
        let mut all = |more: Vec<ToolPiece>| more.into_iter().for_each(|piece| add(&mut pieces, piece));
        for (at, character) in answer.char_indices() {
            if character == '\u{1}' {
                all(parser.push(&answer[start..at]));
                all(parser.python_tag());
                start = at + 1;
            } else if cuts.contains(&at) {
                all(parser.push(&answer[start..at]));
                start = at;
            }
        }
        all(parser.push(&answer[start..]));
        all(parser.finish());
        let shown = pieces.into_iter().map(|piece| match piece {
            ToolPiece::Text(text) => text,
            ToolPiece::Begin { index, name } => format!("|#{index} {name} "),
            ToolPiece::Arguments { text, .. } => text,
        });
        shown.collect()
    }

    const ANSWERS: [(&str, &str); 14] = [
        ("Hello {\"name\": \"f\"}", "Hello {\"name\": \"f\"}"),
        ("  plain", "  plain"),
        (
            r#"{"name": "f", "parameters": {"a": "}\"{", "b": [{}]}}"#,
            r#"|#0 f {"a": "}\"{", "b": [{}]}"#,
        ),
        (
            r#" {"name": "f", "parameters": {}}; {"name": "g", "parameters": {"x": 1}}"#,
            r#"|#0 f {}|#1 g {"x": 1}"#,
        ),
        (
            r#"[{"name": "f", "arguments": {}}, {"name": "g"}]"#,
            "|#0 f {}|#1 g {}",
        ),
        (
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>{\"name\": \"g\"}</tool_call>",
            "|#0 f {}|#1 g {}",
        ),
        ("<tool>x", "<tool>x"),
        (
            r#"{"name": "h", "parameters": {}}"#,
            r#"{"name": "h", "parameters": {}}"#,
        ),
        (r#"{"answer": 42}"#, r#"{"answer": 42}"#),
        (r#"{"name": "f", "parameters": {"a"#, r#"|#0 f {"a"#),
        (r#"{"name": "f", "par"#, r#"{"name": "f", "par"#),
        (
            "\u{1}print('é')\nx",
            "|#0 code_interpreter {\"code\":\"print('é')\\nx\"}",
        ),
        ("\u{1}{\"name\": \"g\", \"parameters\": {}}", "|#0 g {}"),
        (
            "\u{1}brave_search.call(query=\"x\")",
            "brave_search.call(query=\"x\")",
        ),
    ];

    #[test]
    fn calls_are_told_from_text() {
        for (answer, expected) in ANSWERS {
            assert_eq!(read(answer, &[], false), expected, "{answer}");
        }
        let two = r#"{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}"#;
        assert_eq!(read(two, &[], true), "|#0 f {}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn cuts_do_not_matter(which in 0..ANSWERS.len(), cuts in prop::collection::vec(0_usize..90, 0..9)) {
            let (answer, expected) = ANSWERS[which];
            prop_assert_eq!(read(answer, &cuts, false), expected);
        }

        #[test]
        fn nothing_is_lost_from_a_text_and_nothing_panics(text in "[ {}\\[\\]\"a:,;<\\\\é]{0,40}") {
            prop_assert_eq!(read(&text, &[], false), text);
        }
    }
}
