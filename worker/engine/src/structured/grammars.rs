//! Forms compiled for a tokenizer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::calls::Place;
use super::form::{Form, FormError};
use super::free_text::FreeText;
use crate::runtime::{Constraint, ConstraintError, Restriction};
use crate::text::Tokenizer;
use crate::text::tool_calls::PYTHON_TAG;

/// Most states of the automaton that splits an answer into terminals; about 2 KB each.
const MAX_LEXER_STATES: usize = 20_000;

/// How the matcher's messages begin when a form has reached its bounds, or when no token goes on with it (llguidance 1.9, `ParserError::message`
/// and `StopReason::NoExtensionBias`). All others but [`REFUSED`] are faults of its own.
const UNMET: [&str; 3] = ["lexer error: ", "parser error: ", "NoExtensionBias"];

/// How the matcher's messages begin when it does not take a token (llguidance 1.9, `TokenParser::apply_token`). Tokens come under its masks, and those let
/// most tokens of long texts through without a look at each, so the form reached its bounds within this one, unless the mask had forbidden it.
const REFUSED: &str = "Parser Error: ";

/// Most forms that are kept compiled.
const MAX_KEPT: usize = 8;

/// Compiles forms for one model.
pub struct Grammars {
    factory: ParserFactory,
    env: TokEnv,
    pub(super) python_tag: Option<u32>,
    /// The last one first.
    last: Mutex<VecDeque<Arc<Kept>>>,
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
            env,
            python_tag: tokenizer.token_id(PYTHON_TAG).filter(|tag| *tag < vocab_size),
            last: Mutex::default(),
            vocab_size: vocab_size as usize,
        })
    }

    /// The constraint of a form, behind the tokens of the answer that exist already. The last forms are kept, so that the answers to one request, and
    /// requests with the same form, compile it once.
    ///
    /// # Errors
    /// [`FormError`] with what is wrong, or when `resumed` has not this form.
    pub fn compile(&self, form: &Form, resumed: &[u32]) -> Result<TokenConstraint, FormError> {
        let kept = self.kept(form);
        let compiled = kept
            .compiled
            .get_or_init(|| self.compile_form(form).map(Mutex::new));
        let compiled = compiled.as_ref().map_err(Clone::clone)?;
        let mut constraint = {
            let compiled = compiled.lock().unwrap_or_else(PoisonError::into_inner);
            let behind_tag = compiled.behind_tag.as_ref().map(Matcher::deep_clone);
            TokenConstraint {
                matcher: compiled.matcher.deep_clone(),
                free_text: behind_tag.map(|behind_tag| FreeText::new(self.python_tag, behind_tag)),
                env: Arc::clone(&self.env),
                bytes: self.vocab_size.div_ceil(8),
                last_mask: None,
            }
        };
        for token in resumed {
            let other = |_| FormError::Unsupported("the resumed tokens have another form".to_owned());
            constraint.accept(*token).map_err(other)?;
        }
        Ok(constraint)
    }

    /// The place of a form among the last ones.
    fn kept(&self, form: &Form) -> Arc<Kept> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let at = last.iter().position(|kept| kept.form == *form);
        let kept = at.and_then(|at| last.remove(at)).unwrap_or_else(|| {
            Arc::new(Kept {
                form: form.clone(),
                compiled: OnceLock::new(),
            })
        });
        last.push_front(Arc::clone(&kept));
        last.truncate(MAX_KEPT);
        kept
    }

    fn compile_form(&self, form: &Form) -> Result<Compiled, FormError> {
        let behind_tag = match form {
            Form::CallOr(either) if either.text.is_none() => {
                let grammar = either.beside_free_text(Place::PythonTag)?;
                Some(self.compile_grammar(grammar)?)
            }
            _ => None,
        };
        Ok(Compiled {
            matcher: self.compile_grammar(form.grammar()?)?,
            behind_tag,
        })
    }

    fn compile_grammar(&self, grammar: TopLevelGrammar) -> Result<Matcher, FormError> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            // Its advice is for programs that use the compiler.
            let error = error.split(". Enable '").next().unwrap_or_default();
            return Err(FormError::Unsupported(error.to_owned()));
        }
        // What cannot even begin is refused, and what this takes is not to be done again.
        matcher.compute_mask_or_eos().map_err(unsupported)?;
        Ok(matcher)
    }
}

/// A form, and what it has been compiled to when somebody needed it.
struct Kept {
    form: Form,
    compiled: OnceLock<Result<Mutex<Compiled>, FormError>>,
}

struct Compiled {
    matcher: Matcher,
    /// Of what may be free text: for what stands behind Llama's `<|python_tag|>`.
    behind_tag: Option<Matcher>,
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
    free_text: Option<FreeText>,
    env: TokEnv,
    bytes: usize,
    /// What may come next, if that was asked.
    last_mask: Option<SimpleVob>,
}

impl fmt::Debug for TokenConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenConstraint")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Constraint for TokenConstraint {
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let mask = self.last_mask.take();
        if let Some(text) = &mut self.free_text {
            if text.tag() == Some(token) {
                self.matcher = text.begin_behind_tag();
                return Ok(());
            }
            if text.is_text() {
                return Ok(());
            }
            text.take(self.env.tok_trie().token(token));
        }
        let is_forbidden = mask.is_some_and(|mask| !has(&mask, token));
        let taken = self.matcher.consume_token(token);
        taken.map_err(|error| failed(error, is_forbidden))
    }

    fn mask(&mut self) -> Result<Option<Vec<u8>>, ConstraintError> {
        let free_text = self.free_text.as_ref();
        if free_text.is_some_and(FreeText::is_text) {
            return Ok(None);
        }
        let allowed = self.matcher.compute_mask_or_eos();
        let mut allowed = allowed.map_err(|error| failed(error, false))?;
        if let Some(tag) = free_text.and_then(FreeText::tag) {
            allowed.allow_token(tag);
        }
        let bits = bitmap(&allowed, self.bytes);
        self.last_mask = Some(allowed);
        Ok(Some(bits))
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(self.clone()))
    }
}

fn has(mask: &SimpleVob, token: u32) -> bool {
    usize::try_from(token).is_ok_and(|at| at < mask.len()) && mask.is_allowed(token)
}

/// What an error means, where the last mask is known to have forbidden the token that it came of, or not.
fn failed(error: impl fmt::Display, is_forbidden: bool) -> ConstraintError {
    let error = error.to_string();
    // What is behind it is for programs that ask for more words.
    let why = error.split("\n<").next().unwrap_or_default();
    if UNMET.iter().any(|begin| why.starts_with(begin)) || !is_forbidden && why.starts_with(REFUSED) {
        let message = format!(
            "the form of the answer cannot be enforced any further ({why}); simplify it and send the request again"
        );
        return ConstraintError::Unmet(Restriction::Form, message);
    }
    ConstraintError::Broken(format!("what enforces the form of the answer is broken: {why}"))
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
    use super::super::form::Calls;
    use super::super::testing::{VOCAB, accepts, allowed, grammars, walk};
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
            let calls = Form::Call(Calls { tools, one: true });
            let text = walk(&grammars, &calls, seed).unwrap();
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
    fn a_required_call_is_one_or_more() {
        let grammars = grammars();
        let none = r#"{"type": "object", "properties": {}, "additionalProperties": false}"#;
        let number =
            r#"{"properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}"#;
        let tools = [("f", none), ("g", number)].map(|(name, schema)| (name.to_owned(), schema.to_owned()));
        let form = |one| {
            let tools = tools.to_vec();
            Form::Call(Calls { tools, one })
        };
        let (f, g) = (
            r#"{"name": "f", "parameters": {}}"#,
            r#"{"name": "g", "parameters": {"n": 1}}"#,
        );
        for (text, calls) in [
            (String::new(), 0),
            (f.to_owned(), 1),
            (g.to_owned(), 1),
            (format!("{f}; {g}"), 2),
            (format!("{g};{f}; {f}"), 3),
            (format!("{f}, {g}"), 0),
            (format!("{f};"), 0),
            (format!("{f}; no"), 0),
            (format!("well {f}"), 0),
        ] {
            assert_eq!(accepts(&grammars, &form(true), &text), calls == 1, "{text}");
            assert_eq!(accepts(&grammars, &form(false), &text), calls > 0, "{text}");
            if calls > 0 {
                let parser = ToolCallParser::new(vec!["f".to_owned(), "g".to_owned()], false);
                let mut parser = parser.formed(Vec::new());
                let mut pieces = parser.push(&text);
                pieces.extend(parser.finish());
                let begun = pieces
                    .iter()
                    .filter(|piece| matches!(piece, ToolPiece::Begin { .. }));
                assert_eq!(begun.count(), calls, "{text}: {pieces:?}");
                assert!(
                    !pieces.iter().any(|piece| matches!(piece, ToolPiece::Text(_))),
                    "{pieces:?}"
                );
            }
        }
    }

    #[test]
    fn a_form_is_compiled_once_for_as_many_answers_as_need_it_and_the_last_forms_are_kept() {
        let grammars = grammars();
        let form = |number: usize| Form::Regex(format!("a{{{number}}}b"));
        let kept = |number: usize| grammars.kept(&form(number));
        let first = kept(1);
        assert!(first.compiled.get().is_none());
        let mut one = grammars.compile(&form(1), &[]).unwrap();
        assert!(Arc::ptr_eq(&first, &kept(1)) && first.compiled.get().is_some());
        // Answers go on by themselves.
        let mut other = grammars.compile(&form(1), &[]).unwrap();
        let token = |text: &str| tokenizer().encode(text, false).unwrap()[0];
        one.accept(token("a")).unwrap();
        assert_eq!(allowed(&mut one), [token("b")]);
        assert_eq!(allowed(&mut other), [token("a")]);
        for number in 2..=MAX_KEPT {
            kept(number);
        }
        assert!(Arc::ptr_eq(&first, &kept(1)));
        for number in 2..=MAX_KEPT + 1 {
            kept(number);
        }
        assert!(!Arc::ptr_eq(&first, &kept(1)));
    }

    #[test]
    fn a_form_that_is_too_complex_is_the_clients_fault_and_a_broken_matcher_is_not() {
        // Each letter more is twice as many states of the automaton.
        let form = Form::Regex("(.*a.{14}|.*b.{14}|.*c.{13})+d".to_owned());
        let mut constraint = grammars().compile(&form, &[]).unwrap();
        let mut random = 1_u64;
        let error = (0..100_000).find_map(|_| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let letter = [b'a', b'b', b'c'][(random >> 33) as usize % 3];
            let masked = constraint.mask().err();
            masked.or_else(|| constraint.accept(letter.into()).err())
        });
        let error = error.unwrap();
        assert!(
            matches!(error, ConstraintError::Unmet(Restriction::Form, _)),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains("simplify it") && !message.contains('<'),
            "{message}"
        );

        let mut constraint = grammars().compile(&Form::Regex("[ab]+".to_owned()), &[]).unwrap();
        constraint.matcher.test_trigger_lexer_error().unwrap_err();
        let error = constraint.mask().unwrap_err();
        assert!(matches!(error, ConstraintError::Broken(_)), "{error}");
        let message = error.to_string();
        assert!(
            message.contains("synthetic error") && !message.contains('<'),
            "{message}"
        );
    }

    #[test]
    fn a_form_that_takes_an_allowed_token_no_more_is_the_clients_fault_and_a_token_that_it_forbids_is_not() {
        let grammars = grammars();
        let constraint = |regex: &str| grammars.compile(&Form::Regex(regex.to_owned()), &[]).unwrap();
        let mut forbidding = constraint("[ab]+");
        forbidding.mask().unwrap();
        let error = forbidding.accept(b'z'.into()).unwrap_err();
        assert!(matches!(error, ConstraintError::Broken(_)), "{error}");
        // A matcher that takes no more than it has seen stands for one that has reached its bounds within the token.
        let mut bounded = constraint("[ab]+");
        bounded.mask().unwrap();
        bounded.matcher = constraint("c").matcher;
        let error = bounded.accept(b'a'.into()).unwrap_err();
        assert!(
            matches!(error, ConstraintError::Unmet(Restriction::Form, _)),
            "{error}"
        );
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
