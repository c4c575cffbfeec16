//! Making a Hugging Face folder from a GGUF file of a Llama model, in bf16.

mod config;
mod tokenizer;
mod weights;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::Result;
use crate::gguf::GgufFile;
use crate::progress::Progress;
use crate::safetensors::OutputDir;

/// Why a checkpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The target exists.
    #[error("{} exists and is not empty; name a new folder or delete it first", path.display())]
    TargetNotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// A value cannot be written as JSON.
    #[error("cannot write JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// A tensor of another size than the metadata says.
    #[error(
        "tensor {tensor} has {rows} x {cols} elements; the file's metadata asks for {wanted_rows} x {wanted_cols}"
    )]
    Shape {
        /// The tensor's name in the GGUF file.
        tensor: String,
        /// Its rows.
        rows: u64,
        /// Its columns.
        cols: u64,
        /// Rows that follow from the metadata.
        wanted_rows: u64,
        /// Columns that follow from the metadata.
        wanted_cols: u64,
    },
    /// A GGUF model of another kind.
    #[error("{what} is {found:?}; {supported}")]
    Unsupported {
        /// What is meant.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What can be converted.
        supported: &'static str,
    },
    /// The source is quantised already.
    #[error("{tensor} is {dtype} already; give the folder of the bf16 weights")]
    AlreadyQuantized {
        /// A tensor of the source.
        tensor: String,
        /// Its type.
        dtype: crate::dtype::Dtype,
    },
    /// Every matrix is to be left as it is.
    #[error("with these options no matrix of the {layers} layers is quantised; use the source as it is")]
    NothingToQuantize {
        /// Layers of the model.
        layers: u32,
    },
    /// A weight that has no finite value.
    #[error("row {row} of {tensor} has a value that is not finite; the weights are damaged")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The row.
        row: u64,
    },
}

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
            "bos_token_id": config.json["bos_token_id"],
            "eos_token_id": config.json["eos_token_id"],
            "pad_token_id": config.json["pad_token_id"],
        }),
    )?;
    let tokenizer = tokenizer::from_gguf(&gguf)?;
    output.write_json("tokenizer.json", &tokenizer.tokenizer)?;
    output.write_json("tokenizer_config.json", &tokenizer.config)?;
    weights::write(&gguf, &config.llama, &output, options.max_file_bytes, report)?;
    output.commit()
}
