//! Whole groups on the stock scheduler: all members get a node now, or none does.

use std::collections::BTreeMap;

use llamero_api::deployment::TopologyPolicy;

use super::{Assignment, Ledger, NoRoom, PlacementRequest, Placer, eligible};
use crate::{
    observed::Node,
    resources::{self, Resources},
};

/// Chooses nodes by free room, one pod of a group on a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

/// A node that has room. Ordered: better ones first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<'a> {
    avoided: bool,
    preempts: bool,
    /// Devices that would be left: fewer keep whole nodes free for large groups.
    devices_left: i64,
    /// Memory that would be left, negated: more spreads CPU groups.
    memory_left: i64,
    name: &'a str,
}

impl Placer for Native {
    fn place(&self, ledger: &Ledger<'_>, request: &PlacementRequest<'_>) -> Result<Vec<Assignment>, NoRoom> {
        let wanted = request.indices.len();
        let mut rejected: BTreeMap<String, usize> = BTreeMap::new();
        let mut candidates: Vec<(Option<&str>, Candidate<'_>)> = Vec::new();
        let mut total = 0usize;
        for node in ledger.nodes() {
            total += 1;
            match consider(ledger, request, node) {
                Ok(candidate) => candidates.push((domain_of(request, node), candidate)),
                Err(reason) => *rejected.entry(reason).or_default() += 1,
            }
        }
        candidates.sort();
        candidates.sort_by(|a, b| a.1.cmp(&b.1));
        let chosen = match &request.template.topology_key {
            None => first(&candidates, wanted),
            Some(key) => in_domains(ledger, request, key, &candidates, wanted),
        };
        match chosen {
            Some(mut names) => {
                // By name, so that ranks follow the order of nodes, whatever their rating was.
                names.sort_unstable();
                Ok(request
                    .indices
                    .iter()
                    .zip(names)
                    .map(|(index, node)| Assignment {
                        index: *index,
                        node: node.to_owned(),
                    })
                    .collect())
            }
            None => Err(NoRoom(explain(request, total, candidates.len(), &rejected))),
        }
    }
}

fn consider<'a>(
    ledger: &Ledger<'a>,
    request: &PlacementRequest<'_>,
    node: &'a Node,
) -> Result<Candidate<'a>, String> {
    eligible::check(request.template, node)?;
    if request.occupied.contains(&node.name) {
        return Err("already holds a pod of the group".to_owned());
    }
    let free = ledger.free(&node.name, request.priority);
    if !free.covers(&request.amounts) {
        return Err(shortage(&free, &request.amounts));
    }
    let free_now = ledger.free_now(&node.name);
    let left = |name: &str| free_now.get(name) - request.amounts.get(name);
    Ok(Candidate {
        avoided: request.avoid.contains(&node.name),
        preempts: !free_now.covers(&request.amounts),
        devices_left: request.template.accelerator_resource.as_deref().map_or(0, left),
        memory_left: -left(resources::MEMORY),
        name: &node.name,
    })
}

/// What a node has too little of. Not how much is free: that changes with every pod of others, and the text with it.
fn shortage(free: &Resources, request: &Resources) -> String {
    let short = request.iter().filter(|(name, amount)| *amount > free.get(name));
    let names: Vec<&str> = short.map(|(name, _)| name).collect();
    format!("is short of {}", names.join(" and "))
}

fn domain_of<'a>(request: &PlacementRequest<'_>, node: &'a Node) -> Option<&'a str> {
    node.labels
        .get(request.template.topology_key.as_ref()?)
        .map(String::as_str)
}

fn first<'a>(candidates: &[(Option<&'a str>, Candidate<'a>)], wanted: usize) -> Option<Vec<&'a str>> {
    (candidates.len() >= wanted).then(|| candidates.iter().take(wanted).map(|(_, c)| c.name).collect())
}

/// One domain if it has room, else several where the policy allows.
fn in_domains<'a>(
    ledger: &Ledger<'_>,
    request: &PlacementRequest<'_>,
    key: &str,
    candidates: &[(Option<&'a str>, Candidate<'a>)],
    wanted: usize,
) -> Option<Vec<&'a str>> {
    let mut domains: BTreeMap<&str, Vec<&Candidate<'a>>> = BTreeMap::new();
    for (domain, candidate) in candidates {
        if let Some(domain) = domain {
            domains.entry(domain).or_default().push(candidate);
        }
    }
    // Survivors fix the domain of a replacement.
    let home = request
        .occupied
        .iter()
        .find_map(|name| ledger.nodes().find(|node| node.name == *name)?.labels.get(key));
    let best = domains
        .iter()
        .filter(|(domain, _)| home.is_none_or(|home| home == *domain))
        .filter(|(_, members)| members.len() >= wanted)
        .min_by_key(|(domain, members)| {
            let used = members.iter().take(wanted);
            let avoided = used.clone().filter(|c| c.avoided).count();
            let preempts = used.filter(|c| c.preempts).count();
            // The tightest domain that fits keeps larger ones whole.
            (avoided, preempts, members.len(), **domain)
        });
    if let Some((_, members)) = best {
        return Some(members.iter().take(wanted).map(|c| c.name).collect());
    }
    if request.template.topology_policy == TopologyPolicy::Required || candidates.len() < wanted {
        return None;
    }
    // As few domains as possible: home first, then the roomiest.
    let size = |domain: &Option<&str>| domain.and_then(|d| domains.get(d)).map_or(0, Vec::len);
    let away = |domain: &Option<&str>| home.is_some_and(|home| *domain != Some(home.as_str()));
    let mut order: Vec<_> = candidates.iter().collect();
    order.sort_by(|(a, x), (b, y)| (away(a), size(b), a, x).cmp(&(away(b), size(a), b, y)));
    Some(order.into_iter().take(wanted).map(|(_, c)| c.name).collect())
}

fn explain(
    request: &PlacementRequest<'_>,
    total: usize,
    fitting: usize,
    rejected: &BTreeMap<String, usize>,
) -> String {
    let amounts: Vec<String> = request
        .amounts
        .iter()
        .filter(|(name, amount)| *amount > 0 && *name != resources::PODS)
        .map(|(name, amount)| format!("{} {name}", resources::show(name, amount)))
        .collect();
    let nodes = |n: usize| {
        if n == 1 {
            "1 node".to_owned()
        } else {
            format!("{n} nodes")
        }
    };
    let each = if amounts.is_empty() {
        String::new()
    } else {
        format!(" with {} each", amounts.join(", "))
    };
    let mut text = format!("needs {}{each}", nodes(request.indices.len()));
    if let (Some(key), TopologyPolicy::Required) =
        (&request.template.topology_key, request.template.topology_policy)
    {
        text.push_str(&format!(", all with one value of {key}"));
    }
    text.push_str(&format!("; of {} {fitting} fit", nodes(total)));
    let mut reasons: Vec<(&String, &usize)> = rejected.iter().collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    for (reason, count) in reasons.iter().take(4) {
        text.push_str(&format!(", {count} {reason}"));
    }
    if reasons.len() > 4 {
        let rest: usize = reasons.iter().skip(4).map(|(_, count)| **count).sum();
        text.push_str(&format!(", {rest} for other reasons"));
    }
    text
}
