//! `explain`: why a deployment is not ready.
//!
//! | module | what it is |
//! |---|---|
//! | [`reason`] | the one condition, object and number |
//! | [`way_out`] | what to do about it |
//! | [`operator`] | whether an operator is there at all |
//! | [`render`] | the answer for people and for programs |

pub mod operator;
pub mod reason;
pub mod render;
pub mod way_out;

use std::io::Write as _;

use anyhow::Result;
use llamero_api::{LlamaDeployment, LlamaGroup};

use crate::{
    cluster::{Cluster, list},
    exit::Code,
    options::{ExplainArgs, Output},
    paint::Paint,
    status::{named, nothing},
};

use reason::{Explanation, explain};

/// Runs `explain`.
///
/// # Errors
/// The cluster cannot be read, or a name is unknown.
pub async fn run(cluster: &Cluster, args: &ExplainArgs, paint: Paint) -> Result<Code> {
    let deployments = cluster.api::<LlamaDeployment>(args.all_namespaces);
    let deployments = list::all(&deployments, "llamadeployments.llamero.dev").await?;
    let groups = cluster.api::<LlamaGroup>(args.all_namespaces);
    let groups = list::all(&groups, "llamagroups.llamero.dev").await?;
    let operator = operator::find(cluster, &args.operator_namespace).await;
    let now = jiff::Timestamp::now().as_millisecond();
    let deployments = named(deployments, &args.names)?;
    let explained: Vec<Explanation> = deployments
        .iter()
        .map(|object| explain(object, &groups, &operator, now))
        .collect();
    let text = match args.output {
        Output::Text => render::text(&explained, paint),
        Output::Json => format!("{:#}\n", render::json(&explained)),
    };
    if explained.is_empty() {
        eprintln!("{}", nothing(cluster, args.all_namespaces));
    }
    std::io::stdout().lock().write_all(text.as_bytes())?;
    let ready = explained.iter().all(|one| one.trouble.is_none());
    Ok(if ready { Code::Done } else { Code::Not })
}

#[cfg(test)]
mod tests;
