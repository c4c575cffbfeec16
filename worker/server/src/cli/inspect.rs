//! `inspect`: what a checkpoint is and how it would be sharded, from its headers and samples.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use llamero_checkpoint::inspect::{Report, report as report_on};
use llamero_checkpoint::{Checkpoint, CheckpointSummary, ContentIdentity, ModelLayout, ShardPlan, Topology};
use llamero_cpu::WorkspaceNeed;
use llamero_settings::limits;
use llamero_sources::{FetchError, Manifest, Patience};

use crate::config::within;
use crate::exit::UNUSABLE;
use crate::source::{self, SourceArgs};

/// What this program can compute on, where there are such devices.
fn backends() -> &'static [&'static str] {
    match llamero_cuda::probe::loads_drivers() {
        true => &["cpu", "cuda"],
        false => &["cpu"],
    }
}
/// Those of them whose tensor-parallel ranks have to be in one pod. Older operators take it that they compute no pipeline stages.
const ONE_NODE_BACKENDS: &[&str] = &["cuda"];
/// Those of these that compute pipeline stages, each of which may be in another pod.
const STAGE_BACKENDS: &[&str] = &["cuda"];
/// Those of them that can keep keys and values in FP8.
const FP8_KV_BACKENDS: &[&str] = &["cpu"];

/// Somebody waits for a sentence, and whoever reads it asks again in a minute.
const SOON: Patience = Patience {
    attempts: 3,
    first: Duration::from_millis(500),
    most: Duration::from_secs(10),
    silence: Duration::from_secs(15),
};
/// What the kubelet keeps of a termination message.
const TERMINATION_LIMIT: usize = 4096;

/// Say what a checkpoint is, whether it is whole, and what each rank of a group would hold
///
/// Reads headers, and from a folder a few kilobytes of each tensor for the content identity. Exits with 2 when the checkpoint cannot be used.
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
    /// Where the weights are, if not in the folder.
    #[command(flatten)]
    pub source: SourceArgs,
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
    let outcome = look(dir, &args.source, topology);
    let json = match &outcome {
        Ok(report) => fit(&report.summary, args.tensor)?,
        Err(error) => refusal(&error.to_string()),
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

/// Look into the checkpoint in `dir`, which is filled first if it comes from elsewhere.
fn look(dir: &Path, place: &SourceArgs, topology: Topology) -> Result<Report, FetchError> {
    let of_checkpoint = |error| FetchError::Checkpoint(Box::new(error));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| FetchError::Io {
            path: dir.to_owned(),
            source,
        })?;
    let manifest = runtime.block_on(place.prepare(dir, SOON))?;
    let checkpoint = source::open(dir)?;
    let identity = match &manifest {
        Some(manifest) => manifest.identity(),
        None => ContentIdentity::of(&checkpoint).map_err(of_checkpoint)?,
    };
    let mut report = report_on(&checkpoint, identity, topology).map_err(of_checkpoint)?;
    let names = |of: fn(&str) -> bool| {
        backends()
            .iter()
            .copied()
            .filter(|name| of(name))
            .map(str::to_owned)
            .collect()
    };
    report.summary.backends = names(|_| true);
    report.summary.one_node_backends = names(|name| ONE_NODE_BACKENDS.contains(&name));
    report.summary.stage_backends = names(|name| STAGE_BACKENDS.contains(&name));
    report.summary.fp8_kv_backends = names(|name| FP8_KV_BACKENDS.contains(&name));
    report.summary.content_identity = manifest.as_ref().map(Manifest::identity);
    report.summary.commit = manifest.and_then(|manifest| manifest.listing.commit);
    add_workspace(&checkpoint, topology, &mut report.summary).map_err(of_checkpoint)?;
    Ok(report)
}

/// Say what the CPU backend takes beside weights and KV cache. Sizes that it cannot compute are left as they are: `serve` says
/// why.
fn add_workspace(
    checkpoint: &Checkpoint,
    topology: Topology,
    summary: &mut CheckpointSummary,
) -> llamero_checkpoint::Result<()> {
    let (config, model) = (checkpoint.config(), ModelLayout::check(checkpoint)?);
    for plan in &mut summary.plans {
        let of_plan = Topology {
            tensor: plan.tensor,
            ..topology
        };
        let split = ShardPlan::new(config, of_plan)?;
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
        let json = serde_json::json!({ "error": message.get(..end).unwrap_or_default() }).to_string();
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
            source: SourceArgs::default(),
            json: false,
            termination_log: Some(log.clone()),
        };
        let error = inspect(&args).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        let written: serde_json::Value = serde_json::from_slice(&std::fs::read(log).unwrap()).unwrap();
        assert_eq!(written["error"], error);
    }
}
