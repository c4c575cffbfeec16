//! The tokens of one piece of text, by byte-pair merges.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::{Model as _, Token, Tokenizer};

use super::super::byte_level;
use super::super::tokenizer::TokenizerError;
use super::Sink;

/// A longer piece is merged in windows of this many bytes, for merging takes about 80 bytes for each.
pub(super) const WINDOW: usize = 16 << 10;
/// Windows grow up to this where no place to cut is found.
const MAX_WINDOW: usize = 1 << 20;
/// Tokens at the end of a window that what follows may change.
const UNSURE: usize = 8;
/// Places to cut that are tried in a window.
const PLACES: usize = 24;
/// The model keeps the tokens of 10,000 pieces, at up to 8 KiB for one of 255 bytes. When so many are kept that are longer than
/// [`LONG`], all are forgotten, or a few prompts of long words would take 80 MiB for good.
const MAX_LONG_PIECES: usize = 1_000;
const LONG: usize = 64;

/// The byte-pair merges of a byte-level tokenizer.
#[derive(Debug)]
pub(super) struct Merges {
    tokenizer: Arc<Tokenizer>,
    /// How the vocabulary writes each byte; none for a byte that it lacks, which is dropped.
    letters: [Option<char>; 256],
    window: usize,
    long_pieces: AtomicUsize,
}

impl Merges {
    /// Those of a tokenizer, for windows that no token is longer than.
    ///
    /// # Errors
    /// What its model does that needs all of a piece at once, for a sentence.
    pub(super) fn of(tokenizer: &Arc<Tokenizer>, window: usize) -> Result<Self, &'static str> {
        let model = bpe(tokenizer).ok_or("has a model that is not byte-pair merges")?;
        let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
            return Err("writes marks into words");
        }
        if model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err("leaves out merges at random");
        }
        let letters = byte_level::letters().map(|letter| {
            let known = model.token_to_id(letter.encode_utf8(&mut [0; 4])).is_some();
            known.then_some(letter)
        });
        let lacks = letters.iter().any(Option::is_none);
        if lacks && (model.unk_token.is_some() || model.byte_fallback) {
            return Err("has tokens for bytes that its vocabulary lacks");
        }
        Ok(Self {
            tokenizer: Arc::clone(tokenizer),
            letters,
            window,
            long_pieces: AtomicUsize::new(0),
        })
    }

    /// Encode a piece.
    ///
    /// # Errors
    /// Those of `sink`; [`TokenizerError::Encode`].
    pub(super) fn encode(&self, piece: &str, sink: &mut Sink) -> Result<(), TokenizerError> {
        if piece.len() > self.window {
            return self.encode_long(piece, sink);
        }
        let written = piece.bytes().filter_map(|byte| self.letter(byte));
        let tokens = self.merge(&written.collect::<String>())?;
        tokens.iter().try_for_each(|token| sink.extend(&[token.id]))
    }

    /// Encode a piece in windows, to the same tokens as at once.
    ///
    /// Merges happen by rank and place, whatever stands further away. So a sequence of tokens is what a text is merged to exactly
    /// if each two neighbours are what their own text is merged to: a merge across a border between two tokens, the first
    /// such, would also happen without the rest. Two neighbours out of one window are. So a cut between two tokens is right
    /// if the next window, which begins there, begins with the second of them again.
    fn encode_long(&self, piece: &str, sink: &mut Sink) -> Result<(), TokenizerError> {
        let mut window = self.window;
        let mut rest = piece.as_bytes();
        let (mut tokens, mut read) = self.window_of(rest, window)?;
        while read < rest.len() {
            let last = tokens.len().saturating_sub(UNSURE);
            let mut next = None;
            for cut in (last.saturating_sub(PLACES).max(1)..last).rev() {
                let Some(&(id, start)) = tokens.get(cut) else {
                    continue;
                };
                let (following, read) = self.window_of(rest.get(start..).unwrap_or_default(), window)?;
                if following.first().is_some_and(|first| first.0 == id) {
                    next = Some((cut, start, following, read));
                    break;
                }
            }
            match next {
                Some((cut, start, following, following_read)) => {
                    for (id, _) in tokens.iter().take(cut) {
                        sink.extend(&[*id])?;
                    }
                    rest = rest.get(start..).unwrap_or_default();
                    (tokens, read) = (following, following_read);
                }
                None if window < MAX_WINDOW => {
                    window *= 2;
                    (tokens, read) = self.window_of(rest, window)?;
                }
                None => {
                    return Err(TokenizerError::Encode(format!(
                        "it has {} bytes in a row, without any white space or other place to cut; shorten them",
                        piece.len()
                    )));
                }
            }
        }
        tokens.iter().try_for_each(|(id, _)| sink.extend(&[*id]))
    }

    /// The tokens of the first `window` bytes, each with where it begins; and how many bytes that are.
    fn window_of(&self, bytes: &[u8], window: usize) -> Result<(Vec<(u32, usize)>, usize), TokenizerError> {
        let read = bytes.len().min(window);
        let (mut written, mut places) = (String::with_capacity(2 * read), Vec::with_capacity(2 * read));
        for (place, &byte) in bytes.iter().take(read).enumerate() {
            if let Some(letter) = self.letter(byte) {
                written.push(letter);
                places.resize(written.len(), place);
            }
        }
        let tokens = self.merge(&written)?.into_iter();
        let starts = tokens.map(|token| (token.id, places.get(token.offsets.0).copied().unwrap_or(read)));
        Ok((starts.collect(), read))
    }

    /// How the vocabulary writes a byte.
    fn letter(&self, byte: u8) -> Option<char> {
        self.letters.get(usize::from(byte)).copied().flatten()
    }

    fn merge(&self, written: &str) -> Result<Vec<Token>, TokenizerError> {
        if written.len() > LONG && self.long_pieces.fetch_add(1, Ordering::Relaxed) >= MAX_LONG_PIECES {
            self.long_pieces.store(0, Ordering::Relaxed);
            if let Some(model) = bpe(&self.tokenizer) {
                model.clear_cache();
            }
        }
        let tokens = self.tokenizer.get_model().tokenize(written);
        tokens.map_err(|error| TokenizerError::Encode(error.to_string()))
    }
}

fn bpe(tokenizer: &Tokenizer) -> Option<&BPE> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => Some(model),
        _ => None,
    }
}
