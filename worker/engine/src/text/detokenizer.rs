//! Tokens to text as they come. A token may end inside a character; its bytes are held back until the rest is there.

use super::tokenizer::Tokenizer;

/// Turns the tokens of one answer into text. The pieces joined are [`Tokenizer::decode`] of all tokens.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
    show_special: bool,
}

impl Detokenizer {
    /// For one answer.
    #[must_use]
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            pending: Vec::new(),
            show_special: false,
        }
    }

    /// Show the names of special tokens as text, or not, which is the default.
    #[must_use]
    pub fn with_special_tokens(self, show_special: bool) -> Self {
        Self { show_special, ..self }
    }

    /// The text that is complete with this token; often empty. Special tokens have no text.
    pub fn push(&mut self, token: u32) -> String {
        if self.show_special || !self.tokenizer.is_special(token) {
            self.pending.extend_from_slice(self.tokenizer.bytes(token));
        }
        let mut text = String::new();
        let mut held = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            held = chunk.invalid().len();
            if held > 0 && !is_cut_off(chunk.invalid(), &self.pending) {
                text.push(char::REPLACEMENT_CHARACTER);
                held = 0;
            }
        }
        self.pending.drain(..self.pending.len() - held);
        text
    }

    /// What is left at the end of the answer: U+FFFD when it ends inside a character.
    pub fn finish(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&pending).into_owned()
    }
}

/// Whether `invalid`, a part of `all`, is the beginning of a character that only lacks its end.
fn is_cut_off(invalid: &[u8], all: &[u8]) -> bool {
    all.ends_with(invalid)
        && std::ptr::eq(invalid.as_ptr_range().end, all.as_ptr_range().end)
        && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing;
    use super::*;

    fn pieces(tokens: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(testing::tokenizer());
        let mut pieces: Vec<String> = tokens.iter().map(|&token| detokenizer.push(token)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn characters_come_whole() {
        // U+20AC is e2 82 ac.
        assert_eq!(
            pieces(&[0x61, 0xe2, 0x82, 0xac, 0x62]),
            ["a", "", "", "€", "b", ""]
        );
    }

    #[test]
    fn broken_characters_become_one_replacement_as_soon_as_they_are_known_to_be_broken() {
        assert_eq!(pieces(&[0xe2, 0x82, 0x61]), ["", "", "\u{fffd}a", ""]);
        assert_eq!(pieces(&[0xff, 0xf0, 0x9f]), ["\u{fffd}", "", "", "\u{fffd}"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_joined_are_the_text(tokens in prop::collection::vec(0_u32..270, 0..40)) {
            let tokenizer = testing::tokenizer();
            let reference = tokenizer.inner().decode(&tokens, true).unwrap();
            prop_assert_eq!(pieces(&tokens).concat(), reference.clone());
            prop_assert_eq!(tokenizer.decode(&tokens), reference);
        }

        #[test]
        fn valid_text_never_shows_a_replacement(text in "\\PC{0,20}") {
            let tokens = testing::tokenizer().encode(&text, false).unwrap();
            let pieces = pieces(&tokens);
            prop_assert_eq!(pieces.concat(), text.clone());
            prop_assert!(pieces.iter().all(|piece| text.contains(piece.as_str())));
        }
    }
}
