//! Calls of tools as grammars.

use llguidance::api::TopLevelGrammar;
use serde_json::Value;

use super::form::{Form, FormError, JSON_SPACE, literal, object, schema};
use crate::text::tool_calls::opening;

/// What an answer may be that may call tools.
#[derive(Debug, Clone, PartialEq)]
pub struct CallOr {
    /// The form of an answer that calls nothing; none: any text.
    pub text: Option<Box<Form>>,
    /// The tools.
    pub tools: Vec<Callable>,
    /// One call, or else also several.
    pub one: bool,
}

/// A tool that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Callable {
    /// Its name.
    pub name: String,
    /// The schema of its arguments; none: any object.
    pub arguments: Option<String>,
}

/// Where free text may be, or calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A whole answer.
    Answer,
    /// Behind Llama's `<|python_tag|>`.
    PythonTag,
}

impl CallOr {
    /// The grammar of a whole answer.
    ///
    /// # Errors
    /// [`FormError`].
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, FormError> {
        match &self.text {
            Some(text) => self.beside(text),
            None => self.beside_free_text(Place::Answer),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let tools = self.tools.iter();
        let tools = tools.map(|tool| tool.name.len() + tool.arguments.as_ref().map_or(0, String::len));
        self.text.as_ref().map_or(0, |text| text.bytes()) + tools.sum::<usize>()
    }

    /// Calls are taken apart as JSON's own terminals are, so that an answer may begin like a call and go on otherwise.
    fn beside(&self, text: &Form) -> Result<TopLevelGrammar, FormError> {
        let list = if self.one {
            ""
        } else {
            " | \"[\" s call (s \",\" s call)* s \"]\""
        };
        let mut lark = format!("start: @text | call{list}\ncall: \"{{\" s \"\\\"name\\\"\" s \":\" s (");
        lark += &self.each(|index, name| format!("{} key arguments{index}", literal(name)));
        lark += ") s \"}\"\nkey: s \",\" s (\"\\\"parameters\\\"\" | \"\\\"arguments\\\"\") s \":\"\n";
        lark += &self.arguments()?;
        let mut grammar = TopLevelGrammar::from_lark(lark);
        let mut text = text.grammar()?;
        for one in &mut text.grammars {
            one.name = Some("text".to_owned());
        }
        grammar.grammars.append(&mut text.grammars);
        Ok(grammar)
    }

    /// Free text is what does not begin like a call of any tool, and a call is one terminal up to its arguments: so the two are told apart before
    /// the arguments begin, wherever tokens begin and end. What [`opening`] says of an answer is what this grammar says.
    ///
    /// # Errors
    /// [`FormError`].
    pub(super) fn beside_free_text(&self, place: Place) -> Result<TopLevelGrammar, FormError> {
        let calls = |first: &str| self.each(|index, _| format!("{first}{index} arguments{index}"));
        let (lead, called) = match (place, self.one) {
            // One call ends the answer.
            (Place::PythonTag, true) => ("SPACES", format!("({}) end", calls("FIRST"))),
            (Place::PythonTag, false) => ("SPACES", format!("({}) end more*", calls("FIRST"))),
            (Place::Answer, true) => {
                let firsts = [calls("FIRST"), calls("LISTED"), calls("MARKED")];
                ("LEAD", format!("({}) end", firsts.join(" | ")))
            }
            (Place::Answer, false) => (
                "LEAD",
                format!(
                    "({}) end more* s | ({}) end (s \",\" s next)* s \"]\" s | ({}) end s CLOSE (s \"<tool_call>\" s next s CLOSE)* s",
                    calls("FIRST"),
                    calls("LISTED"),
                    calls("MARKED")
                ),
            ),
        };
        let mut lark =
            format!("start: TEXT? | {called}\nTEXT: /(?s:.+)/ & ~({lead} OPEN ANY KEY /(?s:.*)/)\n");
        lark += opening::GRAMMAR;
        lark += "CLOSE: \"</tool_call>\"\nend: s \"}\"\nmore: s ((\";\" | \",\") s)? next\n";
        lark += &format!("next: ({}) end\n", calls("HEAD"));
        for (index, tool) in self.tools.iter().enumerate() {
            let name = literal(&Value::from(tool.name.as_str()).to_string());
            lark += &format!("HEAD{index}: OPEN {name} KEY\nFIRST{index}: SPACES HEAD{index}\n");
            lark += &format!("LISTED{index}: SPACES \"[\" SPACES HEAD{index}\n");
            lark += &format!("MARKED{index}: SPACES \"<tool_call>\" SPACES HEAD{index}\n");
        }
        lark += &self.arguments()?;
        Ok(TopLevelGrammar::from_lark(lark))
    }

    /// An alternative for each tool, by its number and its name in quotation marks.
    fn each(&self, one: impl Fn(usize, &str) -> String) -> String {
        let tools = self.tools.iter().enumerate();
        let tools = tools.map(|(index, tool)| one(index, &Value::from(tool.name.as_str()).to_string()));
        tools.collect::<Vec<_>>().join(" | ")
    }

    /// The rules of white space and of the arguments of each tool. Each schema is a document of its own, so that its references stay its own.
    fn arguments(&self) -> Result<String, FormError> {
        if self.tools.is_empty() {
            return Err(FormError::NoChoice("no tool"));
        }
        let any = schema(r#"{"type": "object"}"#)?;
        let mut lark = format!("s: SPACE?\nSPACE: /{JSON_SPACE}/\nany: %json {any}\n");
        for (index, tool) in self.tools.iter().enumerate() {
            lark += &match &tool.arguments {
                Some(arguments) => format!("arguments{index}: s %json {}\n", object(arguments)?),
                None => format!("arguments{index}: s any\n"),
            };
        }
        Ok(lark)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::grammars::Grammars;
    use super::super::testing::{accepts, allowed, grammars};
    use super::*;
    use crate::runtime::Constraint as _;
    use crate::text::testing::{SPECIAL, START, tokenizer};
    use crate::text::tool_calls::opening::{Opening, opening};
    use crate::text::tool_calls::{ToolCallParser, ToolPiece};

    fn any(name: &str) -> Callable {
        Callable {
            name: name.to_owned(),
            arguments: None,
        }
    }

    fn arguments() -> Value {
        json!({"properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false})
    }

    /// `f` is strict.
    fn tools() -> Vec<Callable> {
        let strict = Callable {
            name: "f".to_owned(),
            arguments: Some(arguments().to_string()),
        };
        vec![strict, any("g"), any("code_interpreter")]
    }

    fn free(one: bool) -> Form {
        Form::CallOr(CallOr {
            text: None,
            tools: tools(),
            one,
        })
    }

    /// With a token that stands for Llama's `<|python_tag|>`.
    fn with_tag() -> Grammars {
        let mut grammars = grammars();
        grammars.python_tag = Some(START);
        grammars
    }

    /// What the parser makes of an answer: its text, and its calls.
    fn read(tokens: &[u32], one: bool) -> (String, Vec<(String, String)>) {
        let names = tools().into_iter().map(|tool| tool.name).collect();
        let mut parser = ToolCallParser::new(names, one).formed(vec!["f".to_owned()]);
        let mut pieces = Vec::new();
        for stretch in tokens.split_inclusive(|token| *token == START) {
            let (text, tag) = match stretch.split_last() {
                Some((&START, text)) => (text, true),
                _ => (stretch, false),
            };
            pieces.extend(parser.push(&tokenizer().decode(text)));
            if tag {
                pieces.extend(parser.python_tag());
            }
        }
        pieces.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                ToolPiece::Text(more) => text.push_str(&more),
                ToolPiece::Begin { name, .. } => calls.push((name, String::new())),
                ToolPiece::Arguments { text: more, .. } => calls.last_mut().unwrap().1.push_str(&more),
            }
        }
        (text, calls)
    }

    /// Every call has a name that there is and arguments that are valid.
    fn check(calls: &[(String, String)]) {
        for (name, written) in calls {
            let value: Value =
                serde_json::from_str(written).unwrap_or_else(|error| panic!("{written}: {error}"));
            assert!(value.is_object(), "{written}");
            assert!(
                name != "f" || jsonschema::is_valid(&arguments(), &value),
                "{written}"
            );
        }
    }

    /// Follows a text as far as it may, goes on at random where it may not, and to an end. `\u{1}` is the tag.
    fn follow(grammars: &Grammars, form: &Form, text: &str, mut seed: u64) -> Option<Vec<u32>> {
        let mut wanted = Vec::new();
        for (index, stretch) in text.split('\u{1}').enumerate() {
            wanted.extend((index > 0).then_some(START));
            wanted.extend(tokenizer().encode(stretch, false).unwrap());
        }
        let mut wanted = wanted.into_iter();
        let mut constraint = grammars.compile(form, &[]).unwrap();
        let mut tokens = Vec::new();
        while tokens.len() < 300 {
            let choices = allowed(&mut constraint);
            let next = wanted.next();
            if next.is_none() && choices.contains(&SPECIAL) {
                return Some(tokens);
            }
            let closing = |token: &&u32| [0x22, 0x7d, 0x5d, 0x31].contains(*token);
            let closing: Vec<u32> = choices.iter().filter(closing).copied().collect();
            let choices = if closing.is_empty() { choices } else { closing };
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random = choices[(seed >> 33) as usize % choices.len()];
            let is_allowed = |token: &u32| allowed(&mut constraint).contains(token);
            let token = next.filter(is_allowed).unwrap_or(random);
            if token == SPECIAL {
                return Some(tokens);
            }
            constraint.accept(token).unwrap();
            tokens.push(token);
        }
        None
    }

    const PIECES: [&str; 24] = [
        "{",
        " ",
        "\n",
        "[",
        "<tool_call>",
        "</tool_call>",
        "\"name\"",
        "\"function\"",
        "\"type\"",
        ":",
        ",",
        ";",
        "\"f\"",
        "\"g\"",
        "\"x\"",
        "\"parameters\"",
        "\"arguments\"",
        "{}",
        "{\"n\": 1}",
        "}",
        "a",
        "é",
        "\\",
        "{\"name\": \"f\", \"parameters\":",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() })]

        #[test]
        fn free_text_is_everything_that_does_not_begin_like_a_call(pieces in prop::collection::vec(0..PIECES.len(), 0..14)) {
            let text: String = pieces.into_iter().map(|piece| PIECES[piece]).collect();
            let is_taken = accepts(&grammars(), &free(false), &text);
            let (read_text, calls) = read(&tokenizer().encode(&text, false).unwrap(), false);
            match opening(text.as_bytes(), false) {
                Opening::Call { .. } if !is_taken => {}
                Opening::Call { .. } => {
                    prop_assert!(!calls.is_empty() && read_text.is_empty(), "{}", text);
                    check(&calls);
                }
                Opening::More | Opening::Text => {
                    prop_assert!(is_taken, "{}", text);
                    prop_assert_eq!(&read_text, &text);
                    prop_assert!(calls.is_empty());
                }
            }
        }
    }

    #[test]
    fn what_begins_like_a_call_is_one_with_valid_arguments() {
        let grammars = with_tag();
        let (mut called, mut texts) = (0, 0);
        let call = |name: &str, rest: &str| format!("{{\"name\": \"{name}\", \"parameters\": {rest}");
        let (f, g) = (call("f", "{\"n\": 1}}"), call("g", "{\"a\": [{}]}}"));
        let wrong = [
            call("f", "{\"m\": \"x\"}}"),
            call("f", "3}"),
            call("h", "{}}"),
            call("f", "{}}"),
        ];
        let mut answers = vec![
            f.clone(),
            g.clone(),
            format!("{f}; {g}"),
            format!("[{f}, {g}]"),
            format!("{f}\n{f} and"),
            format!("<tool_call>\n{g}\n</tool_call>\n<tool_call>{f}</tool_call>"),
            format!("\u{1}{f}"),
            format!("a\u{1}{f}"),
            "\u{1}print(1)".to_owned(),
            "\u{1}f.call(n=\"x\")".to_owned(),
            "\u{1}g.call(n=\"x\")".to_owned(),
            "hi".to_owned(),
        ];
        answers.extend(wrong.iter().cloned());
        answers.extend(wrong.iter().map(|call| format!("a\u{1}{call}")));
        answers.extend(wrong.iter().map(|call| format!("[{g}, {call}")));
        answers.extend(
            wrong
                .iter()
                .map(|call| format!("{{\"type\": \"function\", {}", &call[1..])),
        );
        for (answer, one) in answers
            .iter()
            .flat_map(|answer| [(answer, false), (answer, true)])
        {
            for seed in 0..4 {
                let Some(tokens) = follow(&grammars, &free(one), answer, seed) else {
                    continue;
                };
                let (text, calls) = read(&tokens, one);
                check(&calls);
                assert!(calls.len() < 2 || !one, "{answer}");
                let is_called = |name: &str| text.contains(&format!("\"{name}\", \"parameters\":"));
                assert!(!["f", "g", "h"].into_iter().any(is_called), "{answer}: {text}");
                called += usize::from(!calls.is_empty());
                texts += usize::from(!text.is_empty());
            }
        }
        assert!(called > 60 && texts > 20, "{called} {texts}");
        for (answer, calls) in [
            (&answers[2], 2),
            (&answers[3], 2),
            (&answers[5], 2),
            (&answers[7], 1),
            (&answers[8], 1),
            (&answers[9], 0),
            (&answers[10], 1),
        ] {
            let tokens = follow(&grammars, &free(false), answer, 0).unwrap();
            assert_eq!(read(&tokens, false).1.len(), calls, "{answer}");
        }
    }

    #[test]
    fn beside_tools_an_answer_has_its_form_or_is_calls() {
        let grammars = grammars();
        let schema = r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"],
            "additionalProperties": false}"#;
        let texts = |one: bool, text: Form| {
            Form::CallOr(CallOr {
                text: Some(Box::new(text)),
                tools: vec![any("f"), any("g \"h\"")],
                one,
            })
        };
        let call = r#"{"name": "f", "parameters": {"a": [1]}}"#;
        let quoted = r#"{"name":"g \"h\"","parameters":{}}"#;
        let list = format!("[{call}, {quoted}]");
        for one in [false, true] {
            let form = texts(one, Form::Json(schema.to_owned()));
            for text in [
                call,
                quoted,
                r#"{"name": "f", "arguments": {}}"#,
                r#"{"name": "f", "age": 3}"#,
                r#"{"name": "fox"}"#,
                r#"{"name": "f"}"#,
            ] {
                assert!(accepts(&grammars, &form, text), "{text}");
            }
            for text in [
                r#"{"name": "fox", "parameters": {}}"#,
                r#"{"name": "f", "parameters": 3}"#,
                r#"{"parameters": {}}"#,
                "no",
            ] {
                assert!(!accepts(&grammars, &form, text), "{text}");
            }
            assert_eq!(accepts(&grammars, &form, &list), !one);
        }
        for text in [
            Form::Regex("x/y+".to_owned()),
            Form::Choice(vec!["x/y".to_owned()]),
            Form::Lark("start: \"x/y\"".to_owned()),
        ] {
            let form = texts(false, text);
            assert!(
                accepts(&grammars, &form, "x/y")
                    && accepts(&grammars, &form, call)
                    && !accepts(&grammars, &form, "x"),
                "{form:?}"
            );
        }
        for text in [Some(Box::new(Form::Regex("x".to_owned()))), None] {
            let none = Form::CallOr(CallOr {
                text,
                tools: Vec::new(),
                one: true,
            });
            assert!(matches!(
                grammars.compile(&none, &[]),
                Err(FormError::NoChoice(_))
            ));
        }
        let strict = Form::CallOr(CallOr {
            text: Some(Box::new(Form::Json(schema.to_owned()))),
            tools: tools(),
            one: false,
        });
        for (text, is_taken) in [
            (r#"{"name": "f", "parameters": {"n": 3}}"#, true),
            (r#"{"name": "f", "parameters": {"n": "x"}}"#, false),
            (r#"{"name": "g", "parameters": {"n": "x"}}"#, true),
        ] {
            assert_eq!(accepts(&grammars, &strict, text), is_taken, "{text}");
        }
    }
}
