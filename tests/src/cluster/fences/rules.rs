//! From policies and pods to nftables rules.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::select::matches;

/// What rules are made from, as the API server lists it.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// NetworkPolicies.
    pub policies: Vec<Value>,
    /// Pods.
    pub pods: Vec<Value>,
    /// Namespaces.
    pub namespaces: Vec<Value>,
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Way {
    const fn rules(self) -> &'static str {
        match self {
            Self::In => "ingress",
            Self::Out => "egress",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::In => "Ingress",
            Self::Out => "Egress",
        }
    }

    const fn peers(self) -> &'static str {
        match self {
            Self::In => "from",
            Self::Out => "to",
        }
    }

    /// The address of the fenced pod in a packet, and that of the other end.
    const fn addresses(self) -> (&'static str, &'static str) {
        match self {
            Self::In => ("ip daddr", "ip saddr"),
            Self::Out => ("ip saddr", "ip daddr"),
        }
    }
}

/// Rules for `nft -f`, which replace those of an earlier call.
///
/// # Errors
/// A policy says something that is not translated.
pub fn script(objects: &Objects) -> Result<String> {
    let mut chains = String::new();
    let mut hook = String::new();
    for way in [Way::Out, Way::In] {
        let mut fenced = BTreeSet::new();
        let mut rules = BTreeSet::new();
        for policy in &objects.policies {
            translate(objects, policy, way, &mut fenced, &mut rules)
                .with_context(|| format!("the policy {} cannot be enforced", policy["metadata"]["name"]))?;
        }
        let (own, _) = way.addresses();
        if !fenced.is_empty() {
            writeln!(hook, "    {own} {} jump {}", set(&fenced), way.rules())?;
        }
        writeln!(chains, "  chain {} {{", way.rules())?;
        for rule in rules {
            writeln!(chains, "    {rule} return")?;
        }
        writeln!(chains, "    drop\n  }}")?;
    }
    Ok(format!(
        "table inet llamero_fences\ndelete table inet llamero_fences\ntable inet llamero_fences {{\n{chains}  chain forward {{\n    \
         type filter hook forward priority filter + 10; policy accept;\n    ct state established,related accept\n{hook}  }}\n}}\n"
    ))
}

/// Adds the pods that a policy fences, and what it lets through.
fn translate(
    objects: &Objects,
    policy: &Value,
    way: Way,
    fenced: &mut BTreeSet<String>,
    rules: &mut BTreeSet<String>,
) -> Result<()> {
    let spec = &policy["spec"];
    let types = spec["policyTypes"].as_array().context("it has no policyTypes")?;
    if !types.iter().any(|kind| kind == way.kind()) {
        return Ok(());
    }
    let namespace = &policy["metadata"]["namespace"];
    let (own, _) = way.addresses();
    for pod in &objects.pods {
        let Some(address) = address(pod) else { continue };
        if pod["metadata"]["namespace"] != *namespace
            || !matches(&spec["podSelector"], &pod["metadata"]["labels"])?
        {
            continue;
        }
        fenced.insert(address.to_owned());
        for rule in spec[way.rules()].as_array().into_iter().flatten() {
            let peers = peers(objects, &rule[way.peers()], namespace, way)?;
            let ports = ports(&rule["ports"], pod, way)?;
            for peer in &peers {
                for port in &ports {
                    let words = [format!("{own} {address}"), peer.clone(), port.clone()];
                    let words: Vec<&str> = words
                        .iter()
                        .map(String::as_str)
                        .filter(|word| !word.is_empty())
                        .collect();
                    rules.insert(words.join(" "));
                }
            }
        }
    }
    Ok(())
}

/// The address of a pod that has one of its own and has not ended.
fn address(pod: &Value) -> Option<&str> {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let own = pod["spec"]["hostNetwork"] != true && !ended;
    pod["status"]["podIP"].as_str().filter(|_| own)
}

/// Who is at the other end, as matches of its address; an empty match is everybody.
fn peers(objects: &Objects, peers: &Value, namespace: &Value, way: Way) -> Result<Vec<String>> {
    let peers = peers.as_array().map(Vec::as_slice).unwrap_or_default();
    if peers.is_empty() {
        return Ok(vec![String::new()]);
    }
    let (_, other) = way.addresses();
    let mut found = Vec::new();
    for peer in peers {
        if peer["ipBlock"].is_object() {
            found.extend(block(&peer["ipBlock"], other)?);
            continue;
        }
        let mut pods = BTreeSet::new();
        for pod in &objects.pods {
            if let Some(address) = address(pod)
                && means(objects, peer, pod, namespace)?
            {
                pods.insert(address.to_owned());
            }
        }
        if !pods.is_empty() {
            found.push(format!("{other} {}", set(&pods)));
        }
    }
    Ok(found)
}

/// Whether a peer is this pod.
fn means(objects: &Objects, peer: &Value, pod: &Value, namespace: &Value) -> Result<bool> {
    let home = &pod["metadata"]["namespace"];
    let in_namespace = match peer.get("namespaceSelector") {
        None => home == namespace,
        Some(selector) => {
            let mut namespaces = objects.namespaces.iter();
            let object = namespaces.find(|object| object["metadata"]["name"] == *home);
            let labels = object.map_or(&Value::Null, |object| &object["metadata"]["labels"]);
            matches(selector, labels)?
        }
    };
    Ok(in_namespace && matches(&peer["podSelector"], &pod["metadata"]["labels"])?)
}

/// The cluster has no IPv6, so blocks of it match nothing.
fn block(block: &Value, other: &str) -> Result<Option<String>> {
    let cidr = block["cidr"].as_str().context("an ipBlock has no cidr")?;
    if cidr.contains(':') {
        return Ok(None);
    }
    let except = block["except"].as_array().map(Vec::as_slice).unwrap_or_default();
    let except: BTreeSet<String> = except
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    Ok(Some(match except.is_empty() {
        true => format!("{other} {cidr}"),
        false => format!("{other} {cidr} {other} != {}", set(&except)),
    }))
}

/// Ports as matches; an empty match is all of them.
fn ports(ports: &Value, pod: &Value, way: Way) -> Result<Vec<String>> {
    let ports = ports.as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() {
        return Ok(vec![String::new()]);
    }
    let mut found = Vec::new();
    for port in ports {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_ascii_lowercase();
        let first = match &port["port"] {
            Value::Null => {
                found.push(format!("meta l4proto {protocol}"));
                continue;
            }
            Value::String(name) if way == Way::In => match named(pod, name) {
                Some(number) => number,
                None => continue,
            },
            Value::String(name) => bail!("{name} is a port of the other end, by its name"),
            number => number.as_i64().context("a port is no number")?,
        };
        let last = port["endPort"]
            .as_i64()
            .map(|last| format!("-{last}"))
            .unwrap_or_default();
        found.push(format!("{protocol} dport {first}{last}"));
    }
    Ok(found)
}

fn named(pod: &Value, name: &str) -> Option<i64> {
    let containers = pod["spec"]["containers"].as_array()?.iter();
    let mut ports = containers
        .filter_map(|container| container["ports"].as_array())
        .flatten();
    ports.find(|port| port["name"] == name)?["containerPort"].as_i64()
}

fn set(addresses: &BTreeSet<String>) -> String {
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    format!("{{ {} }}", addresses.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, app: &str, address: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": app, "labels": {"app": app}}, "status": {"phase": "Running", "podIP": address},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8000}]}]}})
    }

    fn objects(spec: Value) -> Objects {
        let namespace =
            |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
        let mut host = pod("a", "worker", "10.0.0.9");
        host["spec"]["hostNetwork"] = json!(true);
        Objects {
            policies: vec![json!({"metadata": {"namespace": "a", "name": "p"}, "spec": spec})],
            pods: vec![
                pod("a", "worker", "10.0.0.1"),
                pod("a", "peer", "10.0.0.2"),
                pod("b", "peer", "10.0.0.3"),
                host,
            ],
            namespaces: vec![namespace("a"), namespace("b")],
        }
    }

    /// Rules that let through, of both chains.
    fn allowed(spec: Value) -> Vec<String> {
        let text = script(&objects(spec)).unwrap();
        let lines = text
            .lines()
            .filter_map(|line| line.trim().strip_suffix(" return"));
        lines.map(str::to_owned).collect()
    }

    fn ingress(from: Value, ports: Value) -> Value {
        json!({"podSelector": {"matchLabels": {"app": "worker"}}, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]})
    }

    #[test]
    fn peers_are_pods_of_the_same_namespace_or_of_those_that_are_named() {
        let peer = json!({"podSelector": {"matchLabels": {"app": "peer"}}});
        let port = json!([{"port": 18100, "endPort": 18355}]);
        assert_eq!(
            allowed(ingress(json!([peer]), port.clone())),
            ["ip daddr 10.0.0.1 ip saddr { 10.0.0.2 } tcp dport 18100-18355"]
        );
        let mut abroad = peer.clone();
        abroad["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": "b"}});
        assert_eq!(
            allowed(ingress(json!([abroad]), port)),
            ["ip daddr 10.0.0.1 ip saddr { 10.0.0.3 } tcp dport 18100-18355"]
        );
    }

    #[test]
    fn names_of_ports_are_those_of_the_fenced_pod() {
        let ports = json!([{"port": "http"}, {"port": 53, "protocol": "UDP"}, {"port": "unknown"}]);
        assert_eq!(
            allowed(ingress(json!(null), ports)),
            [
                "ip daddr 10.0.0.1 tcp dport 8000",
                "ip daddr 10.0.0.1 udp dport 53"
            ]
        );
        let egress =
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": "http"}]}]});
        let error = format!("{:#}", script(&objects(egress)).unwrap_err());
        assert!(error.contains("by its name"), "{error}");
    }

    #[test]
    fn blocks_have_holes() {
        let block = json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}, {"ipBlock": {"cidr": "::/0"}}]);
        let spec = json!({"podSelector": {"matchLabels": {"app": "worker"}}, "policyTypes": ["Egress"], "egress": [{"to": block, "ports": [{"port": 443}]}]});
        assert_eq!(
            allowed(spec),
            ["ip saddr 10.0.0.1 ip daddr 0.0.0.0/0 ip daddr != { 169.254.169.254/32 } tcp dport 443"]
        );
    }

    #[test]
    fn only_fenced_pods_are_asked_and_nothing_is_let_through_that_no_rule_names() {
        let nobody = json!({"podSelector": {"matchLabels": {"app": "worker"}}, "policyTypes": ["Ingress"]});
        let text = script(&objects(nobody.clone())).unwrap();
        assert!(text.contains("ip daddr { 10.0.0.1 } jump ingress"), "{text}");
        assert!(
            !text.contains("jump egress") && !text.contains("return"),
            "{text}"
        );
        assert_eq!(allowed(nobody), Vec::<String>::new());
        // A peer that no pod is lets nobody through, not everybody.
        let absent = json!([{"podSelector": {"matchLabels": {"app": "absent"}}}]);
        assert_eq!(allowed(ingress(absent, json!(null))), Vec::<String>::new());
    }
}
