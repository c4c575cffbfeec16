//! `plan`: which nodes a deployment would get, by the operator's own decisions.
//!
//! | module | what it is |
//! |---|---|
//! | [`file`] | deployments that are not applied |
//! | [`checkpoint`] | what is known of the weights |
//! | [`render`] | the answer for people and for programs |

pub mod checkpoint;
pub mod file;
pub mod render;

use std::{io::Write as _, sync::Arc};

use anyhow::{Context as _, Result, bail};
use kube::ResourceExt as _;
use llamero_api::LlamaDeployment;
use llamero_core::{
    Observed,
    forecast::{
        Forecast,
        alternatives::{Alternative, alternatives},
        forecasts,
    },
    plan::{Acceptance, Key},
    time::Millis,
};

use crate::{
    cluster::{Cluster, say},
    exit::Code,
    observe::Listed,
    options::{Output, PlanArgs},
    paint::Paint,
};

/// The answer for one deployment.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The deployment.
    pub object: Arc<LlamaDeployment>,
    /// What would be decided.
    pub forecast: Forecast,
    /// What would fit where it does not.
    pub alternatives: Vec<Alternative>,
}

impl Planned {
    /// Whether every wanted group has its nodes.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let placed = self
            .forecast
            .groups
            .iter()
            .filter(|group| group.placed() && !group.goes);
        self.forecast.acceptance == Acceptance::Accepted
            && i32::try_from(placed.count()).unwrap_or(i32::MAX) >= self.forecast.wanted
    }
}

/// Runs `plan`.
///
/// # Errors
/// The file or the cluster cannot be read.
pub async fn run(cluster: &Cluster, args: &PlanArgs, paint: Paint) -> Result<Code> {
    let targets = match (&args.file, &args.name) {
        (Some(path), _) => file::checked(cluster, file::read(path)?).await?,
        (None, Some(name)) => {
            let api = cluster.api::<LlamaDeployment>(false);
            let object = api.get(name).await;
            vec![object.map_err(|error| say::refused(error, "get", "llamadeployment"))?]
        }
        (None, None) => bail!("name a LlamaDeployment, or give a file with -f"),
    };
    let summary = args
        .checkpoint_summary
        .as_deref()
        .map(checkpoint::read)
        .transpose()?;
    let listed = Listed::from(cluster).await?;
    let now = jiff::Timestamp::now().as_millisecond();
    let planned = plan(&listed, targets, summary.as_ref(), now)?;
    let text = match args.output {
        Output::Text => render::text(&planned, paint),
        Output::Json => format!("{:#}\n", render::json(&planned)),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    let all = planned.iter().all(Planned::has_room);
    Ok(if all { Code::Done } else { Code::Not })
}

/// What would be decided about the targets, all of them applied at once.
///
/// # Errors
/// Two targets have one name.
pub fn plan(
    listed: &Listed,
    targets: Vec<LlamaDeployment>,
    summary: Option<&llamero_api::CheckpointSummary>,
    now: Millis,
) -> Result<Vec<Planned>> {
    let mut observed = listed.observed(now);
    let mut keys = Vec::new();
    for mut object in targets {
        checkpoint::fill(&mut object, summary, &listed.deployments, now);
        let key = Key::of(&object.metadata);
        if keys.contains(&key) {
            bail!("{key} is there twice");
        }
        put(&mut observed, listed, &object, &key, now);
        keys.push(key);
    }
    let mut told = forecasts(observed.clone(), &keys, now);
    keys.iter()
        .map(|key| planned(&observed, key, told.remove(key)))
        .collect()
}

fn planned(observed: &Observed, key: &Key, forecast: Option<Forecast>) -> Result<Planned> {
    let mut deployments = observed.deployments.iter();
    let object = deployments
        .find(|deployment| Key::of(&deployment.object.metadata) == *key)
        .map(|deployment| Arc::clone(&deployment.object));
    let (object, forecast) = object
        .zip(forecast)
        .with_context(|| format!("{key} is being deleted"))?;
    let mut planned = Planned {
        object,
        forecast,
        alternatives: Vec::new(),
    };
    if !planned.has_room() {
        planned.alternatives = alternatives(observed, key);
    }
    Ok(planned)
}

/// In the place of the deployment of this name, or beside the others.
fn put(observed: &mut Observed, listed: &Listed, object: &LlamaDeployment, key: &Key, now: Millis) {
    let deployment = listed.deployment(object, now);
    observed
        .deployments
        .retain(|other| Key::of(&other.object.metadata) != *key);
    observed.deployments.push(deployment);
}

/// `namespace/name`.
#[must_use]
pub fn name(object: &LlamaDeployment) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests;
