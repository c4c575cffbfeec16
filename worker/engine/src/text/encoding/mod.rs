//! Text to tokens piece by piece, so that the memory it takes does not grow with the text: the crate `tokenizers` keeps up
//! to 270 bytes for each byte of a text until it has encoded all of it.
//!
//! | module | what it is |
//! |---|---|
//! | [`added`] | where a text names tokens that are no part of the merges |
//! | [`pieces`] | where the pre-tokeniser cuts |
//! | [`merges`] | the tokens of one piece, however long it is |
//! | [`runs`] | texts without any place to cut |
//! | [`sink`] | which tokens are kept, and when there are too many |

mod added;
mod merges;
mod pieces;
mod runs;
mod sink;

use std::sync::Arc;

use added::AddedTokens;
use merges::Merges;
use pieces::PreTokenizer;
pub(super) use sink::{Keep, Sink};
use tokenizers::Tokenizer;

use super::tokenizer::TokenizerError;

/// Encodes texts as a tokenizer does, in bounded memory.
#[derive(Debug)]
pub(super) struct PieceEncoder {
    added: AddedTokens,
    pre_tokenizer: PreTokenizer,
    merges: Merges,
    /// Tokens in front of and behind a text.
    around: (Vec<u32>, Vec<u32>),
}

impl PieceEncoder {
    /// An encoder that gives the same tokens as `tokenizer`, of which none has more bytes than `longest`.
    ///
    /// # Errors
    /// What the tokenizer does that needs all of a text at once, for a sentence.
    pub(super) fn new(tokenizer: &Arc<Tokenizer>, longest: usize) -> Result<Self, &'static str> {
        Self::with_window(tokenizer, merges::WINDOW.max(longest))
    }

    fn with_window(tokenizer: &Arc<Tokenizer>, window: usize) -> Result<Self, &'static str> {
        let changes = tokenizer.get_normalizer().is_some_and(|normalizer| {
            !matches!(normalizer, tokenizers::NormalizerWrapper::Sequence(parts) if parts.as_ref().is_empty())
        });
        if changes {
            return Err("changes texts by a normalizer");
        }
        Ok(Self {
            added: AddedTokens::of(tokenizer)?,
            pre_tokenizer: PreTokenizer::of(tokenizer.get_pre_tokenizer())?,
            merges: Merges::of(tokenizer, window)?,
            around: around(tokenizer).ok_or("puts something else than tokens around a text")?,
        })
    }

    /// Encode a text, with what the tokenizer puts around a text if `add_special`.
    ///
    /// # Errors
    /// [`TokenizerError::TooMany`], [`TokenizerError::Run`] and [`TokenizerError::Encode`].
    pub(super) fn encode(
        &self,
        text: &str,
        add_special: bool,
        sink: &mut Sink,
    ) -> Result<(), TokenizerError> {
        let (front, back) = &self.around;
        if add_special {
            sink.extend(front)?;
        }
        runs::check(text)?;
        self.added.segments(text, true, &mut |segment, token| {
            self.encode_segment(segment, sink)?;
            sink.extend(token.as_slice())
        })?;
        if add_special {
            sink.extend(back)?;
        }
        Ok(())
    }

    /// Encode a text in which names of special tokens are text.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(super) fn encode_as_text(&self, text: &str, sink: &mut Sink) -> Result<(), TokenizerError> {
        runs::check(text)?;
        self.added.segments(text, false, &mut |segment, token| {
            self.encode_segment(segment, sink)?;
            sink.extend(token.as_slice())
        })
    }

    fn encode_segment(&self, segment: &str, sink: &mut Sink) -> Result<(), TokenizerError> {
        self.pre_tokenizer
            .pieces(segment, &mut |piece| self.merges.encode(piece, sink))
    }
}

/// What a tokenizer puts in front of and behind every text; none when that cannot be told.
fn around(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let ids = |text: &str, add_special| {
        let encoding = tokenizer.encode_fast(text, add_special).ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let of = |text: &str| {
        let (bare, whole) = (ids(text, false)?, ids(text, true)?);
        let start = whole.windows(bare.len().max(1)).position(|ids| ids == bare)?;
        let (front, rest) = whole.split_at_checked(start)?;
        Some((front.to_vec(), rest.get(bare.len()..)?.to_vec()))
    };
    // Text that were repeated would be taken for a part of what stands around one of them, but not of both.
    let first = of("a")?;
    (of("b")? == first).then_some(first)
}

#[cfg(test)]
mod tests;
