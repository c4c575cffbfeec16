//! A tokenizer's vocabulary and merges, used by a second tokenizer. For Llama 3 they are most of the 170 MiB that its
//! tokenizer takes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::models::TrainerWrapper;
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Result, Token,
    Tokenizer, TokenizerImpl,
};

/// A tokenizer that has the model of another one.
pub(super) type TextEncoder =
    TokenizerImpl<SharedModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The model of a tokenizer.
#[derive(Debug, Clone)]
pub(super) struct SharedModel(Arc<Tokenizer>);

/// A tokenizer that does everything as `tokenizer` does, except that names of special tokens in a text are text.
pub(super) fn text_encoder(tokenizer: &Arc<Tokenizer>) -> TextEncoder {
    let mut encoder = TextEncoder::new(SharedModel(Arc::clone(tokenizer)));
    encoder
        .with_normalizer(tokenizer.get_normalizer().cloned())
        .with_pre_tokenizer(tokenizer.get_pre_tokenizer().cloned())
        .with_post_processor(tokenizer.get_post_processor().cloned())
        .with_added_vocabulary(tokenizer.get_added_vocabulary().clone())
        .set_encode_special_tokens(true);
    encoder
}

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        self.0.get_model().tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.get_model().token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.get_model().id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.get_model().get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.get_model().get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        self.0.get_model().save(folder, prefix)
    }

    fn get_trainer(&self) -> TrainerWrapper {
        self.0.get_model().get_trainer()
    }
}
