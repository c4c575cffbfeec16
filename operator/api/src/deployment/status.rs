//! What the operator reports about a `LlamaDeployment`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    group::{GroupPhase, MemberFailure},
    summary::CheckpointSummary,
};

/// Types of conditions.
pub mod condition {
    /// The specification can be served: the checkpoint was read and fits.
    pub const ACCEPTED: &str = "Accepted";
    /// Every wanted group has its nodes.
    pub const PLACED: &str = "Placed";
    /// As many groups serve as are wanted.
    pub const READY: &str = "Ready";
    /// The operator works toward what is wanted.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong that needs a human, or costs capacity.
    pub const DEGRADED: &str = "Degraded";
    /// The operator has work to do (kstatus): it observed the specification and is not there yet.
    pub const RECONCILING: &str = "Reconciling";
    /// The operator gets no further unless somebody changes something (kstatus).
    pub const STALLED: &str = "Stalled";
    /// Requests that name the model reach this deployment.
    pub const ROUTABLE: &str = "Routable";
    /// Nobody but its owner writes the number of replicas.
    pub const SCALABLE: &str = "Scalable";
    /// Groups are reached in plain text although the installation authenticates links.
    pub const INSECURE_LINKS: &str = "InsecureLinks";
    /// The operator may read no nodes, so the scheduler alone chooses them.
    pub const UNPINNED: &str = "Unpinned";
}

/// Reasons of conditions.
pub mod reason {
    /// Nodes, pods of all namespaces and priority classes may not be read.
    pub const NODES_UNREADABLE: &str = "NodesUnreadable";
    /// Groups run a revision from before links were authenticated.
    pub const OLDER_REVISION: &str = "OlderRevision";
    /// Links of groups are authenticated, and no certificates are given out.
    pub const LINKS_UNREACHABLE: &str = "LinksUnreachable";
    /// All is as wanted.
    pub const AS_WANTED: &str = "AsWanted";
    /// The checkpoint's headers are being read.
    pub const INSPECTING: &str = "Inspecting";
    /// The checkpoint cannot be read.
    pub const SOURCE_UNREADABLE: &str = "SourceUnreadable";
    /// The checkpoint does not fit what was asked for.
    pub const DOES_NOT_FIT: &str = "DoesNotFit";
    /// The worker image cannot compute on the accelerators asked for.
    pub const NO_BACKEND: &str = "NoBackend";
    /// The installation does not allow tenants to ask for this.
    pub const POLICY_REFUSED: &str = "PolicyRefused";
    /// The API server refuses an object: quota, Pod Security, admission, or a name that is taken.
    pub const REFUSED: &str = "Refused";
    /// The cluster's CustomResourceDefinitions are not those of this release, so that fields are dropped.
    pub const DEFINITIONS_OUTDATED: &str = "DefinitionsOutdated";
    /// A worker can never work as it is configured.
    pub const WORKER_UNUSABLE: &str = "WorkerUnusable";
    /// Ranks of one group have different weights, or compute differently.
    pub const RANKS_DIFFER: &str = "RanksDiffer";
    /// An older deployment serves the model name.
    pub const MODEL_NAME_TAKEN: &str = "ModelNameTaken";
    /// Somebody else writes spec.replicas although spec.autoscaling decides it.
    pub const FOREIGN_WRITER: &str = "ForeignWriter";
    /// No nodes have room for a whole group.
    pub const NO_ROOM: &str = "NoRoom";
    /// The same, and nodes are asked for.
    pub const PROVISIONING: &str = "Provisioning";
    /// The scheduler did not place all pods in time; all were rolled back.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// Pods are being scheduled.
    pub const PLACING: &str = "Placing";
    /// Groups start, load or connect.
    pub const STARTING: &str = "Starting";
    /// A member is being replaced.
    pub const RECOVERING: &str = "Recovering";
    /// A group serves without some of its members.
    pub const MEMBERS_MISSING: &str = "MembersMissing";
    /// The restart budget of a group is spent.
    pub const RESTART_BUDGET_SPENT: &str = "RestartBudgetSpent";
    /// The steps of a group stand still.
    pub const STALLED: &str = "Stalled";
    /// Members move off nodes that are being taken away.
    pub const MOVING: &str = "Moving";
    /// `rollout.revision` names a revision that is not kept.
    pub const REVISION_UNKNOWN: &str = "RevisionUnknown";
    /// The rollout got no further within `rollout.progressDeadline`.
    pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
    /// Groups of an older revision are being replaced.
    pub const ROLLING_OUT: &str = "RollingOut";
    /// The rollout is paused.
    pub const PAUSED: &str = "Paused";
    /// Older groups stay beside those of the new revision: `rollout.partition`.
    pub const CANARY: &str = "Canary";
    /// Wanted are zero groups.
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
    /// Groups are being removed.
    pub const SCALING_DOWN: &str = "ScalingDown";
    /// Pods cannot start, for example because an image cannot be pulled.
    pub const PODS_NOT_STARTING: &str = "PodsNotStarting";
}

/// Observed state of a `LlamaDeployment`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LlamaDeploymentStatus {
    /// `metadata.generation` that this status speaks of.
    #[serde(default)]
    pub observed_generation: i64,
    /// The least advanced thing that is going on, in one word.
    #[serde(default)]
    pub phase: String,
    /// `ready/desired`, for people.
    #[serde(default)]
    pub ready: String,
    /// Loaded bytes of all groups, for people: `1.2/4.0 GiB`.
    #[serde(default)]
    pub loaded: String,
    /// The name that clients ask for.
    #[serde(default)]
    pub model: String,
    /// What a human should know or do, in one sentence.
    #[serde(default)]
    pub message: String,
    /// Groups that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Groups that serve.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Groups that are wanted: the `spec.replicas` that the operator acts upon.
    #[serde(default)]
    pub desired_replicas: i32,
    /// Label selector that matches the leaders' pods only, so that an HPA counts groups, not pods.
    #[serde(default)]
    pub selector: String,
    /// The revision that new groups get.
    #[serde(default)]
    pub revision: String,
    /// What the weights of that revision are: sampled chunks of every tensor, hashed. Absent until a group has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_identity: Option<String>,
    /// What sizing decided, or why it refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanStatus>,
    /// What the checkpoint is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// Memory of the autoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingState>,
    /// How far the rollout is; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutProgress>,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<GroupSummary>,
    /// Accepted, Placed, Ready, Progressing, Degraded, Reconciling, Stalled, Routable, Scalable.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What sizing decided. Sizes are for the rank that needs most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// Whether a group can be made.
    pub fits: bool,
    /// Why not, and what would fit; or empty.
    #[serde(default)]
    pub message: String,
    /// Ranks of a group.
    #[serde(default)]
    pub ranks: i32,
    /// Pods of a group, each on a node of its own where `placement.onePodPerNode` asks for it or there is one.
    #[serde(default)]
    pub nodes: i32,
    /// Ranks of a pod.
    #[serde(default)]
    pub ranks_per_pod: i32,
    /// Longest context in tokens.
    #[serde(default)]
    pub max_context_length: i64,
    /// Bytes of weights on a rank.
    #[serde(default)]
    pub weight_bytes_per_rank: i64,
    /// Bytes of key/value cache of a token on a rank.
    #[serde(default)]
    pub kv_bytes_per_token_per_rank: i64,
    /// Bytes for keys and values on a rank.
    #[serde(default)]
    pub kv_bytes_per_rank: i64,
    /// Tokens that the key/value cache of a group holds.
    #[serde(default)]
    pub kv_tokens: i64,
    /// Bytes of memory that a rank needs in all.
    #[serde(default)]
    pub memory_bytes_per_rank: i64,
}

/// What the inspect pod found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Digest of the source and tensor-parallel size that were inspected.
    pub key: String,
    /// The pod that read it.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The worker image that it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The image that ran, as the container runtime names it.
    #[serde(default, rename = "imageID", skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// When.
    pub inspected_at: Time,
    /// What was found; absent when the checkpoint could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<CheckpointSummary>,
    /// Why the checkpoint could not be read, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a rollout is, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutProgress {
    /// How far, in words.
    pub mark: String,
    /// Since when it has been that far.
    pub since: Time,
}

/// Memory of the autoscaler, so that a restarted operator goes on where the last one stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingState {
    /// Since when the load has asked for fewer groups than there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_since: Option<Time>,
    /// The most groups the load asked for since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_peak: Option<i32>,
    /// Since when there has been no request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since: Option<Time>,
    /// Requests that the gateways had counted by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_total: Option<i64>,
    /// Who else wrote spec.replicas lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_writer: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_write_at: Option<Time>,
    /// Why the number of groups is what it is.
    #[serde(default)]
    pub message: String,
}

/// One group at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupSummary {
    /// Name of the `LlamaGroup`.
    pub name: String,
    /// Revision it runs.
    pub revision: String,
    /// Membership.
    pub generation: i64,
    /// How far it is.
    pub phase: GroupPhase,
    /// Whether it serves.
    pub ready: bool,
    /// Bytes of weights in memory, over all ranks.
    pub loaded_bytes: i64,
    /// Bytes of weights to load, over all ranks.
    pub total_bytes: i64,
    /// The latest failure of a member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<MemberFailure>,
}
