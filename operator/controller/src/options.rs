//! Command line and environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use llamero_api::{deployment::PullPolicy, group::Transport, labels, namespaces};
use llamero_core::{
    network::{Network, NetworkOptions, Pods},
    observed::{Enrolment, Settings},
    policy::Policy,
};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Runs LlamaDeployments on Kubernetes: places whole groups of worker pods and keeps them serving.
#[derive(Clone, Debug, Parser)]
#[command(name = "llamero-operator", version)]
pub struct Options {
    /// Only serve LlamaDeployments of these namespaces, comma-separated; at most 64. Default: all namespaces.
    #[arg(long, env = "LLAMERO_WATCH_NAMESPACES", value_delimiter = ',', value_parser = namespaces::name)]
    pub watch_namespaces: Vec<String>,

    /// Namespace of the leader lease.
    #[arg(long, env = "LLAMERO_LEASE_NAMESPACE", default_value = "llamero-system")]
    pub lease_namespace: String,

    /// Name of the leader lease.
    #[arg(long, env = "LLAMERO_LEASE_NAME", default_value = "llamero-operator")]
    pub lease_name: String,

    /// How long another replica waits before it takes over from a holder that no longer renews, in seconds.
    #[arg(long, env = "LLAMERO_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=3600))]
    pub lease_seconds: u32,

    /// Name of this process in the lease; must differ between replicas. Default: host name and process id.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Image of worker pods whose LlamaDeployment has no spec.worker.image.
    #[arg(long, env = "LLAMERO_WORKER_IMAGE", default_value = concat!("llamero-worker:", env!("CARGO_PKG_VERSION")))]
    pub worker_image: String,

    /// Image of this program, which placeholders run: pods that hold room while nodes are asked for (placement.whenFull: Provision).
    #[arg(long, env = "LLAMERO_PLACEHOLDER_IMAGE", default_value = concat!("llamero:", env!("CARGO_PKG_VERSION")))]
    pub placeholder_image: String,

    /// Be a placeholder: do nothing until told to end.
    #[arg(long, hide = true)]
    pub placeholder: bool,

    /// When the worker image is pulled, where the LlamaDeployment does not say. Default: as the kubelet does.
    #[arg(long, env = "LLAMERO_WORKER_PULL_POLICY", value_parser = pull_policy)]
    pub worker_pull_policy: Option<PullPolicy>,

    /// Secrets with registry credentials for worker pods, in the namespace of each LlamaDeployment, comma-separated.
    #[arg(long, env = "LLAMERO_WORKER_PULL_SECRETS", value_delimiter = ',')]
    pub worker_pull_secrets: Vec<String>,

    /// Secret in the namespace of the lease from which the keys of all groups are derived; it is made when it is not there.
    #[arg(long, env = "LLAMERO_FORM_KEYS_SECRET", default_value = "llamero-form-keys")]
    pub form_keys_secret: String,

    /// Whether links to pods of new groups, and to gateways, are authenticated on both sides by certificates that this operator gives out.
    #[arg(long, env = "LLAMERO_MTLS", default_value_t = false, action = clap::ArgAction::Set)]
    pub mtls: bool,

    /// Whether certificates are given out, to groups whose links are authenticated already and to gateways, while links of new groups are plain text.
    /// With --mtls they always are.
    #[arg(long, env = "LLAMERO_CERTIFICATES", default_value_t = false, action = clap::ArgAction::Set)]
    pub certificates: bool,

    /// Secret in the namespace of the lease with the certificate authority, in cert-manager's layout; it is made when it is not there.
    /// What is in use is kept beside it, in the Secret of this name with `-state` behind it.
    #[arg(long, env = "LLAMERO_CA_SECRET", default_value = "llamero-ca")]
    pub ca_secret: String,

    /// Trust domain of all identities.
    #[arg(long, env = "LLAMERO_TRUST_DOMAIN", default_value = "cluster.local", value_parser = name)]
    pub trust_domain: String,

    /// How long certificates live; they are renewed after half of that.
    #[arg(long, env = "LLAMERO_CERTIFICATE_LIFE", default_value = "24h", value_parser = certificate_life)]
    pub certificate_life: Duration,

    /// Where pods reach the enrolment of this operator. Default: the Service `llamero-operator` in the namespace of the lease.
    #[arg(long, env = "LLAMERO_ENROLMENT_ADDRESS", value_name = "HOST:PORT")]
    pub enrolment_address: Option<String>,

    /// Address where pods enrol.
    #[arg(long, env = "LLAMERO_ENROLMENT_LISTEN", default_value = "[::]:18054")]
    pub enrolment_listen: SocketAddr,

    /// Service account of the gateway pods.
    #[arg(
        long,
        env = "LLAMERO_GATEWAY_SERVICE_ACCOUNT",
        default_value = "llamero-gateway"
    )]
    pub gateway_service_account: String,

    /// Keys of taints that say that a node is being taken away, comma-separated. Cordoned nodes always count.
    #[arg(
        long,
        env = "LLAMERO_DISRUPTION_TAINTS",
        value_delimiter = ',',
        default_value = "karpenter.sh/disrupted,ToBeDeletedByClusterAutoscaler,aws-node-termination-handler/scheduled-maintenance,aws-node-termination-handler/asg-lifecycle-termination,aws-node-termination-handler/rebalance-recommendation"
    )]
    pub disruption_taints: Vec<String>,

    /// Keys of taints that say that a node goes within two minutes: its members are replaced at once.
    #[arg(
        long,
        env = "LLAMERO_URGENT_TAINTS",
        value_delimiter = ',',
        default_value = "aws-node-termination-handler/spot-itn,cloud.google.com/impending-node-termination,node.kubernetes.io/out-of-service"
    )]
    pub urgent_taints: Vec<String>,

    /// Images that LlamaDeployments may name, comma-separated; a name, or its beginning followed by `*`. The worker image is always allowed.
    #[arg(
        long,
        env = "LLAMERO_ALLOWED_IMAGES",
        value_delimiter = ',',
        default_value = "*"
    )]
    pub allowed_images: Vec<String>,

    /// Directories of nodes that LlamaDeployments may read weights from, with what lies in them, comma-separated. Default: none.
    #[arg(long, env = "LLAMERO_ALLOWED_HOST_PATHS", value_delimiter = ',')]
    pub allowed_host_paths: Vec<String>,

    /// Service accounts that worker pods may have, beside `default`, comma-separated, as patterns.
    #[arg(
        long,
        env = "LLAMERO_ALLOWED_SERVICE_ACCOUNTS",
        value_delimiter = ',',
        default_value = "*"
    )]
    pub allowed_service_accounts: Vec<String>,

    /// Priority classes that worker pods may have, comma-separated, as patterns. `*` does not mean those of the system.
    #[arg(
        long,
        env = "LLAMERO_ALLOWED_PRIORITY_CLASSES",
        value_delimiter = ',',
        default_value = "*"
    )]
    pub allowed_priority_classes: Vec<String>,

    /// NetworkPolicies of worker pods, as JSON: `{"enabled": true, "restrictEgress": true, "metricsFrom": [], "inferenceFrom": [], "egress": [],
    /// "metadataAddress": false}`; peers and rules as a NetworkPolicy has them. What is left out is as here.
    #[arg(long, env = "LLAMERO_NETWORK_POLICY", value_name = "JSON", default_value = "{}", value_parser = network_options)]
    pub network_policy: NetworkOptions,

    /// Value of the label `app.kubernetes.io/name` of the operator's own pods.
    #[arg(long, env = "LLAMERO_OPERATOR_APP", default_value = "llamero-operator")]
    pub operator_app: String,

    /// Label selector (equalities, comma-separated) of the gateway pods that report demand.
    #[arg(
        long,
        env = "LLAMERO_GATEWAY_SELECTOR",
        default_value = "app.kubernetes.io/name=llamero-gateway"
    )]
    pub gateway_selector: LabelSelector,

    /// Namespace of the gateway pods. Default: the namespace of the lease.
    #[arg(long, env = "LLAMERO_GATEWAY_NAMESPACE")]
    pub gateway_namespace: Option<String>,

    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "LLAMERO_HTTP_ADDRESS", default_value = "[::]:8080")]
    pub http_address: SocketAddr,

    /// File with a filter like LLAMERO_LOG's, which it replaces as soon as the file changes: a mounted ConfigMap.
    #[arg(long, env = "LLAMERO_LOG_FILTER_FILE", value_name = "FILE")]
    pub log_filter_file: Option<PathBuf>,

    /// Whether the lease holder brings the CustomResourceDefinitions to its release at start. Never back from a newer one.
    #[arg(long, env = "LLAMERO_MANAGE_CRDS", default_value_t = true, action = clap::ArgAction::Set)]
    pub manage_crds: bool,

    /// How log lines are written.
    #[arg(long, env = "LLAMERO_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Why nobody can enrol at an operator with the usual flags.
const OFF: &str = "this operator was started with neither --mtls nor --certificates: set security.certificates again, or set spec.rollout.restartedAt so that groups with plain \
                   text take their place";

impl Options {
    /// Name of this process in the lease.
    #[must_use]
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}-{}", host.trim(), std::process::id())
        })
    }

    /// How long a lease lasts without renewal.
    #[must_use]
    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(u64::from(self.lease_seconds))
    }

    /// What pods are made with where their deployment says nothing.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            worker_image: self.worker_image.clone(),
            placeholder_image: self.placeholder_image.clone(),
            pull_policy: self.worker_pull_policy,
            definitions: None,
            disruption_taints: self.disruption_taints.clone(),
            urgent_taints: self.urgent_taints.clone(),
            policy: self.policy(),
            network: Some(self.network()),
            transport: if self.mtls {
                Transport::Mutual
            } else {
                Transport::Plain
            },
            // Known once the API server has been asked.
            unpinned: false,
            // Known once there is an authority.
            enrolment: None,
            unenrollable: (!self.gives_out_certificates()).then(|| OFF.to_owned()),
            pull_secrets: self
                .worker_pull_secrets
                .iter()
                .filter(|name| !name.is_empty())
                .cloned()
                .collect(),
        }
    }

    /// Whether pods can enrol.
    #[must_use]
    pub const fn gives_out_certificates(&self) -> bool {
        self.mtls || self.certificates
    }

    /// How worker pods are fenced.
    fn network(&self) -> Network {
        let operator = [(labels::APP_NAME.to_owned(), self.operator_app.clone())];
        Network {
            options: self.network_policy.clone(),
            operator: Pods {
                namespace: self.lease_namespace.clone(),
                labels: operator.into(),
            },
            gateways: Pods {
                namespace: self.gateway_namespace().to_owned(),
                labels: self.gateway_selector.0.iter().cloned().collect(),
            },
            enrolment: self
                .gives_out_certificates()
                .then_some(self.enrolment_listen.port()),
        }
    }

    /// Where pods enrol, for an authority with these roots in PEM.
    #[must_use]
    pub fn enrolment(&self, roots: &str) -> Enrolment {
        let usual = || {
            format!(
                "llamero-operator.{}.svc:{}",
                self.lease_namespace,
                self.enrolment_listen.port()
            )
        };
        Enrolment {
            address: self.enrolment_address.clone().unwrap_or_else(usual),
            installation: self.lease_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            roots: roots.to_owned(),
        }
    }

    /// What tenants may ask for. An empty word between commas, which a chart writes for an empty list, allows nothing.
    fn policy(&self) -> Policy {
        let named = |list: &[String]| list.iter().filter(|word| !word.is_empty()).cloned().collect();
        Policy {
            images: named(&self.allowed_images),
            host_paths: named(&self.allowed_host_paths),
            service_accounts: named(&self.allowed_service_accounts),
            priority_classes: named(&self.allowed_priority_classes),
            authenticated: self.mtls,
        }
    }

    /// Namespace whose gateway pods are believed. Labels alone are not enough: anyone who may create a pod may label it.
    #[must_use]
    pub fn gateway_namespace(&self) -> &str {
        self.gateway_namespace.as_deref().unwrap_or(&self.lease_namespace)
    }
}

fn network_options(text: &str) -> Result<NetworkOptions, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no such JSON: {error}"))
}

fn name(text: &str) -> Result<String, String> {
    if llamero_identity::spiffe::is_name(text) {
        return Ok(text.to_owned());
    }
    Err("give small letters, digits, - and ., such as cluster.local".to_owned())
}

fn certificate_life(text: &str) -> Result<Duration, String> {
    let life = llamero_settings::duration::parse(text).map_err(|error| error.to_string())?;
    let bounds = Duration::from_secs(10)..=Duration::from_secs(90 * 86_400);
    if bounds.contains(&life) {
        return Ok(life);
    }
    Err("give between 10s and 2160h".to_owned())
}

fn pull_policy(text: &str) -> Result<PullPolicy, String> {
    let known = [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never];
    known
        .into_iter()
        .find(|policy| policy.as_str() == text)
        .ok_or_else(|| format!("{text:?} is not Always, IfNotPresent or Never"))
}

/// A conjunction of `label=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, String)>);

/// A label selector that is not a list of equalities.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not label=value; write for example app.kubernetes.io/name=llamero-gateway")]
pub struct BadSelector(String);

impl std::str::FromStr for LabelSelector {
    type Err = BadSelector;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',')
            .map(|part| match part.trim().split_once('=') {
                Some((key, value)) if !key.is_empty() && !key.ends_with('!') => Ok((
                    key.trim().to_owned(),
                    value.trim_start_matches('=').trim().to_owned(),
                )),
                _ => Err(BadSelector(part.to_owned())),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl LabelSelector {
    /// Whether all the labels are there with the value asked for.
    #[must_use]
    pub fn matches(&self, labels: Option<&std::collections::BTreeMap<String, String>>) -> bool {
        self.0
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selector_is_a_conjunction_of_equalities() {
        let selector: LabelSelector = "a=1, b==2".parse().unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        assert!(selector.matches(Some(&labels(&[("a", "1"), ("b", "2"), ("c", "3")]))));
        assert!(!selector.matches(Some(&labels(&[("a", "1")]))));
        assert!(!selector.matches(None));
        assert!("a".parse::<LabelSelector>().is_err());
        assert!("a!=1".parse::<LabelSelector>().is_err());
    }

    #[test]
    fn namespaces_are_served_as_a_chart_writes_them() {
        let served = |words: &str| {
            let options = Options::try_parse_from(["llamero-operator", words]);
            options.map(|options| namespaces::served(&options.watch_namespaces).unwrap())
        };
        assert_eq!(served("--watch-namespaces=").unwrap(), None);
        let both = ["a".to_owned(), "b".to_owned()];
        assert_eq!(served("--watch-namespaces=b,a").unwrap(), Some(both.into()));
        assert!(served("--watch-namespaces=B").is_err());
    }

    #[test]
    fn certificates_are_given_out_while_only_new_groups_have_plain_text() {
        let parsed = |words: &[&str]| {
            let words = ["llamero-operator"].iter().chain(words);
            Options::try_parse_from(words).unwrap()
        };
        let settings = parsed(&["--mtls=false", "--certificates=true"]).settings();
        assert_eq!(
            (settings.transport, settings.unenrollable),
            (Transport::Plain, None)
        );
        assert_eq!(settings.network.unwrap().enrolment, Some(18054));
        let off = parsed(&[]).settings().unenrollable.unwrap();
        assert!(
            off.contains("security.certificates") && off.contains("restartedAt"),
            "{off}"
        );
        let on = parsed(&["--mtls=true"]).settings();
        assert_eq!((on.transport, on.unenrollable), (Transport::Mutual, None));
    }

    #[test]
    fn flags_parse_with_defaults() {
        let options =
            Options::try_parse_from(["llamero-operator", "--lease-namespace", "x", "--identity", "me"])
                .unwrap();
        assert_eq!(options.gateway_namespace(), "x");
        assert_eq!(options.identity(), "me");
        assert!(options.manage_crds);
        let policy = options.settings().policy;
        assert!(
            policy.host_paths.is_empty(),
            "directories of nodes are allowed by nobody's default"
        );
        assert_eq!(policy.images, ["*"]);
        let words = [
            "llamero-operator",
            "--allowed-images=",
            "--allowed-host-paths=/a,/b",
        ];
        let policy = Options::try_parse_from(words).unwrap().settings().policy;
        assert_eq!((policy.images.len(), policy.host_paths.len()), (0, 2));
        let network = options.settings().network.unwrap();
        assert_eq!(
            (
                network.operator.namespace.as_str(),
                network.gateways.namespace.as_str()
            ),
            ("x", "x")
        );
        let words = ["llamero-operator", "--network-policy={\"enabled\": false}"];
        assert!(!Options::try_parse_from(words).unwrap().network_policy.enabled);
        assert!(Options::try_parse_from(["llamero-operator", "--network-policy=off"]).is_err());
        let words = ["llamero-operator", "--manage-crds=false"];
        assert!(!Options::try_parse_from(words).unwrap().manage_crds);
        assert!(Options::try_parse_from(["llamero-operator", "--lease-seconds", "1"]).is_err());
    }
}
