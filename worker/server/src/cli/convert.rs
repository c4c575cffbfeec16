//! `convert` and `quantize`: making checkpoints.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use llamero_checkpoint::convert::{ConvertOptions, gguf_to_hugging_face};
use llamero_checkpoint::quantize::{QuantizeOptions, to_fbgemm_fp8};

use super::progress::ProgressLine;

/// Turn a GGUF file of a Llama model into a Hugging Face folder in bf16
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// The GGUF file
    pub gguf: PathBuf,
    /// The folder to make; it must not exist, or be empty
    pub out: PathBuf,
    /// Largest safetensors file in bytes; a larger model is cut into several with an index
    #[arg(long, value_name = "BYTES", default_value_t = ConvertOptions::default().max_file_bytes)]
    pub max_file_bytes: u64,
}

/// Quantise a Hugging Face folder
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// How the weights are stored
    #[arg(long, value_enum)]
    pub scheme: Scheme,
    /// The folder with bf16, f16 or f32 weights
    pub source: PathBuf,
    /// The folder to make; it must not exist, or be empty
    pub out: PathBuf,
}

/// A form of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    /// Meta's row-wise FP8: F8_E4M3 weights with one scale per output row
    FbgemmFp8,
}

/// Run `convert`.
///
/// # Errors
/// The file cannot be used, or the folder not written.
pub fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    let mut line = ProgressLine::new(format!("converting {}", args.gguf.display()));
    let options = ConvertOptions {
        max_file_bytes: args.max_file_bytes,
    };
    gguf_to_hugging_face(&args.gguf, &args.out, options, &mut |progress| {
        line.report(progress)
    })
    .with_context(|| format!("{} was not converted", args.gguf.display()))?;
    println!("{}", args.out.display());
    Ok(())
}

/// Run `quantize`.
///
/// # Errors
/// The checkpoint cannot be used, or the folder not written.
pub fn quantize(args: &QuantizeArgs) -> anyhow::Result<()> {
    let Scheme::FbgemmFp8 = args.scheme;
    let mut line = ProgressLine::new(format!("quantising {}", args.source.display()));
    to_fbgemm_fp8(
        &args.source,
        &args.out,
        &QuantizeOptions::default(),
        &mut |progress| line.report(progress),
    )
    .with_context(|| format!("{} was not quantised", args.source.display()))?;
    println!("{}", args.out.display());
    Ok(())
}
