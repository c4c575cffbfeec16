//! `inspect`: what a checkpoint is and how it would be sharded, from its headers and samples.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use llamero_checkpoint::inspect::inspect as report_on;
use llamero_checkpoint::{Checkpoint, CheckpointSummary, ModelLayout, ShardPlan, Topology};
use llamero_cpu::WorkspaceNeed;
use llamero_proto::limits;

use crate::config::within;
use crate::exit::UNUSABLE;

/// What this program can compute on, where there are such devices.
const BACKENDS: &[&str] = if llamero_cuda::probe::LOADS_DRIVERS {
    &["cpu", "cuda"]
} else {
    &["cpu"]
};
/// What the kubelet keeps of a termination message.
const TERMINATION_LIMIT: usize = 4096;

/// Say what a checkpoint is, whether it is whole, and what each rank of a group would hold
///
/// Reads headers, and a few kilobytes of each tensor for the content identity. Exits with 2 when the checkpoint cannot be used.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Folder of the checkpoint
    #[arg(value_name = "DIR", required_unless_present = "model_dir")]
    pub dir: Option<PathBuf>,
    /// The same as DIR
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    pub model_dir: Option<PathBuf>,
    /// Also check and show this tensor-parallel size
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(limits::TENSOR))]
    pub tensor: u32,
    /// Pipeline stages to check and show with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within(limits::PIPELINE))]
    pub pipeline: u32,
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
    let dir = args
        .dir
        .as_deref()
        .or(args.model_dir.as_deref())
        .context("no folder is given")?;
    let topology = Topology {
        tensor: args.tensor,
        pipeline: args.pipeline,
    };
    let outcome = report_on(dir, topology).and_then(|mut report| {
        report.summary.backends = BACKENDS.iter().copied().map(str::to_owned).collect();
        add_workspace(dir, &mut report.summary)?;
        Ok(report)
    });
    let json = match &outcome {
        Ok(report) => fit(&report.summary, args.tensor)?,
        Err(error) => refusal(&format!("{error:#}")),
    };
    if let Some(path) = &args.termination_log {
        std::fs::write(path, &json).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    if args.json {
        println!("{json}");
    }
    let report = outcome?;
    if args.json {
        return Ok(0);
    }
    print!("{report}");
    Ok(if report.summary.problem.is_some() {
        UNUSABLE
    } else {
        0
    })
}

/// Say what the CPU backend takes beside weights and KV cache. Sizes that it cannot compute are left as they are: `serve` says
/// why.
fn add_workspace(dir: &Path, summary: &mut CheckpointSummary) -> llamero_checkpoint::Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let (config, model) = (checkpoint.config(), ModelLayout::check(&checkpoint)?);
    for plan in &mut summary.plans {
        let split = ShardPlan::new(config, Topology::tensor(plan.tensor))?;
        if let Ok(need) = WorkspaceNeed::of(config, &model, &split) {
            plan.workspace_bytes_per_rank = Some(need.fixed);
            plan.workspace_bytes_per_batched_token_per_rank = Some(need.per_token);
        }
    }
    Ok(())
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
        // A byte becomes at most six in JSON, so this never cuts more than it must.
        let excess = json.len() - TERMINATION_LIMIT;
        end = message.floor_char_boundary(end.saturating_sub(excess.div_ceil(6)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_fits_a_termination_message() {
        assert_eq!(refusal("no"), r#"{"error":"no"}"#);
        let long = refusal(&"ü\"".repeat(5_000));
        assert!(
            long.len() <= TERMINATION_LIMIT && long.len() > TERMINATION_LIMIT - 16,
            "{}",
            long.len()
        );
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
            pipeline: 1,
            json: false,
            termination_log: Some(log.clone()),
        };
        let error = inspect(&args).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(log).unwrap()).unwrap();
        assert_eq!(written["error"], error);
    }
}
