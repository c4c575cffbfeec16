//! Who may reach worker pods, and whom they may reach: a NetworkPolicy for each deployment.
//!
//! ```text
//! operator ──────── 18052 control, 18051 load ──────► ┌────────┐ ◄── 18100… ranks ── pods of the same deployment
//! operator ◄─────── 18054 enrolment, where links are authenticated
//! gateways ──────── 18051 inference ────────────────► │ worker │ ──► DNS; where weights come over the network: their port, not the cloud's metadata
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
/// Where the agent of EKS Pod Identity hands out the credentials of the pod that asks.
const POD_IDENTITY: [&str; 2] = ["169.254.170.23/32", "fd00:ec2::23/128"];
/// Port of both.
const METADATA_PORT: u16 = 80;
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
    /// Whether pods that read weights over the network may reach the address where clouds hand out the credentials of a node.
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
    let remote = Remote::of(pods.chain([(&spec.model.source, &spec.worker)]));
    let name = deployment.object.metadata.name.clone().unwrap_or_default();
    Some(policy(&deployment.object, fence(&name, network, &remote)))
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

fn fence(name: &str, network: &Network, remote: &Remote) -> NetworkPolicySpec {
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
    egress.extend(remote.rules(options.metadata_address));
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

/// Everything outside but the address where clouds hand out credentials.
fn anywhere() -> Vec<NetworkPolicyPeer> {
    let all = ["0.0.0.0/0", "::/0"].into_iter().zip(METADATA);
    all.map(|(cidr, address)| block(cidr, Some(address))).collect()
}

fn block(cidr: &str, except: Option<&str>) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.to_owned(),
            except: except.map(|address| vec![address.to_owned()]),
        }),
        ..NetworkPolicyPeer::default()
    }
}

/// What pods reach to read weights over the network.
#[derive(Debug, Default)]
struct Remote {
    /// Ports of the servers, and of the proxies on the way. Servers lead on to others, by HTTPS.
    ports: BTreeSet<u16>,
    /// Whether the cloud says who the pod is.
    has_cloud_identity: bool,
}

impl Remote {
    fn of<'a>(pods: impl Iterator<Item = (&'a Source, &'a Worker)>) -> Self {
        let mut found = Self::default();
        for (source, worker) in pods.filter(|(source, _)| source.is_remote()) {
            found.ports.insert(443);
            let hub = source
                .hugging_face
                .as_ref()
                .and_then(|hub| hub.endpoint.as_deref());
            let bucket = source.s3.as_ref().and_then(|bucket| bucket.endpoint.as_deref());
            let web = source.https.as_ref().map(|web| web.url.as_str());
            let variables = worker
                .env
                .iter()
                .filter(|variable| names_a_server(&variable.name));
            let named = variables.filter_map(|variable| variable.value.as_deref());
            let servers = [hub, bucket, web].into_iter().flatten().chain(named);
            found.ports.extend(servers.filter_map(port_of));
            found.has_cloud_identity |= source
                .s3
                .as_ref()
                .is_some_and(|bucket| bucket.credentials_secret_ref.is_none());
        }
        found
    }

    fn rules(&self, metadata: bool) -> Vec<NetworkPolicyEgressRule> {
        let metadata_port = || vec![ports("TCP", METADATA_PORT, None)];
        let mut rules = Vec::new();
        if !self.ports.is_empty() {
            let open = self.ports.iter().map(|port| ports("TCP", *port, None));
            rules.push(to(anywhere(), open.collect()));
            if metadata {
                let peers = METADATA.map(|address| block(address, None));
                rules.push(to(peers.into(), metadata_port()));
            }
        }
        if self.has_cloud_identity {
            let peers = POD_IDENTITY.map(|address| block(address, None));
            rules.push(to(peers.into(), metadata_port()));
        }
        rules
    }
}

/// Variables that hold the address of a proxy, or of a cloud's service.
fn names_a_server(variable: &str) -> bool {
    let name = variable.to_ascii_uppercase();
    matches!(name.as_str(), "HTTP_PROXY" | "HTTPS_PROXY" | "ALL_PROXY")
        || ((name.starts_with("AWS_") || name.starts_with("GOOGLE_") || name.starts_with("AZURE_"))
            && name.contains("ENDPOINT"))
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
