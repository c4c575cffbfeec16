//! Whole groups on the stock scheduler: all members get a node now, or none does.

use std::collections::BTreeMap;

use llamero_api::deployment::{OnePodPerNode, TopologyPolicy};

use super::{Assignment, Ledger, NoRoom, PlacementRequest, Placer, eligible};
use crate::{
    observed::Node,
    resources::{self, Resources},
};

/// Chooses nodes by free room: one pod of a group on a node, or, where the group allows it, several when there are no more nodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Native;

/// Room for one pod on a node. Ordered: better ones first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<'a> {
    avoided: bool,
    preempts: bool,
    /// Pods of the group that would be there before it.
    shares: usize,
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
        let (mut total, mut fitting) = (0usize, 0usize);
        for node in ledger.nodes() {
            total += 1;
            match consider(ledger, request, node) {
                Ok(room) => {
                    fitting += 1;
                    let domain = domain_of(request, node);
                    candidates.extend(room.into_iter().map(|candidate| (domain, candidate)));
                }
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
            None => Err(NoRoom(explain(
                request,
                total,
                fitting,
                candidates.len(),
                &rejected,
            ))),
        }
    }
}

/// Whether pods of the group may be on one node.
fn may_share(request: &PlacementRequest<'_>) -> bool {
    request.template.one_pod_per_node == Some(OnePodPerNode::Preferred)
}

/// The room of a node, for as many pods as the request has and may be there.
fn consider<'a>(
    ledger: &Ledger<'a>,
    request: &PlacementRequest<'_>,
    node: &'a Node,
) -> Result<Vec<Candidate<'a>>, String> {
    eligible::check(request.template, node)?;
    let there = request.occupied.iter().filter(|name| **name == node.name).count();
    if there > 0 && !may_share(request) {
        return Err("already holds a pod of the group".to_owned());
    }
    let most = if may_share(request) {
        request.indices.len()
    } else {
        1
    };
    let mut free = ledger.free(&node.name, request.priority);
    let mut free_now = ledger.free_now(&node.name);
    let mut room = Vec::new();
    while room.len() < most && free.covers(&request.amounts) {
        let left = |name: &str| free_now.get(name) - request.amounts.get(name);
        room.push(Candidate {
            avoided: request.avoid.contains(&node.name),
            preempts: !free_now.covers(&request.amounts),
            shares: there + room.len(),
            devices_left: request.template.accelerator_resource.as_deref().map_or(0, left),
            memory_left: -left(resources::MEMORY),
            name: &node.name,
        });
        free.subtract(&request.amounts);
        free_now.subtract(&request.amounts);
    }
    if room.is_empty() {
        return Err(shortage(&free, &request.amounts));
    }
    Ok(room)
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
            let preempts = used.clone().filter(|c| c.preempts).count();
            let shares: usize = used.map(|c| c.shares).sum();
            // The tightest domain that fits keeps larger ones whole.
            (avoided, preempts, shares, members.len(), **domain)
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
    room: usize,
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
    let wanted = request.indices.len();
    let mut text = match (may_share(request), wanted) {
        (false, _) => format!("needs {}{each}", nodes(wanted)),
        (true, 1) => format!("needs room for 1 pod{each}"),
        (true, _) => format!("needs room for {wanted} pods{each}"),
    };
    if let (Some(key), TopologyPolicy::Required) =
        (&request.template.topology_key, request.template.topology_policy)
    {
        text.push_str(&format!(", all with one value of {key}"));
    }
    match may_share(request) {
        false => text.push_str(&format!("; of {} {fitting} fit", nodes(total))),
        true => text.push_str(&format!("; of {} {fitting} have room, for {room}", nodes(total))),
    }
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
