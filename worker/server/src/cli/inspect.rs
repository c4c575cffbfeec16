//! `inspect`: what a checkpoint is and how it would be sharded, from its headers alone.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use llamero_checkpoint::{Checkpoint, CheckpointSummary, ModelLayout};

use crate::exit::INPUT_UNUSABLE;

/// What the kubelet keeps of a termination message.
const TERMINATION_LIMIT: usize = 4096;

/// Say what a checkpoint is, whether it is whole, and what each rank of a group would hold
///
/// Reads headers only. Exits with 2 when the checkpoint cannot be used.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Folder of the checkpoint
    #[arg(value_name = "DIR", required_unless_present = "model_dir")]
    pub dir: Option<PathBuf>,
    /// The same as DIR
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    pub model_dir: Option<PathBuf>,
    /// Also check and show this tensor-parallel size
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub tensor: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Also write the JSON here, at most 4096 bytes: the termination message of a pod
    #[arg(long, value_name = "PATH")]
    pub termination_log: Option<PathBuf>,
}

/// Run `inspect`; returns the exit code.
///
/// # Errors
/// The checkpoint cannot be used.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<u8> {
    let dir = args.dir.as_deref().or(args.model_dir.as_deref()).context("no folder is given")?;
    let outcome = summary(dir, args.tensor);
    let json = match &outcome {
        Ok(summary) => fit(summary, args.tensor)?,
        Err(error) => refusal(&format!("{error:#}")),
    };
    if let Some(path) = &args.termination_log {
        std::fs::write(path, &json).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if args.json {
        println!("{json}");
    }
    let summary = outcome?;
    if !args.json {
        print!("{}", table(&summary));
    }
    match &summary.problem {
        Some(problem) if !args.json => {
            eprintln!("error: {problem}");
            Ok(INPUT_UNUSABLE)
        }
        _ => Ok(0),
    }
}

fn summary(dir: &Path, tensor: u32) -> Result<CheckpointSummary, llamero_checkpoint::Error> {
    let checkpoint = Checkpoint::open(dir)?;
    let layout = ModelLayout::check(&checkpoint)?;
    Ok(CheckpointSummary::new(&checkpoint, &layout, tensor))
}

/// The summary as JSON within the limit; if need be without the largest sizes that were not asked for.
fn fit(summary: &CheckpointSummary, asked: u32) -> serde_json::Result<String> {
    let mut summary = summary.clone();
    loop {
        let json = serde_json::to_string(&summary)?;
        let spare = summary.plans.iter().rposition(|plan| plan.tensor != asked);
        match spare {
            Some(spare) if json.len() > TERMINATION_LIMIT => summary.plans.remove(spare),
            _ => return Ok(json),
        };
    }
}

/// `{"error": …}` within the limit.
fn refusal(message: &str) -> String {
    let mut end = message.len();
    loop {
        let json = serde_json::json!({ "error": &message[..end] }).to_string();
        if json.len() <= TERMINATION_LIMIT {
            return json;
        }
        end = message.floor_char_boundary(end.saturating_sub(json.len() - TERMINATION_LIMIT));
    }
}

fn table(summary: &CheckpointSummary) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let quantization = summary.quantization.as_deref().unwrap_or("none");
    let mut text = format!(
        "{}: {:.3} billion parameters, {} weights (quantisation: {quantization}), {:.3} GiB on disk\n\
         {} layers, hidden size {}, {} q heads, {} kv heads of {}, feed-forward {}, {} tokens, context {}\n\n\
         {:>6}  {:>16}  {:>20}\n",
        summary.architecture,
        summary.parameters as f64 / 1e9,
        summary.weights,
        gib(summary.checkpoint_bytes),
        summary.layers,
        summary.hidden_size,
        summary.q_heads,
        summary.kv_heads,
        summary.head_dim,
        summary.ffn_size,
        summary.vocab_size,
        summary.max_position_embeddings,
        "tensor",
        "weights per rank",
        "KV bytes per token"
    );
    for plan in &summary.plans {
        let weights = format!("{:.3} GiB", gib(plan.weight_bytes_per_rank));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:>6}  {weights:>16}  {:>20}", plan.tensor, plan.kv_bytes_per_token_per_rank);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_fits_a_termination_message() {
        assert_eq!(refusal("no"), r#"{"error":"no"}"#);
        let long = refusal(&"ü\"".repeat(5_000));
        assert!(long.len() <= TERMINATION_LIMIT && long.len() > TERMINATION_LIMIT - 16, "{}", long.len());
        assert!(serde_json::from_str::<serde_json::Value>(&long).is_ok());
    }

    #[test]
    fn a_folder_without_a_model_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let args = InspectArgs {
            dir: Some(dir.path().to_owned()),
            model_dir: None,
            tensor: 1,
            json: false,
            termination_log: Some(log.clone()),
        };
        let error = inspect(&args).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(log).unwrap()).unwrap();
        assert_eq!(written["error"], error);
    }
}
