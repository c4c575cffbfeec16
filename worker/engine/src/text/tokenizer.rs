//! Text to tokens and tokens to bytes, from a checkpoint's `tokenizer.json`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::DecoderWrapper;

use super::byte_level;

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
    /// Not byte-level BPE, so single tokens cannot be turned into bytes.
    #[error("the tokenizer decodes with {0}; Llama 3 needs a byte-level BPE tokenizer (decoder ByteLevel)")]
    Decoder(String),
    /// The text could not be encoded.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
}

/// A byte-level BPE tokenizer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    encoder: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after another; token `i` is `bytes[ends[i - 1] .. ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl Tokenizer {
    /// Load `tokenizer.json` of a model directory.
    ///
    /// # Errors
    /// [`TokenizerError::Load`] or [`TokenizerError::Decoder`].
    pub fn from_dir(model_dir: &Path) -> Result<Self, TokenizerError> {
        let path = model_dir.join("tokenizer.json");
        let load = |reason: String| TokenizerError::Load {
            path: path.clone(),
            reason,
        };
        let json = std::fs::read(&path).map_err(|error| load(error.to_string()))?;
        let encoder = tokenizers::Tokenizer::from_bytes(json).map_err(|error| load(error.to_string()))?;
        Self::new(encoder)
    }

    /// Wrap a tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::Decoder`] when it is not byte-level BPE.
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
        let size = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        let mut tokens: Vec<&str> = vec![""; size];
        for (token, &id) in &vocabulary {
            tokens[id as usize] = token;
        }
        let mut special = vec![false; size];
        for (id, token) in encoder.get_added_tokens_decoder() {
            special[id as usize] = token.special;
        }
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(size);
        for token in tokens {
            bytes.extend(byte_level::token_bytes(token));
            ends.push(bytes.len());
        }
        Ok(Self {
            inner: Arc::new(Inner {
                encoder,
                bytes,
                ends,
                special,
            }),
        })
    }

    /// Token ids of a text. Names of special tokens in the text become those tokens, as chat templates need it.
    /// `add_special` also adds what the tokenizer puts around a text (Llama 3: `<|begin_of_text|>` in front); a rendered
    /// chat template has it already.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encoder.encode_fast(text, add_special);
        Ok(encoding
            .map_err(|error| TokenizerError::Encode(error.to_string()))?
            .get_ids()
            .to_vec())
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
        let start = if index == 0 { 0 } else { self.inner.ends[index - 1] };
        &self.inner.bytes[start..end]
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
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.json") && error.contains("copy"),
            "{error}"
        );
    }

    #[test]
    fn other_kinds_of_tokenizer_are_refused() {
        let mut plain = testing::tokenizer().inner().clone();
        plain.with_decoder(None::<DecoderWrapper>);
        let error = Tokenizer::new(plain).unwrap_err().to_string();
        assert!(error.contains("byte-level"), "{error}");
    }
}
