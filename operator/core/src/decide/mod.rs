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
    placement::{Ledger, Native, Placer, Unpinned},
    plan::{Key, Plan},
    time::{self, Millis},
};

/// Decides about the whole cluster. Total and deterministic; the contract is in the crate's README.
#[must_use]
pub fn decide(observed: &Observed, now: Millis) -> Plan {
    let mut all: Vec<&Deployment> = observed.deployments.iter().collect();
    all.sort_by_key(|d| Key::of(&d.object.metadata));
    decide_some(observed, &all, || Ledger::of(observed), now).plan
}

/// What was decided about some deployments.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    /// Steps and verdicts of all of them.
    pub(crate) plan: Plan,
    /// Of each: whether anything is to be done, and when to look again although nothing was seen to change.
    pub(crate) each: BTreeMap<Key, (bool, Option<Millis>)>,
}

/// Decides about `some` of the deployments, in their order, with the room that `ledger` tells.
pub(crate) fn decide_some<'a>(
    observed: &'a Observed,
    some: &[&'a Deployment],
    ledger: impl FnOnce() -> Ledger<'a>,
    now: Millis,
) -> Decided {
    let mut decided = Decided::default();
    let nodes: BTreeMap<&str, &Node> = observed
        .nodes
        .iter()
        .map(|node| (node.name.as_str(), node))
        .collect();
    let cluster = deployment::Cluster {
        observed,
        nodes: &nodes,
        names: NameOwners::of(observed.deployments.iter().filter(|d| stays(d))),
        now,
    };
    let mut requests = Vec::new();
    let mut next_at = None;
    for deployment in some.iter().filter(|d| stays(d)) {
        let before = decided.plan.steps.len();
        deployment::decide(&cluster, deployment, &mut decided.plan, &mut requests);
        let own = decided.plan.next_at.take();
        next_at = time::earlier(next_at, own);
        let acts = decided.plan.steps.len() > before;
        let key = Key::of(&deployment.object.metadata);
        decided.each.insert(key, (acts, own));
    }
    decided.plan.next_at = next_at;
    if !requests.is_empty() {
        let placer: &dyn Placer = match observed.settings.unpinned {
            true => &Unpinned,
            false => &Native,
        };
        queue::place(observed, requests, ledger(), placer, now, &mut decided);
    }
    decided
}

/// It is not being deleted.
fn stays(deployment: &Deployment) -> bool {
    deployment.object.metadata.deletion_timestamp.is_none()
}
