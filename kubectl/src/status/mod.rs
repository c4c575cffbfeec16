//! `status`: deployments, their groups and ranks as a tree.
//!
//! | module | what it is |
//! |---|---|
//! | [`tree`] | what is shown |
//! | [`rates`] | how fast ranks load, from one look to the next |
//! | [`render`] | as text |
//! | [`watch`] | again whenever it changes |

pub mod rates;
pub mod render;
pub mod tree;
pub mod watch;

use std::io::Write as _;

use anyhow::{Result, bail};
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, LlamaGroup};

use crate::{
    cluster::{Cluster, list},
    exit::Code,
    options::{Output, StatusArgs},
    paint::Paint,
};

use rates::Rates;
use tree::Tree;

/// Runs `status`.
///
/// # Errors
/// The cluster cannot be read, or a name is unknown.
pub async fn run(cluster: &Cluster, args: &StatusArgs, paint: Paint) -> Result<Code> {
    if args.watch {
        return watch::run(cluster, args, paint).await;
    }
    let deployments = cluster.api::<LlamaDeployment>(args.all_namespaces);
    let deployments = list::all(&deployments, "llamadeployments.llamero.dev").await?;
    let groups = cluster.api::<LlamaGroup>(args.all_namespaces);
    let groups = list::all(&groups, "llamagroups.llamero.dev").await?;
    let deployments = named(deployments, &args.names)?;
    let tree = Tree::of(&deployments, &groups);
    let text = match args.output {
        Output::Text => {
            let now = jiff::Timestamp::now().as_millisecond();
            render::text(&tree, &Rates::default(), now, paint)
        }
        Output::Json => format!("{:#}\n", tree.json()),
    };
    if tree.deployments.is_empty() {
        eprintln!("{}", nothing(cluster, args.all_namespaces));
    }
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(Code::Done)
}

/// That there is nothing to show, and where it was looked for.
#[must_use]
pub fn nothing(cluster: &Cluster, all_namespaces: bool) -> String {
    match all_namespaces {
        true => "There are no LlamaDeployments.".to_owned(),
        false => format!(
            "There are no LlamaDeployments in the namespace {}; -n names another one, -A all.",
            cluster.namespace
        ),
    }
}

/// Those with these names, all where none is given; in the order of namespaces and names.
///
/// # Errors
/// A name is unknown.
pub fn named(deployments: Vec<LlamaDeployment>, names: &[String]) -> Result<Vec<LlamaDeployment>> {
    for name in names {
        if !deployments.iter().any(|object| object.name_any() == *name) {
            bail!("there is no LlamaDeployment {name} here: see kubectl llamero status -A");
        }
    }
    let wanted = |object: &LlamaDeployment| names.is_empty() || names.contains(&object.name_any());
    let mut found: Vec<LlamaDeployment> = deployments.into_iter().filter(wanted).collect();
    found.sort_by_key(|object| (object.namespace(), object.name_any()));
    Ok(found)
}

#[cfg(test)]
mod tests;
