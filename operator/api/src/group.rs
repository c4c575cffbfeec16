//! `LlamaGroup`: one replica of a `LlamaDeployment`, and the durable truth about it.
//!
//! The operator writes `spec` with its `resourceVersion` before any effect, so that an operator that lost its lease is fenced, and a
//! new one finds out from `spec` alone what was under way: a pod that is not recorded in `spec.members` is to go.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Time};
use kube::{CustomResource, KubeSchema};
use llamero_settings::limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    deployment::{Adapter, Engine, InferenceAuth, OnePodPerNode, Source, TopologyPolicy, Worker},
    duration::Duration,
};

/// Desired state of a group, written by the operator only.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "llamero.dev",
    version = "v1alpha1",
    kind = "LlamaGroup",
    plural = "llamagroups",
    shortname = "llg",
    category = "llamero",
    namespaced,
    cel,
    derive = "PartialEq",
    status = "LlamaGroupStatus",
    doc = "One replica of a LlamaDeployment: a group of worker pods that answer as one. Written by the operator.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".spec.generation"),
    printcolumn(
        name = "Loaded",
        type_ = "string",
        json_path = ".status.loaded",
        description = "Bytes of weights in memory / bytes to load, over all ranks"
    ),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leaderAddress"),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".spec.revision",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.deployment == oldSelf.deployment && self.revision == oldSelf.revision && self.template == oldSelf.template")
        .message("a group never changes its deployment, revision or template: change the LlamaDeployment, and the operator makes new groups"),
    validation = Rule::new("self.generation >= oldSelf.generation")
        .message("spec.generation only grows"),
    validation = Rule::new("oldSelf.intent != 'Drain' || self.intent == 'Drain'")
        .message("a draining group cannot be put back into service: let the operator make a new one")
)]
#[serde(rename_all = "camelCase")]
pub struct LlamaGroupSpec {
    /// Name of the `LlamaDeployment`.
    #[schemars(length(min = 1, max = 40))]
    pub deployment: String,
    /// Revision of the template.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// Snapshot of everything the pods are made from.
    pub template: GroupTemplate,
    /// Membership: grows each time the set of recorded pods changes. 0 before the first pods are recorded.
    #[schemars(range(min = 0))]
    pub generation: i64,
    /// One entry for each pod, by index.
    #[schemars(length(min = 1, max = 256))]
    pub members: Vec<Member>,
    /// Members that the present generation does without, by index, in the order in which they were given up. The other members have taken
    /// over their parts of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 255), inner(range(min = 1, max = 255)))]
    pub without: Vec<i32>,
    /// Whether the group is to serve or to go.
    #[serde(default)]
    pub intent: Intent,
    /// When draining began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_since: Option<Time>,
    /// How often in a row a placement was rolled back.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub placement_failures: i32,
    /// Since when a node of the group is being taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disrupted_since: Option<Time>,
    /// No new placement before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place_after: Option<Time>,
    /// Nodes that an autoscaler of the cluster is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provision: Option<Provision>,
    /// What each pod asks for as it was admitted, where that is more than its template says: with injected containers, defaults of a LimitRange and the
    /// overhead of a runtime. By resource name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub admitted: BTreeMap<String, Quantity>,
    /// Failures of members, oldest first; kept after their pods are gone. The charged ones within the window are the restart budget's account.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub failures: Vec<MemberFailure>,
}

/// How nodes are asked for, with `placement.whenFull: Provision`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Provision {
    /// Since when placeholders ask for them; absent: none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// How often in a row not all came in time.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failures: i32,
    /// They are not asked for again before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// The value of the template's `topologyKey` where not enough came the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avoided_domain: Option<String>,
}

/// Whether a group is to serve or to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Intent {
    /// Serve.
    #[default]
    Run,
    /// Finish what runs, then go.
    Drain,
}

/// One pod of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Position in the group; the pod holds ranks `index × ranksPerPod ..`. The pod with index 0 leads.
    #[schemars(range(min = 0, max = 255))]
    pub index: i32,
    /// How often the pod of this member was replaced.
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// The node it goes to, or `*` where the operator may read none and the scheduler alone chooses; absent while no room is reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// When the node was chosen. Members with equal times are placed together or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed_at: Option<Time>,
    /// The pod, once it exists; recorded before its scheduling gate is lifted.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The pod that is to take over, because the node is being taken away; it loads while this one still serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successor: Option<Successor>,
}

/// The next attempt of a member, beside the present one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Successor {
    /// Its attempt.
    #[schemars(range(min = 0))]
    pub attempt: i32,
    /// The node it goes to.
    pub node: String,
    /// When the node was chosen.
    pub placed_at: Time,
    /// The pod, once it exists; recorded before its scheduling gate is lifted.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
}

/// How a member was lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberFailure {
    /// When the operator noticed.
    pub time: Time,
    /// The member.
    pub index: i32,
    /// Its attempt.
    pub attempt: i32,
    /// Where it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// One word: Deleted, Disrupted, Evicted, Exited, Larger, NodeLost, NotStarted, Pressure, Refused, Stalled, Unreachable, Unschedulable, Unusable.
    pub reason: String,
    /// Exit code of the container, if it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last words of the container or the rank.
    #[serde(default)]
    pub message: String,
    /// Whether it counts against the restart budget.
    pub charged: bool,
}

/// Everything the pods of a group are made from, with all defaults resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupTemplate {
    /// The name that clients ask for.
    #[schemars(length(max = 253))]
    pub model_name: String,
    /// Where the weights lie.
    pub source: Source,
    /// Longest context in tokens.
    pub max_context_length: i64,
    /// Tensor-parallel ranks.
    #[schemars(range(min = *limits::TENSOR.start(), max = *limits::TENSOR.end()))]
    pub tensor: i32,
    /// Pipeline stages.
    #[schemars(range(min = *limits::PIPELINE.start(), max = *limits::PIPELINE.end()))]
    pub pipeline: i32,
    /// Ranks in each pod.
    #[schemars(range(min = *limits::RANKS_PER_POD.start(), max = *limits::RANKS_PER_POD.end()))]
    pub ranks_per_pod: i32,
    /// Extended resource, one for each rank. Absent: CPU backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_resource: Option<String>,
    /// What the weights are, where the source names its content: 64 hexadecimal digits. Absent: every rank finds out from samples. All pods of
    /// a group are told the same, whichever operator makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub content_identity: Option<String>,
    /// Bytes for keys and values on each rank; 0: the worker takes what its device has left.
    pub kv_bytes_per_rank: i64,
    /// Bytes of weights on the rank that needs most.
    pub weight_bytes_per_rank: i64,
    /// Node label of the domain that a group should not leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology_key: Option<String>,
    /// Whether it may.
    #[serde(default)]
    pub topology_policy: TopologyPolicy,
    /// Whether each pod goes to a node of its own. Absent in groups from before there was a choice: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_pod_per_node: Option<OnePodPerNode>,
    /// Time-out of every wait between ranks.
    pub stall_timeout: Duration,
    /// How operator and gateways reach the pods. Groups of revisions from before there was a choice are reached in plain text.
    #[serde(default, skip_serializing_if = "Transport::is_plain")]
    pub transport: Transport,
    /// Settings of the engine.
    #[serde(default)]
    pub engine: Engine,
    /// LoRA adapters that every rank has from its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub adapters: Vec<Adapter>,
    /// Settings of the pods; `image` and the memory request are always set here.
    #[serde(default)]
    pub worker: Worker,
}

/// How operator and gateways reach the pods of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Transport {
    /// In plain text; whoever reaches a port is answered.
    #[default]
    Plain,
    /// Over TLS with certificates on both sides.
    Mutual,
}

impl Transport {
    /// Whether links are plain text.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// Ranks that `parallelism` can ask for.
const MAX_RANKS: i32 = 256 * 64;

impl GroupTemplate {
    /// Seconds a deleted pod may take to finish, when the user did not say.
    pub const DEFAULT_GRACE_SECONDS: i64 = 60;

    /// How operator and gateways reach the inference port of the leader.
    #[must_use]
    pub fn inference_transport(&self) -> Transport {
        match self.worker.inference_auth() {
            InferenceAuth::Mutual => self.transport,
            InferenceAuth::None => Transport::Plain,
        }
    }

    /// Ranks of the group.
    #[must_use]
    pub fn ranks(&self) -> i32 {
        self.tensor
            .max(1)
            .saturating_mul(self.pipeline.max(1))
            .min(MAX_RANKS)
    }

    /// Pods of the group.
    #[must_use]
    pub fn pods(&self) -> i32 {
        (self.ranks() - 1) / self.ranks_per_pod.max(1) + 1
    }

    /// Seconds a deleted pod may take to finish.
    #[must_use]
    pub fn grace_seconds(&self) -> i64 {
        self.worker
            .termination_grace_period_seconds
            .unwrap_or(Self::DEFAULT_GRACE_SECONDS)
    }
}

/// How far a group is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum GroupPhase {
    /// No room is reserved.
    #[default]
    Pending,
    /// Nodes are chosen; pods are created and scheduled.
    Placing,
    /// Pods are on their nodes and start.
    Starting,
    /// Ranks read their shards.
    Loading,
    /// Ranks connect and warm up.
    Forming,
    /// The group answers.
    Serving,
    /// A member is lost; survivors keep their weights.
    Recovering,
    /// The group finishes what runs and goes.
    Draining,
    /// The restart budget is spent.
    Failed,
}

impl GroupPhase {
    /// The phase in one word, as `status.phase` shows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Placing => "Placing",
            Self::Starting => "Starting",
            Self::Loading => "Loading",
            Self::Forming => "Forming",
            Self::Serving => "Serving",
            Self::Recovering => "Recovering",
            Self::Draining => "Draining",
            Self::Failed => "Failed",
        }
    }
}

/// Observed state of a group, written at most once a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LlamaGroupStatus {
    /// `spec.generation` that this status speaks of.
    #[serde(default)]
    pub generation: i64,
    /// How far the group is.
    #[serde(default)]
    pub phase: GroupPhase,
    /// Whether a step of the whole group was completed within the stall time-out.
    #[serde(default)]
    pub ready: bool,
    /// `ip:port` of the leader's inference service; only while the group serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader_address: Option<String>,
    /// Bytes of weights in memory, over all ranks.
    #[serde(default)]
    pub loaded_bytes: i64,
    /// Bytes of weights to load, over all ranks.
    #[serde(default)]
    pub total_bytes: i64,
    /// The same for people: `1.2/4.0 GiB`.
    #[serde(default)]
    pub loaded: String,
    /// Every rank.
    #[serde(default)]
    pub ranks: Vec<RankStatus>,
    /// Charged replacements within the window.
    #[serde(default)]
    pub restarts: i32,
    /// The latest failure of a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<MemberFailure>,
    /// Why the group is not further, in words.
    #[serde(default)]
    pub message: String,
    /// Since when no nodes have room for the group; absent while it has its nodes, or nobody has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unplaceable_since: Option<Time>,
    /// What the weights are, on which all ranks agree: sampled chunks of every tensor, hashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_identity: Option<String>,
    /// What the numbers depend on beside the weights: kernels and the type of the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numerics: Option<String>,
    /// How long it took until the group served first, step by step; a step appears when the phase moves on, and stays as it is when the
    /// group forms again later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub start: Vec<StartStep>,
}

/// A step on the way to serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StartStepName {
    /// From the new LlamaDeployment to what its checkpoint's headers say; only for the groups that it began with.
    Sized,
    /// From the new LlamaGroup to nodes for all of its pods.
    Placed,
    /// Until the last pod was bound to its node.
    Scheduled,
    /// Until the last container ran: image, volumes, network.
    Started,
    /// Until the slowest rank began to read weights: certificate, headers, device.
    Checked,
    /// Until that rank had its weights.
    Loaded,
    /// Until that rank had its peers and a first step of the group was done.
    Formed,
    /// From the new LlamaGroup to serving, in all.
    Serving,
}

/// What a step took. Kubernetes keeps its times in whole seconds, workers tell theirs to the millisecond.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StartStep {
    /// The step.
    pub step: StartStepName,
    /// How long it took.
    #[schemars(range(min = 0))]
    pub millis: i64,
    /// When it was over, where that is known beside how long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Bytes of weights that came into memory, over all ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// How fast: `6.21 GB/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
}

/// How far a rank is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum RankPhase {
    /// Nothing is known of it.
    #[default]
    Unknown,
    /// Checks what it was given.
    Preflight,
    /// Reads its shard.
    Loading,
    /// Has its weights and waits for its peers.
    Connecting,
    /// Takes a first step.
    Warming,
    /// Takes part in steps.
    Serving,
    /// Finishes what runs.
    Draining,
    /// Its process is gone and will be started again.
    Failed,
}

/// One rank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RankStatus {
    /// Rank in the group.
    pub rank: i32,
    /// Pod that runs it.
    #[serde(default)]
    pub pod: String,
    /// Node of that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How far it is.
    #[serde(default)]
    pub phase: RankPhase,
    /// Bytes of its shard in memory.
    #[serde(default)]
    pub loaded_bytes: i64,
    /// Bytes of its shard.
    #[serde(default)]
    pub total_bytes: i64,
    /// Bytes that its present process read from the checkpoint.
    #[serde(default)]
    pub read_bytes: i64,
    /// Steps entered within the epoch.
    #[serde(default)]
    pub entered: i64,
    /// Steps completed within the epoch.
    #[serde(default)]
    pub completed: i64,
    /// How often its process was started again in this pod.
    #[serde(default)]
    pub restarts: i32,
    /// Process id in the pod.
    #[serde(default)]
    pub pid: i32,
    /// Why it is not further, in words.
    #[serde(default)]
    pub message: String,
    /// What it computes on, where that is more than CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceStatus>,
}

/// The device of a rank, as it was found before weights were read and measured while the group formed. What is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Name of the product.
    #[serde(default)]
    pub name: String,
    /// Identifier that stays.
    #[serde(default)]
    pub id: String,
    /// Version of its driver.
    #[serde(default)]
    pub driver: String,
    /// Its memory.
    #[serde(default)]
    pub memory: String,
    /// What reading its memory gives, of what clock and bus promise: `2950 of 3352 GB/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bandwidth: Option<String>,
    /// What the rank gives its peers in the largest exchange of a step, and how long the smallest takes: `310 GB/s, 9.5 us`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<String>,
    /// Memory errors that could not be corrected, since the driver was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncorrected_errors: Option<i64>,
    /// Number of the last error that the driver reported since the rank's process began: the Xid of NVIDIA's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fault: Option<i64>,
    /// What somebody should look at.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub warning: String,
}
