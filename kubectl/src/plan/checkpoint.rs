//! What is known of the weights of a deployment that was not inspected.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use kube::ResourceExt as _;
use llamero_api::{
    CheckpointSummary, LlamaDeployment, deployment::CheckpointStatus, summary::InspectOutcome,
};
use llamero_core::{
    revision,
    time::{self, Millis},
};

/// What `llamero-worker inspect --json` wrote.
///
/// # Errors
/// The file is not that, or says why the checkpoint cannot be read.
pub fn read(path: &Path) -> Result<CheckpointSummary> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    match serde_json::from_str(&text) {
        Ok(InspectOutcome::Summary(summary)) => Ok(*summary),
        Ok(InspectOutcome::Error { error }) => bail!("the checkpoint cannot be read: {error}"),
        Err(_) => bail!(
            "{} is not what `llamero-worker inspect --json` writes",
            path.display()
        ),
    }
}

/// Gives the deployment what is known of its checkpoint: what it says itself, what the user gives, else what another deployment found in the
/// same source. Nothing where nobody has looked.
pub fn fill(
    object: &mut LlamaDeployment,
    given: Option<&CheckpointSummary>,
    others: &[LlamaDeployment],
    now: Millis,
) {
    let key = revision::inspect_key(&object.spec);
    let own = object
        .status
        .as_ref()
        .and_then(|status| status.checkpoint.as_ref());
    if given.is_none() && own.is_some_and(|checkpoint| checkpoint.key == key) {
        return;
    }
    let Some(mut summary) = given.cloned().or_else(|| found(object, others)) else {
        return;
    };
    // It was about the split that was asked for then.
    summary.problem = None;
    object.status.get_or_insert_default().checkpoint = Some(CheckpointStatus {
        key,
        pod_uid: None,
        image: None,
        image_id: None,
        inspected_at: time::to_time(now),
        summary: Some(summary),
        error: None,
    });
}

fn found(object: &LlamaDeployment, others: &[LlamaDeployment]) -> Option<CheckpointSummary> {
    let source = &object.spec.model.source;
    let same = others.iter().filter(|other| {
        let near = source.persistent_volume_claim.is_none() || other.namespace() == object.namespace();
        let stages = other.spec.parallelism.pipeline == object.spec.parallelism.pipeline;
        near && stages && other.spec.model.source == *source
    });
    let checkpoints = same.filter_map(|other| other.status.as_ref()?.checkpoint.as_ref());
    checkpoints
        .filter_map(|checkpoint| checkpoint.summary.clone())
        .next()
}
