//! `convert`, `quantize` and `shard`: making checkpoints.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use llamero_checkpoint::Topology;
use llamero_checkpoint::convert::{ConvertOptions, gguf_to_hugging_face};
use llamero_checkpoint::presharded::{ShardOptions, to_shards};
use llamero_checkpoint::quantize::{self, QuantizeOptions, to_fp8};
use llamero_settings::limits;

use super::progress::ProgressLine;
use crate::config::within;

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
    /// Quantise the head (`lm_head`) too, which otherwise stays as it is
    #[arg(long)]
    pub quantize_head: bool,
    /// Leave this module as it is: its name or the start of it, such as `model.layers.0`; may be repeated
    #[arg(long, value_name = "MODULE")]
    pub keep: Vec<String>,
    /// The folder with bf16, f16 or f32 weights
    pub source: PathBuf,
    /// The folder to make; it must not exist, or be empty
    pub out: PathBuf,
}

/// Cut a Hugging Face folder into one file for each rank of a group, so that each reads one file in order
#[derive(Debug, Clone, Args)]
pub struct ShardArgs {
    /// Tensor-parallel ranks of a stage
    #[arg(long, value_name = "N", value_parser = within(limits::TENSOR))]
    pub tensor: u32,
    /// Pipeline stages
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(limits::PIPELINE))]
    pub pipeline: u32,
    /// The folder with whole weights
    pub source: PathBuf,
    /// The folder to make; it must not exist, or be empty
    pub out: PathBuf,
}

/// A form of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    /// Row-wise FP8 (F8_E4M3 weights, one scale per output row) of every matrix but the head, announced as Meta's
    FbgemmFp8,
    /// The same, leaving in bf16 what Meta's 405B leaves: attention, first and last layer, embedding and head
    FbgemmFp8Meta,
    /// The same weights as `fbgemm-fp8`, announced as Red Hat's compressed-tensors with one scale per channel
    CompressedTensorsChannel,
}

impl From<Scheme> for quantize::Scheme {
    fn from(scheme: Scheme) -> Self {
        match scheme {
            Scheme::FbgemmFp8 => Self::FbgemmFp8,
            Scheme::FbgemmFp8Meta => Self::FbgemmFp8Meta,
            Scheme::CompressedTensorsChannel => Self::CompressedTensorsChannel,
        }
    }
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
    let options = QuantizeOptions {
        scheme: args.scheme.into(),
        head: args.quantize_head,
        keep: args.keep.clone(),
        ..Default::default()
    };
    let mut line = ProgressLine::new(format!("quantising {}", args.source.display()));
    to_fp8(&args.source, &args.out, &options, &mut |progress| {
        line.report(progress)
    })
    .with_context(|| format!("{} was not quantised", args.source.display()))?;
    println!("{}", args.out.display());
    Ok(())
}

/// Run `shard`.
///
/// # Errors
/// The checkpoint cannot be used or split so, or the folder not written.
pub fn shard(args: &ShardArgs) -> anyhow::Result<()> {
    let options = ShardOptions::new(Topology {
        tensor: args.tensor,
        pipeline: args.pipeline,
    });
    let mut line = ProgressLine::new(format!("sharding {}", args.source.display()));
    to_shards(&args.source, &args.out, options, &mut |progress| {
        line.report(progress)
    })
    .with_context(|| format!("{} was not sharded", args.source.display()))?;
    println!("{}", args.out.display());
    Ok(())
}
