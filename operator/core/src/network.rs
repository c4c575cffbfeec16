//! Who may reach worker pods, and whom they may reach: a NetworkPolicy for each deployment.
//!
//! ```text
//! operator ──────── 18052 control, 18051 load ──────► ┌────────┐ ◄── 18100… ranks ── pods of the same deployment
//! operator ◄─────── 18054 enrolment, where links are authenticated
//! gateways ──────── 18051 inference ────────────────► │ worker │ ──► DNS; where weights come from a Hub: its port, not the cloud's metadata
//! whoever scrapes ─ 8080 metrics ───────────────────► └────────┘
//! ```
//! It is a fence of the network plug-in, by labels: who may label pods of the namespace may stand inside. Between ranks the key of the group
//! decides.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use llamero_api::{
    LlamaDeployment,
    deployment::{Source, Worker},
    labels,
};
use serde::Deserialize;

use crate::{children::owner, observed::Deployment, revision};

/// Ports that ranks of one pod may listen on: as many as a pod may have ranks.
const RANK_PORTS: u16 = 256;
/// Where clouds hand out the credentials of a node, over IPv4 and IPv6.
const METADATA: [&str; 2] = ["169.254.169.254/32", "fd00:ec2::254/128"];
/// Label that the API server gives every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What an installation says about policies of worker pods.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkOptions {
    /// Whether there are any.
    pub enabled: bool,
    /// Whether they restrict what the pods reach.
    pub restrict_egress: bool,
    /// Who may read metrics; empty: everybody.
    pub metrics_from: Vec<NetworkPolicyPeer>,
    /// Who may ask the leaders, beside gateways and operator.
    pub inference_from: Vec<NetworkPolicyPeer>,
    /// What pods may reach beside what they need.
    pub egress: Vec<NetworkPolicyEgressRule>,
    /// Whether weights may come from the address where clouds hand out credentials.
    pub metadata_address: bool,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            restrict_egress: true,
            metrics_from: Vec::new(),
            inference_from: Vec::new(),
            egress: Vec::new(),
            metadata_address: false,
        }
    }
}

/// Pods by namespace and labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Their namespace.
    pub namespace: String,
    /// Their labels.
    pub labels: BTreeMap<String, String>,
}

impl Pods {
    fn peer(&self) -> NetworkPolicyPeer {
        let namespace = [(NAMESPACE_NAME.to_owned(), self.namespace.clone())];
        NetworkPolicyPeer {
            namespace_selector: Some(selector(namespace.into())),
            pod_selector: Some(selector(self.labels.clone())),
            ip_block: None,
        }
    }
}

/// How worker pods are fenced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Network {
    /// What the installation says.
    pub options: NetworkOptions,
    /// The operator's pods.
    pub operator: Pods,
    /// The gateways' pods.
    pub gateways: Pods,
    /// Port where the operator lets pods enrol, if it does.
    pub enrolment: Option<u16>,
}

/// Name of the policy of a deployment.
#[must_use]
pub fn policy_name(deployment: &str) -> String {
    format!("{deployment}-workers")
}

/// The policy as it should be. Nothing where there are to be none and none is there; where one is there from before, one that allows
/// everything, since it is never deleted.
#[must_use]
pub fn of_deployment(deployment: &Deployment, network: &Network) -> Option<NetworkPolicy> {
    if !network.options.enabled {
        let there = deployment.network_policy.is_some();
        return there.then(|| policy(&deployment.object, open()));
    }
    let spec = &deployment.object.spec;
    let groups = deployment.groups.iter().map(|group| &group.object.spec.template);
    let pods = groups.map(|template| (&template.source, &template.worker));
    let ports = remote_ports(pods.chain([(&spec.model.source, &spec.worker)]));
    let name = deployment.object.metadata.name.clone().unwrap_or_default();
    Some(policy(&deployment.object, fence(&name, network, &ports)))
}

fn policy(object: &LlamaDeployment, spec: NetworkPolicySpec) -> NetworkPolicy {
    let name = object.metadata.name.clone().unwrap_or_default();
    let spec = NetworkPolicySpec {
        // Pods that read headers too.
        pod_selector: Some(of_deployment_named(&name)),
        ..spec
    };
    // A peer that is taken away leaves no trace among the fields that are ours, but means another digest.
    let digest = revision::hex(&serde_json::json!(&spec), 8);
    NetworkPolicy {
        metadata: ObjectMeta {
            annotations: Some([(labels::SETTINGS.to_owned(), digest)].into()),
            name: Some(policy_name(&name)),
            namespace: object.metadata.namespace.clone(),
            labels: Some(labels::common(&name, labels::WORKER_APP)),
            owner_references: Some(vec![owner("LlamaDeployment", &object.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    }
}

fn of_deployment_named(name: &str) -> LabelSelector {
    selector([(labels::DEPLOYMENT.to_owned(), name.to_owned())].into())
}

fn selector(labels: BTreeMap<String, String>) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        match_expressions: None,
    }
}

fn open() -> NetworkPolicySpec {
    NetworkPolicySpec {
        ingress: Some(vec![NetworkPolicyIngressRule::default()]),
        egress: Some(vec![NetworkPolicyEgressRule::default()]),
        policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
        ..NetworkPolicySpec::default()
    }
}

fn fence(name: &str, network: &Network, remote: &BTreeSet<u16>) -> NetworkPolicySpec {
    let options = &network.options;
    let own = NetworkPolicyPeer {
        pod_selector: Some(of_deployment_named(name)),
        ..NetworkPolicyPeer::default()
    };
    let (operator, gateways) = (network.operator.peer(), network.gateways.peer());
    let ranks = || {
        vec![ports(
            "TCP",
            labels::RANK_PORT,
            Some(labels::RANK_PORT + RANK_PORTS - 1),
        )]
    };
    let mut inference = vec![gateways, operator.clone()];
    inference.extend(options.inference_from.iter().cloned());
    let ingress = vec![
        from(vec![own.clone()], ranks()),
        from(inference, vec![ports("TCP", labels::INFERENCE_PORT, None)]),
        from(
            vec![operator.clone()],
            vec![ports("TCP", labels::CONTROL_PORT, None)],
        ),
        from(
            options.metrics_from.clone(),
            vec![ports("TCP", labels::HEALTH_PORT, None)],
        ),
    ];
    let mut types = vec!["Ingress".to_owned()];
    let mut egress = vec![
        to(vec![own], ranks()),
        to(vec![], vec![ports("UDP", 53, None), ports("TCP", 53, None)]),
    ];
    if !remote.is_empty() {
        let remote = remote.iter().map(|port| ports("TCP", *port, None));
        egress.push(to(anywhere(options.metadata_address), remote.collect()));
    }
    if let Some(port) = network.enrolment {
        egress.push(to(vec![operator], vec![ports("TCP", port, None)]));
    }
    egress.extend(options.egress.iter().cloned());
    if options.restrict_egress {
        types.push("Egress".to_owned());
    }
    NetworkPolicySpec {
        ingress: Some(ingress),
        egress: options.restrict_egress.then_some(egress),
        policy_types: Some(types),
        ..NetworkPolicySpec::default()
    }
}

/// Peers that are absent mean everybody.
fn from(peers: Vec<NetworkPolicyPeer>, ports: Vec<NetworkPolicyPort>) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: Some(peers).filter(|peers| !peers.is_empty()),
        ports: Some(ports),
    }
}

fn to(peers: Vec<NetworkPolicyPeer>, ports: Vec<NetworkPolicyPort>) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule {
        to: Some(peers).filter(|peers| !peers.is_empty()),
        ports: Some(ports),
    }
}

fn ports(protocol: &str, first: u16, last: Option<u16>) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(i32::from(first))),
        end_port: last.map(i32::from),
    }
}

/// Everything outside, with or without the address where clouds hand out credentials.
fn anywhere(metadata: bool) -> Vec<NetworkPolicyPeer> {
    let all = ["0.0.0.0/0", "::/0"];
    all.into_iter()
        .zip(METADATA)
        .map(|(cidr, address)| NetworkPolicyPeer {
            ip_block: Some(IPBlock {
                cidr: cidr.to_owned(),
                except: (!metadata).then(|| vec![address.to_owned()]),
            }),
            ..NetworkPolicyPeer::default()
        })
        .collect()
}

/// Ports of the Hubs that weights come from, and of the proxies on the way. A Hub leads on to other servers, by HTTPS.
fn remote_ports<'a>(pods: impl Iterator<Item = (&'a Source, &'a Worker)>) -> BTreeSet<u16> {
    let mut found = BTreeSet::new();
    for (source, worker) in pods {
        let Some(hub) = &source.hugging_face else { continue };
        found.insert(443);
        found.extend(hub.endpoint.as_deref().and_then(port_of));
        let proxies = worker.env.iter().filter(|variable| {
            matches!(
                variable.name.to_ascii_uppercase().as_str(),
                "HTTP_PROXY" | "HTTPS_PROXY" | "ALL_PROXY"
            )
        });
        found.extend(proxies.filter_map(|variable| port_of(variable.value.as_deref()?)));
    }
    found
}

/// The port of a URL: the one that stands in it, else the scheme's.
fn port_of(url: &str) -> Option<u16> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let named = host.rsplit_once(':').filter(|(_, port)| !port.contains(']'));
    match named {
        Some((_, port)) => port.parse().ok(),
        None if scheme == "https" => Some(443),
        None => Some(80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_addresses() {
        for (url, port) in [
            ("https://huggingface.co", Some(443)),
            ("http://mirror:8080/hub", Some(8080)),
            ("http://user:word@proxy:3128", Some(3128)),
            ("http://[fd00::1]", Some(80)),
            ("https://[fd00::1]:8443/", Some(8443)),
            ("proxy:3128", Some(3128)),
            ("http://x:99999", None),
        ] {
            assert_eq!(port_of(url), port, "{url}");
        }
    }

    #[test]
    fn options_are_on_by_default_and_mistakes_are_refused() {
        let read = |text: &str| serde_json::from_str::<NetworkOptions>(text);
        assert_eq!(read("{}").unwrap(), NetworkOptions::default());
        assert!(NetworkOptions::default().enabled && NetworkOptions::default().restrict_egress);
        assert!(!read(r#"{"enabled": false}"#).unwrap().enabled);
        assert!(read(r#"{"enabeld": false}"#).is_err());
        let peer = read(r#"{"metricsFrom": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]}"#).unwrap();
        assert!(peer.metrics_from[0].namespace_selector.is_some());
    }
}
