//! `restart`: the weights are read again, and all groups replaced within the budget of the rollout.

use anyhow::Result;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use llamero_api::LlamaDeployment;
use serde_json::json;

use crate::{
    cluster::{Cluster, say},
    exit::Code,
    options::RestartArgs,
};

/// Runs `restart`.
///
/// # Errors
/// What the API server refuses. Deployments that were named before it are restarted.
pub async fn run(cluster: &Cluster, args: &RestartArgs) -> Result<Code> {
    // Whole seconds, as the operator keeps it.
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())?;
    for name in &args.names {
        restart(cluster, name, &Time(now), args.dry_run).await?;
        let dry = if args.dry_run { " (dry run)" } else { "" };
        println!("llamadeployment.llamero.dev/{name} restarted{dry}");
    }
    Ok(Code::Done)
}

/// Writes the time of the restart.
///
/// # Errors
/// What the API server refuses.
pub async fn restart(cluster: &Cluster, name: &str, at: &Time, dry_run: bool) -> Result<()> {
    let api = cluster.api::<LlamaDeployment>(false);
    let patch = json!({"spec": {"rollout": {"restartedAt": at}}});
    let changed = api.patch(name, &params(dry_run), &Patch::Merge(patch)).await;
    changed.map_err(|error| say::refused(error, "patch", "llamadeployment"))?;
    Ok(())
}

/// Under the name of this program, so that managed fields tell who it was.
#[must_use]
pub fn params(dry_run: bool) -> PatchParams {
    PatchParams {
        dry_run,
        field_manager: Some("kubectl-llamero".to_owned()),
        ..PatchParams::default()
    }
}
