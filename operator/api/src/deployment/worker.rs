//! Settings of the worker pods.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Affinity, EnvVar, LocalObjectReference, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CaBundle, ExtraMount, ExtraVolume};
use crate::duration::Duration;

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Pull what the node does not have.
    IfNotPresent,
    /// Only what the node has.
    Never,
}

impl PullPolicy {
    /// As the core API writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Requests and limits of a worker container, accelerators excluded: those follow from `parallelism`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Quantity>,
}

/// Settings of the worker pods.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.drainGrace) || duration(self.drainGrace).getSeconds() < (has(self.terminationGracePeriodSeconds) ? self.terminationGracePeriodSeconds : 60)")
    .message("worker.drainGrace must be shorter than worker.terminationGracePeriodSeconds (60 where it is absent): running requests need the rest"))]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    /// Image of the worker. Absent: the one the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// When the image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,
    /// Requests and limits of the container. A missing memory request is set to what sizing found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::resources")]
    pub resources: Option<Resources>,
    /// Requests and limits of the pod that reads the checkpoint's headers. Absent: 50m and 64Mi, at most 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::resources")]
    pub inspect_resources: Option<Resources>,
    /// Labels of all pods, beside the operator's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of all pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// More volumes of all pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub volumes: Vec<ExtraVolume>,
    /// Where they are mounted in our own container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub volume_mounts: Vec<ExtraMount>,
    /// Environment variables, added to those that the operator sets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Affinity of the pods, in the form of `pod.spec.affinity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::affinity")]
    pub affinity: Option<Affinity>,
    /// PriorityClass of the pods; pods of lower priority count as room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// RuntimeClass of the pods that serve, for example `nvidia` where containers see GPUs only under that one. Pods that read a checkpoint's
    /// headers need no device and run under the nodes' usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// ServiceAccount of the pods. Absent: the namespace's default. No token is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service_account_name: Option<String>,
    /// Secrets with registry credentials.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Seconds that a pod may take to finish running requests when it is deleted. Absent: 60.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub termination_grace_period_seconds: Option<i64>,
    /// How long a group that goes still takes new requests after it has told that it is not ready: the time that clients beside the gateway
    /// need to hear it. Absent: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_grace: Option<Duration>,
    /// Who may call the leaders at their inference port (18051), beside gateways and operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<Inference>,
}

/// Who may call leaders.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.clientCaBundle) || !has(self.auth) || self.auth == 'Mutual'")
    .message("worker.inference.clientCaBundle admits clients by certificates, and with auth None nobody shows one: leave one of the two out"),
    validation = Rule::new("!has(self.adapterClients) || has(self.clientCaBundle)")
    .message("worker.inference.adapterClients names clients of worker.inference.clientCaBundle: say whose clients they are"))]
#[serde(rename_all = "camelCase")]
pub struct Inference {
    /// How clients prove who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<InferenceAuth>,
    /// Authorities whose clients may call too, without the gateway. They must also pass the NetworkPolicy (`networkPolicy.inferenceFrom`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_bundle: Option<CaBundle>,
    /// Common names of those clients that may also load and unload LoRA adapters at leaders. Their certificates' subjects must say nothing
    /// else. Absent: nobody but the operator may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 64), regex(pattern = r"^[A-Za-z0-9][-A-Za-z0-9._@]*$"))
    )]
    pub adapter_clients: Vec<String>,
}

/// How clients prove who they are. Mutual: certificates on both sides, where the installation authenticates links (`security.mtls`). None: plain text, and
/// whom the NetworkPolicy lets through is answered; for pods beside a mesh that does both. Absent: Mutual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InferenceAuth {
    /// By certificates.
    #[default]
    Mutual,
    /// Not at all.
    None,
}

impl Worker {
    /// How clients prove who they are.
    #[must_use]
    pub fn inference_auth(&self) -> InferenceAuth {
        self.inference
            .as_ref()
            .and_then(|inference| inference.auth)
            .unwrap_or_default()
    }

    /// Clients that may load adapters.
    #[must_use]
    pub fn adapter_clients(&self) -> &[String] {
        let inference = self.inference.as_ref();
        inference.map_or(&[], |inference| &inference.adapter_clients)
    }

    /// Authorities whose clients are admitted.
    #[must_use]
    pub fn client_ca_bundle(&self) -> Option<&CaBundle> {
        self.inference.as_ref()?.client_ca_bundle.as_ref()
    }
}
