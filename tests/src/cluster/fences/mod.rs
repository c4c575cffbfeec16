//! NetworkPolicies of the cluster, enforced on the nodes as plain nftables rules. The usual enforcers hand packets to a program by an nft queue,
//! which the kernel here lacks; and a test wants to know that the *policies* are right, not an enforcer.
//!
//! ```text
//! packet to be forwarded ── known connection? ──► through
//!                        └─ from a fenced pod ──► does a rule of its policies name the way out? ── no ──► dropped
//!                        └─ to a fenced pod ────► does a rule of its policies name the way in? ─── no ──► dropped
//! ```
//! What the API server holds at one moment is translated; pods that come later need another call. Probes of a kubelet come from the node itself
//! and are not forwarded. Ways that the translation does not know are refused by name, so that no test passes because a rule was passed over.
//!
//! | module | what it is |
//! |---|---|
//! | `select` | label selectors |
//! | `rules` | from policies and pods to nftables rules |

mod rules;
mod select;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Cluster, Kubectl, Node};
use crate::command::{output, output_with_input};

pub use rules::{Objects, script};

/// Lets packets between pods of one node pass the rules, which a bridge would else hand over by itself.
const BRIDGED: &str = "net.bridge.bridge-nf-call-iptables=1";
const REMOVE: &str = "table inet llamero_fences\ndelete table inet llamero_fences\n";

/// Enforces what the policies say now, on all nodes; as if those of the name `without` were not there.
///
/// # Errors
/// The objects cannot be read or translated, or a node refuses the rules.
pub(super) fn enforce(cluster: &Cluster, without: Option<&str>) -> Result<()> {
    let mut objects = objects(&cluster.kubectl())?;
    let is_left_out = |policy: &Value| without.is_some_and(|name| policy["metadata"]["name"] == name);
    objects.policies.retain(|policy| !is_left_out(policy));
    let rules = script(&objects)?;
    for node in cluster.nodes()? {
        let bridged = output(node.command(Path::new("sysctl")).args(["-q", "-w", BRIDGED]));
        bridged.context(
            "packets between pods of one node pass no rules: is the kernel module br_netfilter there?",
        )?;
        load(node, &rules)?;
    }
    Ok(())
}

/// Takes all rules back.
///
/// # Errors
/// A node refuses.
pub(super) fn lift(cluster: &Cluster) -> Result<()> {
    cluster
        .nodes()?
        .into_iter()
        .try_for_each(|node| load(node, REMOVE))
}

fn load(node: Node, rules: &str) -> Result<()> {
    output_with_input(node.command(Path::new("nft")).args(["-f", "-"]), rules.as_bytes())
        .with_context(|| format!("{} does not take the rules", node.name()))?;
    Ok(())
}

fn objects(kubectl: &Kubectl) -> Result<Objects> {
    let list = |kind: &str| -> Result<Vec<Value>> {
        let list = kubectl.get(&[kind, "--all-namespaces"])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    Ok(Objects {
        policies: list("networkpolicies")?,
        pods: list("pods")?,
        namespaces: list("namespaces")?,
    })
}
