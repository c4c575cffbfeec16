//! From what is observed to what is to be done.
//!
//! | module | what it decides |
//! |---|---|
//! | `deployment` | about one deployment and its groups |
//! | `queue` | which placement requests are met, and in which order |

mod deployment;
mod queue;

use std::collections::BTreeMap;

use crate::{
    names::NameOwners,
    observed::{Deployment, Node, Observed},
    placement::{Native, Placer},
    plan::{Key, Plan},
    time::Millis,
};

/// Decides about the whole cluster. Total and deterministic; the contract is in the crate's README.
#[must_use]
pub fn decide(observed: &Observed, now: Millis) -> Plan {
    decide_with(observed, now, &Native)
}

fn decide_with(observed: &Observed, now: Millis, placer: &dyn Placer) -> Plan {
    let mut plan = Plan::default();
    let nodes: BTreeMap<&str, &Node> = observed
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node))
        .collect();
    let mut deployments: Vec<&Deployment> = observed
        .deployments
        .iter()
        .filter(|d| d.object.metadata.deletion_timestamp.is_none())
        .collect();
    deployments.sort_by_key(|d| Key::of(&d.object.metadata));

    let cluster = deployment::Cluster {
        observed,
        nodes: &nodes,
        names: NameOwners::of(&deployments),
        now,
    };
    let mut requests = Vec::new();
    for deployment in deployments {
        deployment::decide(&cluster, deployment, &mut plan, &mut requests);
    }
    queue::place(observed, requests, placer, now, &mut plan);
    plan
}
