//! Keeps the control tokens of a chat template apart from text that only spells their names.
//!
//! Before a template is compiled, every name of a control token in its source becomes a *marker*, one private character. After
//! rendering, markers are control tokens and everything else is text, whatever it says and however the template has cut and joined
//! it. Values from outside cannot hold a marker: the reserved characters in them are written as an escape and another character.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::prompt::Prompt;
use super::tokenizer::Tokenizer;

/// The first marker. Markers and escape lie in a private-use plane of Unicode, where no text has anything to say.
const FIRST: u32 = 0x10_0000;
/// Most control tokens; Llama 3 has 256.
const MOST: u32 = 0x4000;
/// Stands before a reserved character of a value, which is moved up by [`MOVED`].
const ESCAPE: u32 = FIRST + MOST;
/// Moves the reserved characters behind all of them.
const MOVED: u32 = 0x8000;

/// The markers of one tokenizer's control tokens.
#[derive(Debug, Clone)]
pub(super) struct Markers {
    /// Name and id; the index is the marker's.
    tokens: Vec<(String, u32)>,
    names: AhoCorasick,
}

impl Markers {
    /// Markers for the special tokens of a tokenizer.
    ///
    /// # Errors
    /// A sentence when there are more than fit.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let tokens = tokenizer.special_tokens();
        if tokens.len() > MOST as usize {
            return Err(format!(
                "the tokenizer has {} special tokens; at most {MOST} can be told apart from text",
                tokens.len()
            ));
        }
        let names = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(name, _)| name))
            .map_err(|error| error.to_string())?;
        Ok(Self { tokens, names })
    }

    /// A template's source, or another text that may hold control tokens, with markers in place of their names.
    pub(super) fn mark(&self, source: &str) -> String {
        let source = guard(source);
        let mut marked = String::with_capacity(source.len());
        self.names
            .replace_all_with(&source, &mut marked, |found, _, marked| {
                marked.extend(char::from_u32(FIRST + found.pattern().as_u32()));
                true
            });
        marked
    }

    /// What a rendered template says.
    pub(super) fn read(&self, rendered: &str) -> Prompt {
        let mut prompt = Prompt::default();
        let mut rest = rendered;
        while let Some(at) = rest.find(is_reserved) {
            let (text, reserved) = rest.split_at(at);
            prompt.push_str(text);
            let mut characters = reserved.chars();
            let code = characters.next().map_or(ESCAPE, u32::from);
            rest = characters.as_str();
            if let Some((name, id)) = self.tokens.get((code - FIRST) as usize) {
                prompt.push_control(name, *id);
            } else if let Some(character) = characters.next().and_then(moved_back) {
                prompt.push(character);
                rest = characters.as_str();
            }
            // An escape that a template has cut off from its character says nothing.
        }
        prompt.push_str(rest);
        prompt
    }
}

/// A value from outside in which no character is taken for a marker.
pub(super) fn guard(text: &str) -> Cow<'_, str> {
    if !text.contains(is_reserved) {
        return Cow::Borrowed(text);
    }
    let mut guarded = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_reserved(character) {
            guarded.extend(
                [
                    char::from_u32(ESCAPE),
                    char::from_u32(u32::from(character) + MOVED),
                ]
                .into_iter()
                .flatten(),
            );
        } else {
            guarded.push(character);
        }
    }
    Cow::Owned(guarded)
}

fn is_reserved(character: char) -> bool {
    (FIRST..=ESCAPE).contains(&u32::from(character))
}

fn moved_back(character: char) -> Option<char> {
    char::from_u32(u32::from(character).checked_sub(MOVED)?).filter(|&original| is_reserved(original))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, SPECIAL};
    use super::*;

    fn markers() -> Markers {
        Markers::new(&testing::tokenizer()).unwrap()
    }

    #[test]
    fn names_in_a_template_are_control_tokens_and_names_in_values_are_text() {
        let template = markers().mark("a<|end|>b");
        let prompt = markers().read(&format!("{template}{}", guard("<|end|>")));
        assert_eq!(prompt.text(), "a<|end|>b<|end|>");
        let stretches: Vec<_> = prompt.stretches().collect();
        assert_eq!(stretches, [("a", Some(SPECIAL)), ("b<|end|>", None)]);
    }

    #[test]
    fn an_escape_without_its_character_says_nothing() {
        let escape = char::from_u32(ESCAPE).unwrap();
        assert_eq!(markers().read(&format!("a{escape}b{escape}")).text(), "ab");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_never_hold_a_marker_and_come_back_as_they_were(
            value in prop::collection::vec(prop_oneof![0x10_0000_u32..0x10_4003, 0x10_8000_u32..0x10_c003, 0x20_u32..0x7f], 0..40),
        ) {
            let value: String = value.into_iter().filter_map(char::from_u32).collect();
            let prompt = markers().read(&guard(&value));
            prop_assert_eq!(prompt.text(), value.as_str());
            prop_assert_eq!(prompt.stretches().count(), 1);
        }
    }
}
