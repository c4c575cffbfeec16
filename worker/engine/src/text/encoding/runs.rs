//! Texts without any place to cut.
//!
//! The patterns of pre-tokenisers take a run of letters, digits, white space or anything else whole. For each character of it
//! the engine of regular expressions notes 24 bytes, and after a million it gives up without a word: the rest of the text would
//! then be one piece.

use super::super::tokenizer::TokenizerError;

/// Most characters of one kind in a row. A pattern takes up to two such runs at once.
pub(super) const MAX_RUN: usize = 256 << 10;

/// Refuse longer runs.
///
/// # Errors
/// [`TokenizerError::Run`].
pub(super) fn check(text: &str) -> Result<(), TokenizerError> {
    let mut runs = [0; 4];
    for character in text.chars() {
        let (space, number) = (character.is_whitespace(), character.is_numeric());
        // Each holds at least what patterns take for letters, and for neither of all: marks may be either.
        let letter = character.is_alphabetic();
        let other = !space && !number && !character.is_ascii_alphabetic();
        for (run, goes_on) in runs.iter_mut().zip([space, number, letter, other]) {
            *run = if goes_on { *run + 1 } else { 0 };
            if *run > MAX_RUN {
                return Err(TokenizerError::Run { most: MAX_RUN });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_every_kind_are_bounded() {
        for kind in [" ", "\r\n", "7", "x", "\u{7f8a}", "-", "=\u{301}"] {
            let characters = kind.chars().count();
            let run = kind.repeat(MAX_RUN / characters);
            check(&run).unwrap();
            let two = format!("{run}{}{run}", if kind.trim().is_empty() { "x" } else { " " });
            check(&two).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            let error = check(&format!("a 1{run}{kind}")).unwrap_err().to_string();
            assert!(error.contains("more than 262144 characters in a row"), "{error}");
        }
    }
}
