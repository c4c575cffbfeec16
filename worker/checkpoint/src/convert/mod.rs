//! Making a Hugging Face folder from a GGUF file of a Llama model, in bf16.

mod config;
mod tokenizer;
mod weights;

use std::path::Path;

use serde_json::json;

use crate::error::Result;
use crate::gguf::GgufFile;
use crate::progress::Progress;
use crate::safetensors::OutputDir;

pub use crate::error::ConvertError;

/// Options of [`gguf_to_hugging_face`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Largest safetensors file, in bytes of data; beyond it there are several and an index.
    pub max_file_bytes: u64,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            max_file_bytes: 100_000_000,
        }
    }
}

/// Convert the GGUF file `source` into the new folder `target`: `config.json`, `generation_config.json`,
/// `tokenizer.json`, `tokenizer_config.json`, bf16 safetensors. The folder appears whole or not at all.
///
/// # Errors
/// The file is damaged, not a Llama, in an unsupported block format, or the target is not empty.
pub fn gguf_to_hugging_face(
    source: &Path,
    target: &Path,
    options: ConvertOptions,
    report: &mut dyn FnMut(Progress),
) -> Result<()> {
    let gguf = GgufFile::open(source)?;
    let config = config::from_gguf(&gguf)?;
    let output = OutputDir::create(target)?;
    output.write_json("config.json", &config.json)?;
    output.write_json(
        "generation_config.json",
        &json!({
            "bos_token_id": config.json.get("bos_token_id"),
            "eos_token_id": config.json.get("eos_token_id"),
            "pad_token_id": config.json.get("pad_token_id"),
        }),
    )?;
    let tokenizer = tokenizer::from_gguf(&gguf)?;
    output.write_json("tokenizer.json", &tokenizer.tokenizer)?;
    output.write_json("tokenizer_config.json", &tokenizer.config)?;
    weights::write(&gguf, &config.llama, &output, options.max_file_bytes, report)?;
    Ok(output.commit()?)
}
