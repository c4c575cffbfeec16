//! `LlamaDeployment`: what a user wants served.

mod adapter;
mod engine;
mod model;
mod scaling;
mod speculation;
mod status;
mod volumes;
mod worker;

use kube::{CustomResource, KubeSchema};
use llamero_settings::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

pub use adapter::{Adapter, Lora};
pub use engine::{Engine, KvCache, KvCacheDtype};
pub use model::{
    CaBundle, CredentialsSecretRef, HostPathSource, HttpsSource, HuggingFaceSource, ImageSource, ModelSpec,
    PersistentVolumeClaimSource, S3Source, Source, TokenSecretRef,
};
pub use scaling::{Autoscaling, Rollout, RolloutStrategy};
pub use speculation::{Speculation, SpeculationMethod};
pub use status::{
    AutoscalingState, CheckpointStatus, GroupSummary, LlamaDeploymentStatus, PlanStatus, RolloutProgress,
    condition, reason,
};
pub use volumes::{
    ConfigMapVolume, CsiVolume, EmptyDirVolume, ExtraMount, ExtraVolume, PersistentVolumeClaimVolume,
    SecretVolume,
};
pub use worker::{Inference, InferenceAuth, PullPolicy, Resources, Worker};

/// A Llama model that is to be served by a number of groups of worker pods.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llamero.dev",
    version = "v1alpha1",
    kind = "LlamaDeployment",
    plural = "llamadeployments",
    shortname = "lld",
    category = "llamero",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "LlamaDeploymentStatus",
    doc = "A Llama model, served by replicas: groups of worker pods that answer as one.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready", description = "Ready groups / wanted groups"),
    printcolumn(name = "Loaded", type_ = "string", json_path = ".status.loaded", description = "Bytes of weights in memory / bytes to load, over all groups"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be at most 40 lower-case letters, digits and dashes and begin with a letter: pods and Services are named after it")
)]
#[x_kube(
    validation = Rule::new("!has(self.accelerator) || !has(self.accelerator.perNode) || self.parallelism.tensor * self.parallelism.pipeline <= self.accelerator.perNode || self.parallelism.tensor * self.parallelism.pipeline % self.accelerator.perNode == 0")
        .message("the ranks (parallelism.tensor × parallelism.pipeline) must be at most accelerator.perNode or a multiple of it, so that every pod holds equally many ranks"),
    validation = Rule::new("!has(self.adapters) || size(self.adapters) == 0 || (has(self.engine) && has(self.engine.lora) && size(self.adapters) <= self.engine.lora.maxAdapters)")
        .message("adapters need room: set engine.lora.maxAdapters to their number or more"),
    validation = Rule::new("!has(self.engine) || !has(self.engine.lora) || !has(self.accelerator) || !has(self.accelerator.resource)")
        .message("engine.lora is built for the CPU backend only: leave out accelerator.resource, or merge the adapter into its model"),
    validation = Rule::new("!has(self.recovery) || !has(self.recovery.degraded) || self.recovery.degraded != 'Allow' || !has(self.accelerator) || !has(self.accelerator.resource)")
        .message("recovery.degraded: Allow is for CPUs: a rank on a GPU keeps the part of the model that it began with; remove it, or accelerator.resource"),
    validation = Rule::new("!has(self.adapters) || size(self.adapters) == 0 || has(self.model.source.persistentVolumeClaim) || has(self.model.source.hostPath) || has(self.model.source.image)")
        .message("adapters lie below the model's directory, so model.source must be persistentVolumeClaim, hostPath or image")
)]
#[serde(rename_all = "camelCase")]
pub struct LlamaDeploymentSpec {
    /// What is served and where its weights lie.
    pub model: ModelSpec,
    /// How many ranks share one copy of the model.
    pub parallelism: Parallelism,
    /// What the ranks run on. Absent: one CPU rank per pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Number of groups. The scale subresource (kubectl scale, HPA, KEDA) writes this field; with autoscaling the operator alone does.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// With no groups because replicas is 0, written by hand, an HPA or KEDA: hold requests at the gateway until there are some again. Else
    /// they are refused at once. `llamero_gateway_held_requests` of the gateway tells who waits. Autoscaling holds them anyway.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold_at_zero: bool,
    /// Lets the operator choose the number of groups by load: it then writes replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Where groups go and how long they may take to get there.
    #[serde(default)]
    pub placement: Placement,
    /// Revisions that no group runs any more and that are kept all the same, so that going back finds them.
    #[serde(default = "ten")]
    #[schemars(range(min = 0, max = 100))]
    pub revision_history_limit: i32,
    /// How groups are replaced when their template changes.
    #[serde(default)]
    pub rollout: Rollout,
    /// What happens when a rank is lost or stuck.
    #[serde(default)]
    pub recovery: Recovery,
    /// What happens when a node is being taken away: cordoned, drained, or tainted by who is about to remove it.
    #[serde(default)]
    pub disruption: Disruption,
    /// Settings of the inference engine.
    #[serde(default)]
    pub engine: Engine,
    /// LoRA adapters that every group has from its start. A change rolls the groups; at run time adapters are loaded at their leaders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub adapters: Vec<Adapter>,
    /// Settings of the worker pods.
    #[serde(default)]
    pub worker: Worker,
}

/// How the model is split over ranks.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parallelism {
    /// Ranks that share every layer; at most the model's number of query heads.
    #[schemars(range(min = *limits::TENSOR.start(), max = *limits::TENSOR.end()))]
    pub tensor: i32,
    /// Pipeline stages, of which each has its own layers: the group has `tensor` × `pipeline` ranks. Stages exchange little, so
    /// they may stand on different nodes where `tensor` ranks of one node share fast links. On GPUs the ranks of a stage have to be
    /// in one pod: `accelerator.perNode` is `tensor`, or a multiple of it.
    #[serde(default = "one")]
    #[schemars(range(min = *limits::PIPELINE.start(), max = *limits::PIPELINE.end()))]
    pub pipeline: i32,
}

/// The device that a rank runs on.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.resource) || self.resource.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')")
    .message("accelerator.resource must be an extended resource with a domain, for example nvidia.com/gpu; leave it out for the CPU backend"))]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// Extended resource, one per rank, for example `nvidia.com/gpu`. Absent: CPU backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 128))]
    pub resource: Option<String>,
    /// Ranks per pod.
    #[serde(default = "one")]
    #[schemars(range(min = *limits::RANKS_PER_POD.start(), max = *limits::RANKS_PER_POD.end()))]
    pub per_node: i32,
    /// Memory of one device. Absent: from the nodes' `nvidia.com/gpu.memory` label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::quantity")]
    pub memory: Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
}

/// How binding `topologyKey` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TopologyPolicy {
    /// All pods of a group in one domain, or the group waits.
    Required,
    /// One domain if it has room, else several.
    #[default]
    Preferred,
}

/// Whether the pods of a group go to nodes of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnePodPerNode {
    /// Each pod of a group on another node, or the group waits.
    Required,
    /// Nodes of their own while there are such nodes, else several pods of a group on one.
    Preferred,
}

/// What to do when no room is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenFull {
    /// Hold nothing and try again when the cluster changes.
    #[default]
    Wait,
    /// Ask for nodes as well: pods that do nothing but hold the room of members are made, so that an autoscaler of the cluster (Karpenter,
    /// cluster-autoscaler) sees what is missing. Where not all are there by `provisionDeadline` all are taken away, and made again later.
    Provision,
}

/// Where groups go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Node label whose value names a domain of fast links, for example `topology.kubernetes.io/zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: Option<String>,
    /// Whether a group may span domains.
    #[serde(default)]
    pub policy: TopologyPolicy,
    /// Whether the pods of a group go to nodes of their own. Absent: Preferred where ranks compute on CPUs, Required with an accelerator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_pod_per_node: Option<OnePodPerNode>,
    /// What to do when no room is found.
    #[serde(default)]
    pub when_full: WhenFull,
    /// All pods of a group must be scheduled within this time, or all of them are rolled back.
    #[serde(default = "Placement::default_deadline")]
    pub deadline: Duration,
    /// With `whenFull: Provision`, nodes for a whole group must have been added within this time, or those that were are given back.
    #[serde(default = "Placement::default_provision_deadline")]
    pub provision_deadline: Duration,
    /// All containers of a group must run and answer within this time after that, pulled images included, or the group is rolled back and tried again
    /// later: what cannot start holds no accelerators.
    #[serde(default = "Placement::default_start_deadline")]
    pub start_deadline: Duration,
}

impl Placement {
    const fn default_deadline() -> Duration {
        Duration::from_secs(120)
    }

    const fn default_provision_deadline() -> Duration {
        Duration::from_secs(1200)
    }

    const fn default_start_deadline() -> Duration {
        Duration::from_secs(1800)
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            topology_key: None,
            policy: TopologyPolicy::default(),
            one_pod_per_node: None,
            when_full: WhenFull::default(),
            deadline: Self::default_deadline(),
            provision_deadline: Self::default_provision_deadline(),
            start_deadline: Self::default_start_deadline(),
        }
    }
}

/// What happens when a rank is lost or stuck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Recovery {
    /// A group that completes no step for this long is stuck; also the time-out of every wait between ranks.
    pub stall_timeout: Duration,
    /// A rank that reads nothing of its shard for this long is replaced.
    pub load_timeout: Duration,
    /// Ranks that all have their weights and still do not serve after this long are stuck: one of them is replaced.
    pub form_timeout: Duration,
    /// Replacements of members that are charged within `restartWindow` before the operator stops trying. Evictions are not charged.
    #[schemars(range(min = 0, max = 60))]
    pub restart_budget: i32,
    /// Replacements older than this are forgiven.
    pub restart_window: Duration,
    /// Wait before the second replacement within the window; doubles with each further one, up to five minutes.
    pub backoff: Duration,
    /// Whether a group goes on without members for which no room is found: the others take over their parts of the model where their
    /// memory holds them, answers stay the same, and the context that fits may be shorter meanwhile. CPUs only.
    pub degraded: Degraded,
    /// How long room for a lost member is looked for before the group goes on without it; also how long its successor must have had
    /// its room before it is taken in.
    pub degraded_after: Duration,
}

/// Whether a group goes on without some of its members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Degraded {
    /// It waits until there is room for them.
    #[default]
    Never,
    /// It goes on where the others' memory holds the model.
    Allow,
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(30),
            load_timeout: Duration::from_secs(600),
            form_timeout: Duration::from_secs(600),
            restart_budget: 10,
            restart_window: Duration::from_secs(3600),
            backoff: Duration::from_secs(10),
            degraded: Degraded::Never,
            degraded_after: Duration::from_secs(30),
        }
    }
}

/// What happens when a node is being taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Disruption {
    /// A member on such a node gets a successor that loads while the old one serves. When there has been no room for it for this long,
    /// the group finishes what runs and leaves.
    pub deadline: Duration,
    /// What the pods tell cluster autoscalers that would remove their node to save it. `false`: leave it, by cluster-autoscaler's
    /// `safe-to-evict` and Karpenter's `do-not-disrupt`. `true`: take it, the group moves. Absent: the pods say nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_to_evict: Option<bool>,
}

impl Default for Disruption {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(600),
            safe_to_evict: None,
        }
    }
}

const fn one() -> i32 {
    1
}

const fn ten() -> i32 {
    10
}

impl LlamaDeploymentSpec {
    /// Ranks of one group.
    #[must_use]
    pub fn ranks(&self) -> i32 {
        self.parallelism
            .tensor
            .max(1)
            .saturating_mul(self.parallelism.pipeline.max(1))
    }

    /// Ranks in one pod.
    #[must_use]
    pub fn ranks_per_pod(&self) -> i32 {
        let per_node = self.accelerator.as_ref().map_or(1, |a| a.per_node.max(1));
        per_node.min(self.ranks())
    }

    /// Pods of one group.
    #[must_use]
    pub fn pods(&self) -> i32 {
        (self.ranks() - 1) / self.ranks_per_pod() + 1
    }
}

impl LlamaDeployment {
    /// The name that clients ask for: `spec.model.name`, else the object's name.
    #[must_use]
    pub fn model_name(&self) -> &str {
        self.spec
            .model
            .name
            .as_deref()
            .or(self.metadata.name.as_deref())
            .unwrap_or_default()
    }
}
