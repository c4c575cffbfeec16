//! Text to tokens and tokens to bytes, from a checkpoint's `tokenizer.json`.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use llamero_checkpoint::IoError;
use serde::de::IgnoredAny;
use tokenizers::DecoderWrapper;

use super::byte_level;
use super::encoding::{Keep, PieceEncoder, Sink};
use super::prompt::Prompt;
use super::shared_model::{TextEncoder, text_encoder};

/// Longest text in bytes that is encoded whole, where a tokenizer needs that. It takes up to 270 times as much memory.
const MAX_WHOLE: usize = 256 << 10;

/// Ids that a vocabulary may leave out beside as many as it has: tables go by id, and a single large one must not cost its value in memory.
const MAX_GAPS: usize = 64 << 10;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is missing or not a tokenizer.
    #[error("cannot read {path}: {reason}; copy tokenizer.json from where the checkpoint came from")]
    Load {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A disk or a network did not answer; another try may help.
    #[error(transparent)]
    Io(IoError),
    /// Not byte-level BPE, so single tokens cannot be turned into bytes.
    #[error("the tokenizer decodes with {0}; Llama 3 needs a byte-level BPE tokenizer (decoder ByteLevel)")]
    Decoder(String),
    /// An id far beyond the others.
    #[error(
        "the vocabulary has {tokens} tokens, and one with the id {largest}; copy tokenizer.json again from where the checkpoint came from"
    )]
    Sparse {
        /// Tokens that there are.
        tokens: usize,
        /// The largest id.
        largest: u32,
    },
    /// The text could not be encoded.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
    /// The text has more tokens than were asked for.
    #[error("the text has more than {most} tokens")]
    TooMany {
        /// How many were asked for.
        most: usize,
    },
    /// A run in which there is no place to cut.
    #[error(
        "the text has more than {most} characters in a row that are all letters, digits, white space or other signs; shorten them"
    )]
    Run {
        /// How many may stand in a row.
        most: usize,
    },
    /// A text that would take much memory.
    #[error(
        "the text has {bytes} bytes, but this model's tokenizer {why}, so that a text is encoded whole and may have at most {most}; \
         shorten it, or send its tokens"
    )]
    Whole {
        /// Its length.
        bytes: usize,
        /// How long it may be.
        most: usize,
        /// What the tokenizer does.
        why: &'static str,
    },
}

/// A byte-level BPE tokenizer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Takes names of special tokens in a text for those tokens.
    encoder: Arc<tokenizers::Tokenizer>,
    encoding: Encoding,
    /// What special tokens take from the text around them.
    strips: HashMap<u32, Strip>,
    /// No token has more bytes; 0 when the tokenizer changes texts before it cuts them.
    longest: usize,
    /// Bytes that the vocabulary lacks are dropped.
    known: [bool; 256],
    /// The bytes of all tokens, one after another; token `i` is `bytes[ends[i - 1] .. ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    special: Vec<bool>,
}

/// How texts become tokens.
#[derive(Debug)]
enum Encoding {
    /// In memory that does not grow with the text.
    Pieces(Box<PieceEncoder>),
    /// Short texts only, one at a time.
    Whole {
        why: &'static str,
        /// Takes names of special tokens in a text for text.
        text_encoder: Mutex<Box<TextEncoder>>,
    },
}

/// White space that belongs to a special token.
#[derive(Debug, Clone, Copy)]
struct Strip {
    left: bool,
    right: bool,
}

impl Tokenizer {
    /// Load `tokenizer.json` of a model directory.
    ///
    /// # Errors
    /// [`TokenizerError::Load`], [`TokenizerError::Io`] or [`TokenizerError::Decoder`].
    pub fn from_dir(model_dir: &Path) -> Result<Self, TokenizerError> {
        let path = model_dir.join("tokenizer.json");
        let load = |reason: String| TokenizerError::Load {
            path: path.clone(),
            reason,
        };
        let json = std::fs::read(&path).map_err(IoError::at("read", &path));
        let json = json.map_err(|error| match error.is_passing() {
            true => TokenizerError::Io(error),
            false => load(error.source.to_string()),
        })?;
        serde_json::from_slice::<IgnoredAny>(&json).map_err(|error| load(error.to_string()))?;
        // The crate panics on errors inside of some parts, and that look does not see all of them, such as half of a pair of code points.
        let parsed = catch_unwind(move || tokenizers::Tokenizer::from_bytes(json));
        let parsed = parsed.map_err(|_| load("it is damaged".to_owned()))?;
        Self::new(parsed.map_err(|error| load(error.to_string()))?)
    }

    /// Wrap a tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::Decoder`] when it is not byte-level BPE, [`TokenizerError::Sparse`].
    pub fn new(mut encoder: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        match encoder.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => {}
            other => return Err(TokenizerError::Decoder(decoder_name(other))),
        }
        // A tokenizer saved while training may cut or pad; a prompt must reach the model as it is.
        encoder.with_padding(None);
        encoder
            .with_truncation(None)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?;

        let vocabulary = encoder.get_vocab(true);
        let size = table_size(&encoder, &vocabulary)?;
        let mut tokens: Vec<&str> = vec![""; size];
        for (token, &id) in &vocabulary {
            if let Some(place) = tokens.get_mut(id as usize) {
                *place = token;
            }
        }
        let mut special = vec![false; size];
        let mut strips = HashMap::new();
        for (id, token) in encoder.get_added_tokens_decoder() {
            if let Some(place) = special.get_mut(id as usize) {
                *place = token.special;
            }
            let strip = Strip {
                left: token.lstrip,
                right: token.rstrip,
            };
            if strip.left || strip.right {
                strips.insert(id, strip);
            }
        }
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(size);
        let mut known = [false; 256];
        let mut longest = 0;
        for token in tokens {
            let start = bytes.len();
            bytes.extend(byte_level::token_bytes(token));
            ends.push(bytes.len());
            longest = longest.max(bytes.len() - start);
            if let Some(&[byte]) = bytes.get(start..)
                && let Some(known) = known.get_mut(usize::from(byte))
            {
                *known = true;
            }
        }
        let longest_token = longest;
        if encoder.get_normalizer().is_some() || !strips.is_empty() {
            longest = 0;
        }
        let encoder = Arc::new(encoder);
        let encoding = match PieceEncoder::new(&encoder, longest_token) {
            Ok(pieces) => Encoding::Pieces(Box::new(pieces)),
            Err(why) => Encoding::Whole {
                why,
                text_encoder: Mutex::new(Box::new(text_encoder(&encoder))),
            },
        };
        Ok(Self {
            inner: Arc::new(Inner {
                encoder,
                encoding,
                strips,
                longest,
                known,
                bytes,
                ends,
                special,
            }),
        })
    }

    /// Token ids of a text. Names of special tokens in the text become those tokens. `add_special` also adds what the tokenizer puts
    /// around a text (Llama 3: `<|begin_of_text|>` in front).
    ///
    /// # Errors
    /// All but [`TokenizerError::TooMany`] of [`Self::encode_at_most`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_at_most(usize::MAX, text, add_special)
    }

    /// The same for a text of at most `most` tokens.
    ///
    /// # Errors
    /// [`TokenizerError::TooMany`] as soon as there are more; [`TokenizerError::Whole`], [`TokenizerError::Run`] and
    /// [`TokenizerError::Encode`] for texts that cannot be encoded.
    pub fn encode_at_most(
        &self,
        most: usize,
        text: &str,
        add_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_to(Sink::new(Keep::AtMost(most)), text, add_special)
    }

    /// The last `count` tokens of a text.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_last(
        &self,
        count: usize,
        text: &str,
        add_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_to(Sink::new(Keep::Last(count)), text, add_special)
    }

    fn encode_to(&self, mut sink: Sink, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        match &self.inner.encoding {
            Encoding::Pieces(pieces) => pieces.encode(text, add_special, &mut sink)?,
            Encoding::Whole { why, text_encoder } => {
                check_whole(text, why)?;
                let _one_at_a_time = text_encoder.lock().unwrap_or_else(PoisonError::into_inner);
                let encoding = self.inner.encoder.encode_fast(text, add_special);
                sink.extend(encoding.map_err(refused)?.get_ids())?;
            }
        }
        Ok(sink.finish())
    }

    /// Token ids of what a chat template wrote, at most `most`. Only its own control tokens are special; text that spells their
    /// names stays text.
    ///
    /// # Errors
    /// As [`Self::encode_at_most`].
    pub fn encode_prompt(&self, most: usize, prompt: &Prompt) -> Result<Vec<u32>, TokenizerError> {
        let strip = |token: Option<u32>| token.and_then(|id| self.inner.strips.get(&id));
        let mut sink = Sink::new(Keep::AtMost(most));
        let mut before = None;
        // What stands between two special tokens is encoded whole, as the reference does it, so that nobody's text changes its merges.
        for (mut text, after) in prompt.stretches() {
            if strip(before).is_some_and(|strip| strip.right) {
                text = text.trim_start();
            }
            if strip(after).is_some_and(|strip| strip.left) {
                text = text.trim_end();
            }
            if !text.is_empty() {
                self.encode_text(text, &mut sink)?;
            }
            sink.extend(after.as_slice())?;
            before = after;
        }
        Ok(sink.finish())
    }

    /// Encode a text that names no special token, whatever it says.
    fn encode_text(&self, text: &str, sink: &mut Sink) -> Result<(), TokenizerError> {
        match &self.inner.encoding {
            Encoding::Pieces(pieces) => pieces.encode_as_text(text, sink),
            Encoding::Whole { why, text_encoder } => {
                check_whole(text, why)?;
                let encoder = text_encoder.lock().unwrap_or_else(PoisonError::into_inner);
                let encoding = encoder.encode_fast(text, false);
                sink.extend(encoding.map_err(refused)?.get_ids())
            }
        }
    }

    /// A text cannot have fewer tokens than this, however it is cut; 0 when nothing is known without encoding it.
    #[must_use]
    pub fn fewest_tokens(&self, text: &str) -> usize {
        if self.inner.longest == 0 {
            return 0;
        }
        let is_known = |byte: &u8| self.inner.known.get(usize::from(*byte)) == Some(&true);
        let known = text.bytes().filter(is_known);
        known.count().div_ceil(self.inner.longest)
    }

    /// Bytes of the longest token.
    #[must_use]
    pub fn longest_token(&self) -> usize {
        self.inner.longest
    }

    /// Names and ids of the tokens that steer the model, by id.
    #[must_use]
    pub fn special_tokens(&self) -> Vec<(String, u32)> {
        let added = self.inner.encoder.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special);
        let mut tokens: Vec<(String, u32)> = special.map(|(id, token)| (token.content, id)).collect();
        tokens.sort_unstable_by_key(|(_, id)| *id);
        tokens
    }

    /// The text of tokens, special ones left out; bytes that are not UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .filter(|&&id| !self.is_special(id))
            .flat_map(|&id| self.bytes(id))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of one token; empty for an id outside the vocabulary (padding rows of the embedding).
    #[must_use]
    pub fn bytes(&self, token: u32) -> &[u8] {
        let index = token as usize;
        let Some(&end) = self.inner.ends.get(index) else {
            return &[];
        };
        let before = index
            .checked_sub(1)
            .and_then(|before| self.inner.ends.get(before));
        let start = before.copied().unwrap_or(0);
        self.inner.bytes.get(start..end).unwrap_or_default()
    }

    /// Whether the token steers the model and is not text (`<|eot_id|>`).
    #[must_use]
    pub fn is_special(&self, token: u32) -> bool {
        self.inner.special.get(token as usize).copied().unwrap_or(false)
    }

    /// Number of ids, added tokens included: one more than the largest.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        u32::try_from(self.inner.ends.len()).unwrap_or(u32::MAX)
    }

    /// The id of a token as the vocabulary spells it (`<|eot_id|>`).
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.encoder.token_to_id(token)
    }

    /// The tokenizer of the crate `tokenizers`.
    #[must_use]
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner.encoder
    }
}

/// How long a table of all ids is.
fn table_size(
    encoder: &tokenizers::Tokenizer,
    vocabulary: &HashMap<String, u32>,
) -> Result<usize, TokenizerError> {
    let added = encoder.get_added_tokens_decoder();
    let Some(&largest) = vocabulary.values().chain(added.keys()).max() else {
        return Ok(0);
    };
    let tokens = vocabulary.len();
    if largest as usize > 2 * tokens + MAX_GAPS {
        return Err(TokenizerError::Sparse { tokens, largest });
    }
    Ok(largest as usize + 1)
}

fn check_whole(text: &str, why: &'static str) -> Result<(), TokenizerError> {
    if text.len() <= MAX_WHOLE {
        return Ok(());
    }
    Err(TokenizerError::Whole {
        bytes: text.len(),
        most: MAX_WHOLE,
        why,
    })
}

fn refused(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encode(error.to_string())
}

fn decoder_name(decoder: Option<&DecoderWrapper>) -> String {
    let tagged = decoder.and_then(|decoder| serde_json::to_value(decoder).ok());
    let name = tagged
        .as_ref()
        .and_then(|value| value.get("type"))
        .and_then(|name| name.as_str());
    name.unwrap_or("nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, SPECIAL};
    use super::*;

    #[test]
    fn encodes_special_tokens_by_name_and_decodes_without_them() {
        let tokenizer = testing::tokenizer();
        let ids = tokenizer.encode("<|end|>hé", false).unwrap();
        assert_eq!(ids[0], SPECIAL);
        assert!(tokenizer.is_special(SPECIAL));
        assert_eq!(tokenizer.decode(&ids), "hé");
        assert_eq!(tokenizer.token_id("<|end|>"), Some(SPECIAL));
        assert_eq!(tokenizer.bytes(9_999_999), b"");
    }

    #[test]
    fn the_fewest_tokens_are_bytes_over_the_longest_token() {
        let tokenizer = testing::tokenizer();
        // The longest token of this vocabulary is `<|start|>`.
        assert_eq!(tokenizer.longest_token(), 9);
        assert_eq!(tokenizer.fewest_tokens(&"x".repeat(19)), 3);
        assert_eq!(tokenizer.fewest_tokens(""), 0);
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json") && error.contains("copy"),
            "{error}"
        );
    }

    /// Reading the start of a process's own memory fails with EIO.
    #[test]
    fn a_disk_that_does_not_answer_is_no_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc/self/mem", dir.path().join("tokenizer.json")).unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err();
        assert!(matches!(error, TokenizerError::Io(_)), "{error}");
    }

    fn with_model(change: impl FnOnce(&mut serde_json::Value)) -> Result<Tokenizer, TokenizerError> {
        let mut json = serde_json::to_value(testing::tokenizer().inner()).unwrap();
        change(&mut json);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
        Tokenizer::from_dir(dir.path())
    }

    #[test]
    fn an_id_far_beyond_the_others_is_refused_before_tables_are_made() {
        let error = with_model(|json| json["model"]["vocab"]["zz"] = u32::MAX.into()).unwrap_err();
        assert!(
            matches!(
                error,
                TokenizerError::Sparse {
                    largest: u32::MAX,
                    ..
                }
            ),
            "{error}"
        );
        with_model(|json| json["model"]["vocab"]["zz"] = 60_000.into()).unwrap();
    }

    #[test]
    fn a_part_on_which_the_crate_panics_is_damage() {
        // A key that is no string.
        let dir = tempfile::tempdir().unwrap();
        let json = serde_json::to_string(testing::tokenizer().inner()).unwrap();
        let damaged = json.replacen("\"decoder\":{\"type\"", "\"decoder\":{1:2,\"type\"", 1);
        assert_ne!(damaged, json);
        std::fs::write(dir.path().join("tokenizer.json"), damaged).unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err();
        assert!(matches!(error, TokenizerError::Load { .. }), "{error}");
    }

    #[test]
    fn other_kinds_of_tokenizer_are_refused() {
        let mut plain = testing::tokenizer().inner().clone();
        plain.with_decoder(None::<DecoderWrapper>);
        let error = Tokenizer::new(plain).unwrap_err().to_string();
        assert!(error.contains("byte-level"), "{error}");
    }
}
