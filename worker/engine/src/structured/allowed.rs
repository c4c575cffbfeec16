//! A list of tokens that an answer may have.

use super::grammars::TokenConstraint;
use crate::runtime::{Constraint, ConstraintError, Restriction};

/// Restricts an answer to some tokens; one that has a form too, to those of them that the form allows.
#[derive(Debug, Clone)]
pub struct AllowedTokens {
    bits: Vec<u8>,
    /// With which an answer ends whose form is complete, whether the list has them or not.
    ends: Vec<u8>,
    form: Option<Box<TokenConstraint>>,
}

impl AllowedTokens {
    /// For a model with `vocab_size` token ids; ids beyond them are none. An answer with a form may also have the tokens of `ends`, where its
    /// form lets it end.
    #[must_use]
    pub fn new(tokens: &[u32], ends: &[u32], vocab_size: u32, form: Option<Box<TokenConstraint>>) -> Self {
        Self {
            bits: set(tokens, vocab_size),
            ends: set(ends, vocab_size),
            form,
        }
    }
}

fn set(tokens: &[u32], vocab_size: u32) -> Vec<u8> {
    let mut bits = vec![0_u8; vocab_size.div_ceil(8) as usize];
    for token in tokens {
        if let Some(byte) = bits.get_mut(*token as usize / 8) {
            *byte |= 1 << (token % 8);
        }
    }
    bits
}

impl Constraint for AllowedTokens {
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        self.form.as_mut().map_or(Ok(()), |form| form.accept(token))
    }

    fn mask(&mut self) -> Result<Option<Vec<u8>>, ConstraintError> {
        let Some(form) = &mut self.form else {
            return Ok(Some(self.bits.clone()));
        };
        let listed = self.bits.iter().zip(&self.ends);
        let listed = listed.map(|(allowed, ends)| allowed | ends);
        let Some(mut bits) = form.mask()? else {
            return Ok(Some(listed.collect()));
        };
        bits.iter_mut()
            .zip(listed)
            .for_each(|(bit, listed)| *bit &= listed);
        if bits.iter().all(|byte| *byte == 0) {
            let message = "the form of the answer allows none of the tokens of allowed_token_ids here; allow more of them";
            return Err(ConstraintError::Unmet(Restriction::TokenList, message.to_owned()));
        }
        Ok(Some(bits))
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::form::Form;
    use super::super::testing::{VOCAB, grammars};
    use super::*;
    use crate::text::testing::{SPECIAL, tokenizer};

    fn allowed(constraint: &mut AllowedTokens) -> Vec<u32> {
        let mask = constraint.mask().unwrap().unwrap();
        let is_set = |id: &u32| mask[*id as usize / 8] >> (id % 8) & 1 == 1;
        (0..VOCAB).filter(is_set).collect()
    }

    #[test]
    fn a_list_holds_alone_and_within_a_form() {
        let mut alone = AllowedTokens::new(&[7, 299, 7, 3_000], &[SPECIAL], VOCAB, None);
        assert_eq!(allowed(&mut alone), [7, 299]);
        alone.accept(7).unwrap();
        assert_eq!(allowed(&mut alone), [7, 299]);

        let form = grammars().compile(&Form::Regex("[ab]x".to_owned()), &[]).unwrap();
        let token = |text: &str| tokenizer().encode(text, false).unwrap()[0];
        let tokens = [token("b"), token("y"), SPECIAL];
        let mut both = AllowedTokens::new(&tokens, &[], VOCAB, Some(Box::new(form)));
        assert_eq!(allowed(&mut both), [token("b")]);
        both.accept(token("b")).unwrap();
        let error = both.mask().unwrap_err();
        assert!(matches!(error, ConstraintError::Unmet(Restriction::TokenList, _)));
        assert!(error.to_string().contains("allowed_token_ids"));
    }

    #[test]
    fn an_answer_whose_form_is_complete_ends_though_the_list_has_no_end() {
        let form = grammars().compile(&Form::Regex("a".to_owned()), &[]).unwrap();
        let token = tokenizer().encode("a", false).unwrap()[0];
        let mut both = AllowedTokens::new(&[token], &[SPECIAL], VOCAB, Some(Box::new(form)));
        assert_eq!(allowed(&mut both), [token]);
        both.accept(token).unwrap();
        assert_eq!(allowed(&mut both), [SPECIAL]);
    }
}
