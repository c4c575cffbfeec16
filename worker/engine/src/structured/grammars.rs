//! Forms compiled for a tokenizer.

use std::fmt;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::form::{Form, FormError};
use crate::runtime::Constraint;
use crate::text::Tokenizer;

/// Most states of the automaton that splits an answer into terminals; about 2 KB each.
const MAX_LEXER_STATES: usize = 20_000;

/// Compiles forms for one model.
pub struct Grammars {
    factory: ParserFactory,
    vocab_size: usize,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars")
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model with `vocab_size` token ids (padding included), whose answers end with one of `ends`. Takes a moment.
    ///
    /// # Errors
    /// [`FormError::NoEnd`], or [`FormError::Unsupported`] for a vocabulary that cannot be used.
    pub fn new(tokenizer: &Tokenizer, vocab_size: u32, ends: &[u32]) -> Result<Self, FormError> {
        let ends: Vec<u32> = ends.iter().copied().filter(|end| *end < vocab_size).collect();
        let first = *ends.first().ok_or(FormError::NoEnd)?;
        let words: Vec<Vec<u8>> = (0..vocab_size).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size, first), &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory =
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(unsupported)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        Ok(Self {
            factory,
            vocab_size: vocab_size as usize,
        })
    }

    /// The constraint of a form, behind the tokens of the answer that exist already.
    ///
    /// # Errors
    /// [`FormError`] with what is wrong, or when `resumed` has not this form.
    pub fn compile(&self, form: &Form, resumed: &[u32]) -> Result<TokenConstraint, FormError> {
        self.compile_grammar(form.grammar()?, resumed)
    }

    fn compile_grammar(
        &self,
        grammar: TopLevelGrammar,
        resumed: &[u32],
    ) -> Result<TokenConstraint, FormError> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            // Its advice is for programs that use the compiler.
            let error = error.split(". Enable '").next().unwrap_or_default();
            return Err(FormError::Unsupported(error.to_owned()));
        }
        matcher
            .consume_tokens(resumed)
            .map_err(|_| FormError::Unsupported("the resumed tokens have another form".to_owned()))?;
        Ok(TokenConstraint {
            matcher,
            bytes: self.vocab_size.div_ceil(8),
        })
    }
}

/// How the compiler knows a token. Special tokens are behind a mark that no text has, so that no text becomes one.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.bytes(id);
    if tokenizer.is_special(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    bytes.to_vec()
}

fn unsupported(error: impl fmt::Display) -> FormError {
    FormError::Unsupported(error.to_string())
}

/// Restricts the tokens of one answer to a form.
#[derive(Clone)]
pub struct TokenConstraint {
    matcher: Matcher,
    bytes: usize,
}

impl fmt::Debug for TokenConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenConstraint")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Constraint for TokenConstraint {
    fn accept(&mut self, token: u32) -> Result<(), String> {
        self.matcher.consume_token(token).map_err(failed)
    }

    fn mask(&mut self) -> Result<Option<Vec<u8>>, String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(failed)?;
        Ok(Some(bitmap(&allowed, self.bytes)))
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(self.clone()))
    }
}

fn failed(error: impl fmt::Display) -> String {
    format!(
        "the form of the answer cannot be enforced any further ({error}); simplify it and send the request again"
    )
}

fn bitmap(allowed: &SimpleVob, bytes: usize) -> Vec<u8> {
    let mut bits: Vec<u8> = allowed
        .as_slice()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bits.resize(bytes, 0);
    bits
}

#[cfg(test)]
mod tests {
    use super::super::form::CallOr;
    use super::super::testing::{VOCAB, accepts, grammars, walk};
    use super::*;
    use crate::text::testing::tokenizer;
    use crate::text::tool_calls::{ToolCallParser, ToolPiece};

    #[test]
    fn every_walk_that_ends_has_the_form() {
        let grammars = grammars();
        let schema = r##"{"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 40},
            "kind": {"enum": ["he", "a"]}, "tags": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}},
            "required": ["n", "kind"], "additionalProperties": false,
            "$defs": {"t": {"type": "string", "maxLength": 3}}}"##;
        let mut ended = 0;
        for seed in 0..30 {
            let Some(text) = walk(&grammars, &Form::Json(schema.to_owned()), seed) else {
                continue;
            };
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!((3..=40).contains(&value["n"].as_i64().unwrap()), "{text}");
            assert!(["he", "a"].contains(&value["kind"].as_str().unwrap()), "{text}");
            let tags = value["tags"].as_array().cloned().unwrap_or_default();
            assert!(
                tags.len() <= 2 && tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 3),
                "{text}"
            );
            assert!(
                value
                    .as_object()
                    .unwrap()
                    .keys()
                    .all(|key| ["n", "kind", "tags"].contains(&key.as_str()))
            );
            ended += 1;
        }
        assert!(ended > 10, "{ended}");
        for seed in 0..10 {
            let text = walk(&grammars, &Form::Regex("[a-c]{2,4}é(he)+x".to_owned()), seed);
            assert!(text.is_none_or(|text| text.contains('é') && text.ends_with("hex")));
            let texts = vec!["yes".to_owned(), "no \"way\"\n".to_owned()];
            let text = walk(&grammars, &Form::Choice(texts.clone()), seed).unwrap();
            assert!(texts.contains(&text), "{text}");
            let tools = vec![
                (
                    "f".to_owned(),
                    r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "required": ["a"],
                    "additionalProperties": false, "$defs": {"x": {"type": "boolean"}}}"##
                        .to_owned(),
                ),
                (
                    "g".to_owned(),
                    r##"{"type": "object", "properties": {}, "additionalProperties": false}"##.to_owned(),
                ),
            ];
            let text = walk(&grammars, &Form::Call(tools), seed).unwrap();
            let mut parser = ToolCallParser::new(vec!["f".to_owned(), "g".to_owned()], true);
            let pieces = parser.push(&text);
            let [ToolPiece::Begin { name, .. }, ToolPiece::Arguments { text, .. }] = &pieces[..] else {
                panic!("{text}: {pieces:?}");
            };
            let arguments: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(
                arguments.get("a").is_some_and(serde_json::Value::is_boolean),
                name == "f"
            );
            let text = walk(
                &grammars,
                &Form::Lark("start: \"a\" start \"b\" | \"x\"".to_owned()),
                seed,
            );
            assert!(text.is_none_or(|text| text.matches('a').count() == text.matches('b').count()));
        }
    }

    #[test]
    fn beside_tools_an_answer_has_its_form_or_is_calls() {
        let grammars = grammars();
        let schema = r#"{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"],
            "additionalProperties": false}"#;
        let texts = |one: bool, text: Form| {
            Form::CallOr(CallOr {
                text: Box::new(text),
                tools: vec!["f".to_owned(), "g \"h\"".to_owned()],
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
        let text = Box::new(Form::Regex("x".to_owned()));
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

    #[test]
    fn what_cannot_be_enforced_is_named() {
        for (form, words) in [
            (
                Form::Json(r#"{"type": "object", "not": {"type": "null"}}"#.into()),
                "not",
            ),
            (
                Form::Json(r#"{"type": "array", "uniqueItems": true}"#.into()),
                "uniqueItems",
            ),
            (
                Form::Json(r#"{"type": "string", "format": "made-up"}"#.into()),
                "made-up",
            ),
            (Form::Json(r##"{"$ref": "#/$defs/missing"}"##.into()), "missing"),
            (
                Form::Json(r#"{"x-guidance": {"lenient": true}}"#.into()),
                "x-guidance",
            ),
            (
                Form::Json(r#"{"oneOf": [{"minimum": 1}, {"maximum": 3}]}"#.into()),
                "oneOf constraints are not supported",
            ),
            (Form::Json("[1]".into()), "must be an object"),
            (Form::Json("{".into()), "not a JSON schema"),
            (Form::Regex("(".into()), "cannot be enforced"),
            (Form::Lark("start: nowhere".into()), "nowhere"),
            (Form::Choice(vec![]), "at least one"),
            (Form::Choice(vec![String::new()]), "empty"),
            (Form::Lark("x".repeat(300_000)), "at most 262144"),
        ] {
            let error = grammars().compile(&form, &[]).unwrap_err().to_string();
            assert!(error.contains(words), "{form:?}: {error}");
        }
        assert_eq!(
            Grammars::new(&tokenizer(), VOCAB, &[]).unwrap_err(),
            FormError::NoEnd
        );
        let wrong = grammars().compile(&Form::Choice(vec!["yes".into()]), &[b'n'.into()]);
        assert!(wrong.unwrap_err().to_string().contains("resumed"));
    }
}
