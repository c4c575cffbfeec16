//! Walking through forms with a small vocabulary, for tests.

use super::form::Form;
use super::grammars::{Grammars, TokenConstraint};
use crate::runtime::Constraint;
use crate::text::testing::{SPECIAL, tokenizer};

/// Ids of the vocabulary, padding included.
pub(super) const VOCAB: u32 = 300;
/// Longest walk in tokens.
const LONGEST: usize = 400;

/// For the small tokenizer, whose texts end with [`SPECIAL`].
pub(super) fn grammars() -> Grammars {
    Grammars::new(&tokenizer(), VOCAB, &[SPECIAL]).unwrap()
}

/// The tokens that may come next.
pub(super) fn allowed(constraint: &mut TokenConstraint) -> Vec<u32> {
    let Some(mask) = constraint.mask().unwrap() else {
        return (0..VOCAB).collect();
    };
    assert_eq!(mask.len(), 38);
    (0..VOCAB)
        .filter(|id| mask[*id as usize / 8] >> (id % 8) & 1 == 1)
        .collect()
}

/// Walks at random, the same way for the same seed, and tells the text at its end.
pub(super) fn walk(grammars: &Grammars, form: &Form, mut seed: u64) -> Option<String> {
    let mut constraint = grammars.compile(form, &[]).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..LONGEST {
        let mut choices = allowed(&mut constraint);
        assert_eq!(choices, allowed(&mut constraint), "asking twice changes nothing");
        assert!(
            !choices.is_empty(),
            "a dead end behind {:?}",
            tokenizer().decode(&tokens)
        );
        // Ends as soon as it may now and then, and closes what is open rather than going on for ever.
        if tokens.len() > 40 {
            let closing: Vec<u32> = choices
                .iter()
                .copied()
                .filter(|id| [SPECIAL, 0x22, 0x7d, 0x5d].contains(id))
                .collect();
            choices = if closing.is_empty() { choices } else { closing };
        }
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let token = choices[(seed >> 33) as usize % choices.len()];
        if token == SPECIAL {
            let rebuilt = grammars.compile(form, &tokens).unwrap().mask().unwrap();
            assert_eq!(
                rebuilt,
                constraint.mask().unwrap(),
                "a resumed constraint is the same"
            );
            return Some(tokenizer().decode(&tokens));
        }
        constraint.accept(token).unwrap();
        tokens.push(token);
    }
    None
}

/// Whether a text is an answer of a form as a whole.
pub(super) fn accepts(grammars: &Grammars, form: &Form, text: &str) -> bool {
    let mut constraint = grammars.compile(form, &[]).unwrap();
    for token in tokenizer().encode(text, false).unwrap() {
        if !allowed(&mut constraint).contains(&token) {
            return false;
        }
        constraint.accept(token).unwrap();
    }
    allowed(&mut constraint).contains(&SPECIAL)
}
