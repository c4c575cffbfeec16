//! The deployment under test, and where its parts run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::shards;
use crate::cluster::{Cluster, PodProcess};
use crate::poll;

/// Namespace of the deployment, which has the claim `weights`.
pub(super) const NAMESPACE: &str = "demo";
/// Namespace of operator and gateway.
pub(super) const SYSTEM: &str = "llamero-system";
/// Name of the deployment and its model.
pub(super) const NAME: &str = "chaos";
/// Groups that the deployment has.
pub(super) const GROUPS: u32 = 2;
/// Ranks of a group, of which each has a pod of its own.
pub(super) const RANKS: u32 = 2;
/// How long a group may be placed in part.
pub(super) const PLACEMENT_DEADLINE: Duration = Duration::from_secs(20);
/// Long enough for a loaded machine, short enough to notice what is stuck.
pub(super) const SOON: Duration = Duration::from_secs(300);
/// The kubelet waits for up to five minutes before it starts again what has ended often, as the operator does when it loses its lease.
const WHOLE: Duration = Duration::from_secs(600);
const GATEWAY_PORT: u16 = 8000;

/// The deployment of a run. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) cluster: Cluster,
}

impl Target {
    /// Makes the deployment anew and waits until it serves.
    pub(super) fn create() -> Result<Self> {
        let target = Self {
            cluster: Cluster::connect()?,
        };
        target.remove()?;
        shards::make(RANKS)?;
        target.cluster.kubectl().apply(&json!({
            "apiVersion": "llamero.dev/v1alpha1",
            "kind": "LlamaDeployment",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "model": {
                    "source": {"persistentVolumeClaim": {"claimName": "weights", "path": shards::FOLDER}},
                    "maxContextLength": 1024
                },
                "replicas": GROUPS,
                "parallelism": {"tensor": RANKS},
                "placement": {"deadline": format!("{}s", PLACEMENT_DEADLINE.as_secs())},
                // Faults come thick here: what is spent in ordinary life must not be spent by them.
                "recovery": {
                    "stallTimeout": "10s", "formTimeout": "60s", "loadTimeout": "60s",
                    "restartBudget": 60, "restartWindow": "600s", "backoff": "2s"
                },
                "worker": {"resources": {"requests": {"cpu": "50m", "memory": "640Mi"}}}
            }
        }))?;
        target.wait_ready()?;
        Ok(target)
    }

    /// Waits until all groups are ready, no other is there, and no pod is on its way.
    pub(super) fn wait_ready(&self) -> Result<()> {
        poll::until("all groups ready and nothing on its way", WHOLE, || {
            groups_are_whole(&self.cluster)?;
            pods_are_ready(&self.cluster, SYSTEM).map(Some)
        })
    }

    fn remove(&self) -> Result<()> {
        let delete = [
            "-n",
            NAMESPACE,
            "delete",
            "llamadeployment",
            NAME,
            "--ignore-not-found",
            "--timeout=180s",
        ];
        self.cluster.kubectl().run(&delete)?;
        poll::until("pods to go", SOON, || {
            let selector = format!("llamero.dev/deployment={NAME}");
            let pods = self
                .cluster
                .kubectl()
                .get(&["-n", NAMESPACE, "pods", "-l", &selector])?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })?;
        shards::remove()
    }

    /// Pods and addresses of the gateways that are not on their way out.
    pub(super) fn gateways(&self) -> Result<BTreeMap<String, SocketAddr>> {
        gateways(&self.cluster)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Whether all groups serve and no pod of theirs is on its way: an error says what is.
pub(super) fn groups_are_whole(cluster: &Cluster) -> Result<()> {
    let object = cluster
        .kubectl()
        .get(&["-n", NAMESPACE, "llamadeployment", NAME])?;
    let status = &object["status"];
    let counts = ["desiredReplicas", "replicas", "readyReplicas"];
    let at_rest = status["observedGeneration"] == object["metadata"]["generation"]
        && counts.iter().all(|field| status[*field] == GROUPS);
    ensure!(at_rest, "status is {status}");
    pods_are_ready(cluster, NAMESPACE)
}

fn pods_are_ready(cluster: &Cluster, namespace: &str) -> Result<()> {
    let pods = cluster.kubectl().get(&["-n", namespace, "pods"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        ensure!(is_ready(pod), "pod {} is on its way", pod["metadata"]["name"]);
    }
    Ok(())
}

pub(super) fn gateways(cluster: &Cluster) -> Result<BTreeMap<String, SocketAddr>> {
    let words = [
        "-n",
        SYSTEM,
        "pods",
        "-l",
        "app.kubernetes.io/name=llamero-gateway",
        "--request-timeout=3s",
    ];
    let pods = cluster.kubectl().get(&words)?;
    let mut all = BTreeMap::new();
    for pod in pods["items"].as_array().context("no list of pods")? {
        let name = pod["metadata"]["name"].as_str();
        let ip = pod["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok());
        if let (Some(name), Some(ip), true) = (name, ip, pod["metadata"]["deletionTimestamp"].is_null()) {
            all.insert(name.to_owned(), SocketAddr::new(ip, GATEWAY_PORT));
        }
    }
    Ok(all)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == "Ready" && one["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// How ranks failed, as the operator keeps it.
pub(super) fn failures(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let groups = cluster.kubectl().get(&["-n", NAMESPACE, "llamagroups"])?;
    let groups = groups["items"].as_array().context("no list of groups")?;
    let kept = groups
        .iter()
        .filter_map(|group| group["spec"]["failures"].as_array());
    Ok(kept.flatten().map(Value::to_string).collect())
}

/// What a process of Llamero is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Role {
    Rank,
    Supervisor,
    Operator,
    Gateway,
}

impl Role {
    /// By its command line.
    pub(super) fn of(process: &PodProcess) -> Option<Self> {
        let mut words = process.command.split(' ');
        match (words.next()?, words.next()) {
            ("/llamero-operator", _) => Some(Self::Operator),
            ("/llamero-gateway", _) => Some(Self::Gateway),
            (_, Some("rank")) => Some(Self::Rank),
            (_, Some("serve")) => Some(Self::Supervisor),
            _ => None,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rank => "rank",
            Self::Supervisor => "supervisor",
            Self::Operator => "operator",
            Self::Gateway => "gateway",
        }
    }
}

/// The living processes of that role, in a steady order. Works while the API server is away.
pub(super) fn processes(cluster: &Cluster, role: Role) -> Result<Vec<PodProcess>> {
    let mut all = Vec::new();
    for namespace in [NAMESPACE, SYSTEM] {
        all.extend(cluster.namespace_processes(namespace)?);
    }
    all.retain(|process| Role::of(process) == Some(role));
    all.sort_by(|a, b| (&a.node, &a.pod, a.pid).cmp(&(&b.node, &b.pod, b.pid)));
    Ok(all)
}
