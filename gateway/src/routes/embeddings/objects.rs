//! The answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llamero_proto::v1;
use serde::Serialize;

use super::request::EncodingFormat;

/// All embeddings of a request.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct EmbeddingList {
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: Usage,
}

/// One embedding.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Embedding {
    pub object: &'static str,
    pub index: usize,
    pub embedding: Values,
}

/// Its values.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Values {
    /// As numbers.
    Float(Vec<f32>),
    /// As base64 of 32-bit floats, little end first.
    Base64(String),
}

/// What it cost.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the fields are those of the OpenAI API")]
pub struct Usage {
    pub prompt_tokens: u32,
    pub total_tokens: u32,
}

impl EmbeddingList {
    /// In the order of the inputs.
    #[must_use]
    pub fn new(model: String, format: EncodingFormat, embeddings: Vec<v1::Embedding>) -> Self {
        let tokens = embeddings.iter().fold(0_u32, |sum, embedding| {
            sum.saturating_add(embedding.prompt_tokens)
        });
        let one = |(index, embedding): (usize, v1::Embedding)| Embedding {
            object: "embedding",
            index,
            embedding: match format {
                EncodingFormat::Float => Values::Float(embedding.values),
                EncodingFormat::Base64 => {
                    let bytes: Vec<u8> = embedding
                        .values
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect();
                    Values::Base64(STANDARD.encode(&bytes))
                }
            },
        };
        Self {
            object: "list",
            data: embeddings.into_iter().enumerate().map(one).collect(),
            model,
            usage: Usage {
                prompt_tokens: tokens,
                total_tokens: tokens,
            },
        }
    }
}
