//! Where a text names added tokens: those that no merge makes, control tokens above all.

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Tokenizer};

use super::super::tokenizer::TokenizerError;

/// The added tokens of a tokenizer. Of those that begin at one place the longest counts.
#[derive(Debug)]
pub(super) struct AddedTokens {
    /// Those that are looked for first, and those that are looked for in what is left.
    passes: [Pass; 2],
}

#[derive(Debug)]
struct Pass {
    names: AhoCorasick,
    /// By the number of the name.
    tokens: Vec<(u32, AddedToken)>,
}

type Take<'a> = &'a mut dyn FnMut(&str, Option<u32>) -> Result<(), TokenizerError>;

impl AddedTokens {
    /// Those of a tokenizer without a normalizer.
    ///
    /// # Errors
    /// What they ask for that is not known here, for a sentence.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<Self, &'static str> {
        let mut tokens: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        tokens.sort_unstable_by_key(|(id, _)| *id);
        if tokens.iter().any(|(_, token)| token.single_word) {
            return Err("has added tokens that must be words of their own");
        }
        let (second, first): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|(_, token)| token.normalized);
        Ok(Self {
            passes: [Pass::of(first)?, Pass::of(second)?],
        })
    }

    /// Call `take` with the text in front of each added token, and the token; at last with the text behind all of them. Special
    /// tokens count only if `special`; where one of them is text, no other token is looked for in its name.
    ///
    /// # Errors
    /// The first of `take`.
    pub(super) fn segments(&self, text: &str, special: bool, take: Take<'_>) -> Result<(), TokenizerError> {
        let [first, second] = &self.passes;
        first.segments(text, special, &mut |text, token| {
            second.segments(text, special, &mut |text, inner| match inner {
                Some(_) => take(text, inner),
                None => take(text, token),
            })
        })
    }
}

impl Pass {
    fn of(tokens: Vec<(u32, AddedToken)>) -> Result<Self, &'static str> {
        let names = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, token)| &token.content))
            .map_err(|_| "has too many added tokens")?;
        Ok(Self { names, tokens })
    }

    fn segments(&self, text: &str, special: bool, take: Take<'_>) -> Result<(), TokenizerError> {
        let mut start = 0;
        for found in self.names.find_iter(text) {
            let Some((id, token)) = self.tokens.get(found.pattern().as_usize()) else {
                continue;
            };
            if token.special && !special {
                continue;
            }
            let (mut from, mut to) = (found.start(), found.end());
            if token.lstrip {
                from = text.get(..from).unwrap_or_default().trim_end().len();
            }
            if token.rstrip {
                to = text.len() - text.get(to..).unwrap_or_default().trim_start().len();
            }
            take(text.get(start..from).unwrap_or_default(), Some(*id))?;
            start = to;
        }
        take(text.get(start..).unwrap_or_default(), None)
    }
}
