//! The cluster as the caches show it: the whole input of [`crate::decide`].
//!
//! ```text
//! Observed
//!   nodes[]        what they offer, what is used on them (all pods, ours too)
//!   deployments[]  the object, its inspect pods, its gateways' demand
//!     groups[]     the object, its leader's load
//!       pods[]     the pod, the latest report of its supervisor
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Service, Taint},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use llamero_api::{
    LlamaDeployment, LlamaGroup,
    deployment::PullPolicy,
    group::{DeviceStatus, GroupTemplate, LlamaGroupSpec, RankPhase, Transport},
};

use crate::{network::Network, policy::Policy, resources::Resources, time::Millis, volumes::Claims};

/// Who was not heard for this long says nothing about the present.
pub const STALE_AFTER: Millis = 10_000;

/// [`Report::alive_at`] of a supervisor whose stream is open: it is there now, whenever that is.
pub const OPEN: Millis = Millis::MAX;

/// Everything that decisions are made from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// How the operator was installed.
    pub settings: Settings,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// The cluster's priority classes.
    pub priority_classes: BTreeMap<String, Priority>,
    /// That of pods which name no class.
    pub default_priority: Priority,
    /// All `LlamaDeployment`s.
    pub deployments: Vec<Deployment>,
}

/// What a priority class gives to its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority {
    /// Higher ones come first.
    pub value: i32,
    /// Pods of lower priority are evicted where they are in the way (`preemptionPolicy`).
    pub preempts: bool,
}

impl Default for Priority {
    fn default() -> Self {
        Self {
            value: 0,
            preempts: true,
        }
    }
}

impl Priority {
    /// Pods of this priority and above stay where they are.
    #[must_use]
    pub const fn lowest_that_stays(self) -> i32 {
        if self.preempts { self.value } else { i32::MIN }
    }
}

/// How the operator was installed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Worker image of deployments that name none.
    pub worker_image: String,
    /// When that image is pulled.
    pub pull_policy: Option<PullPolicy>,
    /// Image of placeholders: a small one, which is there in a moment.
    pub placeholder_image: String,
    /// Secrets with registry credentials, beside those that a deployment names.
    pub pull_secrets: Vec<String>,
    /// What is wrong with the cluster's CustomResourceDefinitions.
    pub definitions: Option<String>,
    /// Keys of taints that say that a node is being taken away.
    pub disruption_taints: Vec<String>,
    /// Keys of taints that say that a node goes within two minutes.
    pub urgent_taints: Vec<String>,
    /// What tenants may ask for.
    pub policy: Policy,
    /// How worker pods are fenced; absent: nobody looks after that.
    pub network: Option<Network>,
    /// How pods of new groups are reached.
    pub transport: Transport,
    /// Where pods enrol; absent: they cannot.
    pub enrolment: Option<Enrolment>,
    /// Why they cannot, and who waits for a certificate will not be reached, where somebody must do something about it.
    pub unenrollable: Option<String>,
    /// Nodes, pods of other namespaces and priority classes cannot be read, so the scheduler alone chooses nodes.
    pub unpinned: bool,
}

/// Where pods come by their certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// `host:port` of the operator's enrolment.
    pub address: String,
    /// Namespace of operator and gateways.
    pub installation: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Certificates that are believed, in PEM.
    pub roots: String,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// Condition Ready is True.
    pub ready: bool,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
    /// `status.allocatable`.
    pub allocatable: Resources,
    /// What is taken, by priority of the takers: requests of every pod with this `spec.nodeName` that has not ended (terminating ones
    /// included), and of every pod nominated to this node, except pods of groups, whose reservations are known from `spec.members`.
    pub used: BTreeMap<i32, Resources>,
}

/// A `LlamaDeployment` and what belongs to it.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The object, with its status as last written.
    pub object: Arc<LlamaDeployment>,
    /// Groups whose controlling owner is this object, by UID.
    pub groups: Vec<Group>,
    /// Names of this namespace that new groups must not take: those of all groups, whoever owns them, and values of the group label on pods
    /// that still exist. One set is shared by all deployments of the namespace.
    pub names_in_use: Arc<BTreeSet<String>>,
    /// Claims of this namespace; one map is shared by all deployments of it. Empty where they may not be read.
    pub claims: Arc<Claims>,
    /// Pods with the inspect label, owned by this object.
    pub inspect: Vec<InspectPod>,
    /// The Service in front of the leaders, if it exists and is owned by this object.
    pub service: Option<Arc<Service>>,
    /// The NetworkPolicy of its pods, if it exists and is owned by this object.
    pub network_policy: Option<Arc<NetworkPolicy>>,
    /// Its kept revisions.
    pub revisions: Vec<Revision>,
    /// Field manager that wrote `spec.replicas` last; absent when nobody did and the API server's default stands there.
    pub replicas_manager: Option<String>,
    /// Steps about this object that were refused.
    pub refusals: Vec<Refusal>,
    /// What the gateways hold for it; absent when no gateway is known.
    pub demand: Option<Demand>,
}

/// A resolved snapshot, kept in a `ControllerRevision`.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Digest of the user's own words that it was resolved from.
    pub digest: String,
    /// `revision`: larger is newer.
    pub number: i64,
    /// The snapshot; absent when it cannot be read.
    pub template: Option<GroupTemplate>,
}

/// A pod that reads a checkpoint's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InspectPod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Value of the inspect label.
    pub key: String,
    /// How far it is.
    pub phase: PodPhase,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// The image it was made with.
    pub image: String,
    /// Digest of the settings it was made with; empty on pods of an operator that wrote none.
    pub settings: String,
    /// The image it ran, as the container runtime names it.
    pub image_id: Option<String>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// Termination message of its container.
    pub result: Option<String>,
    /// When its container ended, by the clock of its node.
    pub finished_at: Option<Millis>,
    /// When it was made, by the clock of the API server.
    pub created_at: Option<Millis>,
    /// Why it does not run, as the scheduler or kubelet says.
    pub waiting: Option<String>,
}

/// What the gateways hold for a deployment, summed over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Requests that wait because no group is ready.
    pub held: u32,
    /// Requests that were passed on and have not ended.
    pub in_flight: u32,
    /// Requests that the gateways have seen since they started: it moves although a request begins and ends between two samples.
    pub total: u64,
    /// When the oldest of the summed samples was received.
    pub received_at: Millis,
}

/// A step that was refused, and is remembered until it succeeds or is not asked for any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// [`Action::target`](crate::plan::Action::target) of the step.
    pub target: String,
    /// What the API server said, with the way out.
    pub message: String,
    /// When it was refused last.
    pub at: Millis,
    /// How often in a row.
    pub times: u32,
}

/// A `LlamaGroup` and what belongs to it.
#[derive(Clone, Debug)]
pub struct Group {
    /// The object, never older than the last write of this process.
    pub object: Arc<LlamaGroup>,
    /// A specification that is being written: it may stand there at any moment, or never. Its room is not promised to others.
    pub writing: Option<Arc<LlamaGroupSpec>>,
    /// Pods whose controlling owner is this object, by UID.
    pub pods: Vec<Pod>,
    /// Pods that hold room for its members, whose controlling owner is this object, by UID.
    pub placeholders: Vec<Placeholder>,
    /// Its PodDisruptionBudget, if it exists and is owned by this object.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// Steps about this object that were refused.
    pub refusals: Vec<Refusal>,
    /// Load as the leader tells it.
    pub load: Option<Load>,
}

/// A pod that does nothing but hold the room of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placeholder {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The member.
    pub index: i32,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// It has ended, for example because it was evicted, and holds nothing.
    pub ended: bool,
}

/// Load of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that run.
    pub running: u32,
    /// Requests that wait in the leader's queue.
    pub waiting: u32,
    /// When the sample was received.
    pub received_at: Millis,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodPhase {
    /// Not all containers have started, or the pod is not scheduled.
    #[default]
    Pending,
    /// Running.
    Running,
    /// All containers ended with 0.
    Succeeded,
    /// A container ended otherwise.
    Failed,
}

impl PodPhase {
    /// Whether the pod has ended and takes nothing from its node any more.
    #[must_use]
    pub const fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A worker pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Label member.
    pub index: i32,
    /// Label attempt.
    pub attempt: i32,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// Whether the placement gate is still there.
    pub gated: bool,
    /// What it asks of its node as it was admitted, while its gate is there.
    pub request: Option<Resources>,
    /// `status.phase`.
    pub phase: PodPhase,
    /// `metadata.deletionTimestamp` is set: the seconds that it was given to end. Not the time itself, which is by the API server's clock.
    pub deletion: Option<i64>,
    /// Condition Ready is True.
    pub ready: bool,
    /// `status.podIP`.
    pub ip: Option<String>,
    /// Condition DisruptionTarget is True: evicted or preempted.
    pub evicted: bool,
    /// It was its kubelet that evicted it, because the node ran out of memory, disk or processes.
    pub pressure: bool,
    /// How the container ended.
    pub exit: Option<Exit>,
    /// Why the container does not start, as the kubelet says (reason and message of its waiting state).
    pub waiting: Option<String>,
    /// Why the pod is not scheduled, as the scheduler says.
    pub unschedulable: Option<String>,
    /// The latest report of its supervisor, if its control port was ever reached.
    pub report: Option<Report>,
    /// Since when this process tries to hear its supervisor and has not; absent once there is a report, and where it is not tried.
    pub unheard_since: Option<Millis>,
    /// When it was bound to its node, by the scheduler's clock.
    pub scheduled_at: Option<Millis>,
    /// When its container began to run, by its node's clock.
    pub started_at: Option<Millis>,
}

impl Pod {
    /// Its latest report, if that still speaks of the present.
    #[must_use]
    pub fn fresh_report(&self, now: Millis) -> Option<&Report> {
        self.report.as_ref().filter(|report| {
            self.phase == PodPhase::Running && now.saturating_sub(report.alive_at) <= STALE_AFTER
        })
    }
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// One word of the kubelet: Error, OOMKilled, Completed.
    pub reason: String,
    /// Termination message.
    pub message: String,
}

/// What a supervisor told of its pod (`llamero.v1.PodReport`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// When it was received.
    pub received_at: Millis,
    /// When the supervisor was last known to be reachable: [`OPEN`], or when its stream broke.
    pub alive_at: Millis,
    /// Generation the pod holds; 0 before the first Form.
    pub generation: i64,
    /// Its ranks.
    pub ranks: Vec<Rank>,
    /// A step of the whole group was completed within the stall time-out. Leader only.
    pub serving: bool,
    /// The group drains.
    pub draining: bool,
    /// Tokens of the longest sequence that the group holds now; 0: not known. Leader only.
    pub longest_sequence: i64,
}

/// What a supervisor told of a rank (`llamero.v1.RankReport`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rank {
    /// Rank in the group.
    pub rank: i32,
    /// How far it is.
    pub phase: RankPhase,
    /// Bytes of its shard in memory.
    pub loaded_bytes: i64,
    /// Bytes of its shard.
    pub total_bytes: i64,
    /// Bytes its present process read from the checkpoint.
    pub read_bytes: i64,
    /// Attempt to connect within the generation.
    pub epoch: i64,
    /// Steps entered within the epoch.
    pub entered: i64,
    /// Steps completed within the epoch.
    pub completed: i64,
    /// Milliseconds since the last completed step, when the report was made.
    pub idle_millis: Option<i64>,
    /// Process id in the pod.
    pub pid: i32,
    /// How often its process was started again.
    pub restarts: i32,
    /// How its process ended last, in a sentence.
    pub last_exit: Option<String>,
    /// Its process ended and cannot work as it is configured: what is to be changed.
    pub unusable: Option<String>,
    /// Layers that its present process computed, over all steps: they move while a step is slow and stand still while it hangs.
    pub layers: i64,
    /// Milliseconds since a layer, a step or a read moved, when the report was made.
    pub still_millis: Option<i64>,
    /// What its weights are.
    pub content_identity: String,
    /// What its numbers depend on beside the weights: kernels, type of the cache.
    pub numerics: String,
    /// What it computes on.
    pub device: Option<DeviceStatus>,
    /// Why it is not further.
    pub message: String,
    /// How long its phases took before it first served.
    pub times: PhaseTimes,
}

/// Milliseconds that a rank was in each phase before it first served (`llamero.v1.PhaseTimes`); absent until it has left the phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes {
    /// From the start of its supervisor until it read weights.
    pub preflight: Option<Millis>,
    /// Until it had them.
    pub loading: Option<Millis>,
    /// Until its peers were there.
    pub connecting: Option<Millis>,
    /// Until a first step was done.
    pub warming: Option<Millis>,
}
