//! Whole groups on the stock scheduler: all members get a node now, or none does.

use std::collections::{BTreeMap, BTreeSet};

use llamero_api::deployment::TopologyPolicy;

use super::{Assignment, Ledger, NoRoom, PlacementRequest, Placer, eligible};
use crate::{observed::Node, resources};

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
        if let Some(why) = request.is_hopeless() {
            return Err(NoRoom(why));
        }
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for node in ledger.nodes() {
            if may_have(request, node).is_ok() {
                consider(ledger, request, node, &mut candidates);
            }
        }
        let chosen = match &request.template.topology_key {
            _ if request.volumes.are_for_one_node() => on_one_node(&mut candidates, wanted),
            None => best(&mut candidates, wanted),
            Some(key) => {
                candidates.sort_unstable();
                in_domains(ledger, request, key, &candidates)
            }
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
            None => Err(NoRoom(explain(ledger, request))),
        }
    }
}

/// Pods of the group that are on a node already.
fn already_on(request: &PlacementRequest<'_>, node: &Node) -> usize {
    request.occupied.iter().filter(|name| **name == node.name).count()
}

/// Whether the node may have a pod of the request at all, if it has room.
fn may_have(request: &PlacementRequest<'_>, node: &Node) -> Result<(), String> {
    eligible::check(request.template, node)?;
    request.volumes.check(node)?;
    if !request.may_share() && already_on(request, node) > 0 {
        return Err("already hold a pod of the group".to_owned());
    }
    Ok(())
}

/// The room of a node, for as many pods as the request has and may be there.
fn consider<'a>(
    ledger: &Ledger<'a>,
    request: &PlacementRequest<'_>,
    node: &'a Node,
    candidates: &mut Vec<Candidate<'a>>,
) {
    let room = ledger.room(node, request.priority.lowest_that_stays());
    let fit = usize::try_from(room.pods(&request.amounts)).unwrap_or(usize::MAX);
    if fit == 0 {
        return;
    }
    let fit_now = usize::try_from(room.pods_now(&request.amounts)).unwrap_or(usize::MAX);
    let there = already_on(request, node);
    let most = if request.may_share() {
        request.indices.len()
    } else {
        1
    };
    for at in 0..fit.min(most) {
        let left = |name: &str| {
            let taken = request.amounts.get(name).saturating_mul(as_amount(at + 1));
            room.free_now(name).saturating_sub(taken)
        };
        candidates.push(Candidate {
            avoided: request.avoid.contains(&node.name),
            preempts: at >= fit_now,
            shares: there + at,
            devices_left: request.template.accelerator_resource.as_deref().map_or(0, left),
            memory_left: left(resources::MEMORY).saturating_neg(),
            name: &node.name,
        });
    }
}

fn as_amount(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What a node has too little of.
fn shortage<'r>(ledger: &Ledger<'_>, request: &'r PlacementRequest<'_>, node: &Node) -> Vec<&'r str> {
    let room = ledger.room(node, request.priority.lowest_that_stays());
    let amounts = request.amounts.iter();
    let short = amounts.filter(|(name, amount)| *amount > 0 && *amount > room.free(name));
    short.map(|(name, _)| name).collect()
}

/// The best of them, in no order.
fn best<'a>(candidates: &mut [Candidate<'a>], wanted: usize) -> Option<Vec<&'a str>> {
    if candidates.len() < wanted {
        return None;
    }
    if (1..candidates.len()).contains(&wanted) {
        candidates.select_nth_unstable(wanted - 1);
    }
    Some(candidates.iter().take(wanted).map(|c| c.name).collect())
}

/// All on the node where the last of them is best off.
fn on_one_node<'a>(candidates: &mut [Candidate<'a>], wanted: usize) -> Option<Vec<&'a str>> {
    candidates.sort_unstable();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    candidates.iter().find_map(|candidate| {
        let count = counts.entry(candidate.name).or_default();
        *count += 1;
        (*count >= wanted).then(|| vec![candidate.name; wanted])
    })
}

/// One domain if it has room, else several where the policy allows. Better candidates come first.
fn in_domains<'a>(
    ledger: &Ledger<'a>,
    request: &PlacementRequest<'_>,
    key: &str,
    candidates: &[Candidate<'a>],
) -> Option<Vec<&'a str>> {
    let wanted = request.indices.len();
    let domain = |name: &str| -> Option<&'a str> { Some(ledger.node(name)?.labels.get(key)?.as_str()) };
    let candidates: Vec<(Option<&str>, &Candidate<'a>)> =
        candidates.iter().map(|c| (domain(c.name), c)).collect();
    let mut domains: BTreeMap<&str, Vec<&Candidate<'a>>> = BTreeMap::new();
    for (domain, candidate) in &candidates {
        if let Some(domain) = domain {
            domains.entry(domain).or_default().push(candidate);
        }
    }
    // Survivors fix the domain of a replacement.
    let home = request.occupied.iter().find_map(|name| domain(name));
    let best = domains
        .iter()
        .filter(|(domain, _)| home.is_none_or(|home| home == **domain))
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
    let away = |domain: &Option<&str>| home.is_some_and(|home| *domain != Some(home));
    let mut order: Vec<_> = candidates.iter().collect();
    order.sort_by(|(a, x), (b, y)| (away(a), size(b), a, x).cmp(&(away(b), size(a), b, y)));
    Some(order.into_iter().take(wanted).map(|(_, c)| c.name).collect())
}

/// Kinds of obstacles that are named.
const MOST_OBSTACLES: usize = 4;

/// What is asked for, and what nodes lack of it. No amounts but those that are asked for: how many nodes have how much room changes with every
/// pod of others, and the text would be written anew each time.
fn explain(ledger: &Ledger<'_>, request: &PlacementRequest<'_>) -> String {
    let (mut reasons, mut short) = (BTreeSet::new(), BTreeSet::new());
    for node in ledger.nodes() {
        match may_have(request, node) {
            Err(why) => drop(reasons.insert(why)),
            Ok(()) => short.extend(shortage(ledger, request, node)),
        }
    }
    if !short.is_empty() {
        let names: Vec<&str> = short.into_iter().collect();
        reasons.insert(format!("are short of {}", names.join(" or ")));
    }
    let mut named: Vec<String> = reasons
        .iter()
        .take(MOST_OBSTACLES)
        .map(|why| format!("some {why}"))
        .collect();
    if reasons.len() > MOST_OBSTACLES {
        named.push("some have other obstacles".to_owned());
    }
    let few = match (ledger.nodes().next(), named.is_empty()) {
        (None, _) => "the cluster has no nodes".to_owned(),
        (Some(_), true) if request.volumes.are_for_one_node() => {
            "no node has room for all of them, and the volume of a claim is for one node at a time".to_owned()
        }
        (Some(_), true) => "there are too few".to_owned(),
        (Some(_), false) => format!("too few have room: {}", named.join(", ")),
    };
    format!("{}; {few}", wanted(request))
}

/// What is asked for.
fn wanted(request: &PlacementRequest<'_>) -> String {
    let asked = request.amounts.iter();
    let asked = asked.filter(|(name, amount)| *amount > 0 && *name != resources::PODS);
    let amounts: Vec<String> = asked
        .map(|(name, amount)| format!("{} {name}", resources::show(name, amount)))
        .collect();
    let each = if amounts.is_empty() {
        String::new()
    } else {
        format!(" with {} each", amounts.join(", "))
    };
    let mut text = match (request.may_share(), request.indices.len()) {
        (false, 1) => format!("needs 1 node{each}"),
        (false, wanted) => format!("needs {wanted} nodes{each}"),
        (true, 1) => format!("needs room for 1 pod{each}"),
        (true, wanted) => format!("needs room for {wanted} pods{each}"),
    };
    if let (Some(key), TopologyPolicy::Required) =
        (&request.template.topology_key, request.template.topology_policy)
    {
        text.push_str(&format!(", all with one value of {key}"));
    }
    text
}
