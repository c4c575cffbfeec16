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

use k8s_openapi::api::core::v1::Taint;
use llamero_api::{LlamaDeployment, LlamaGroup, group::RankPhase};

use crate::{resources::Resources, time::Millis};

/// Who was not heard for this long says nothing about the present.
pub const STALE_AFTER: Millis = 10_000;

/// Everything that decisions are made from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// How the operator was installed.
    pub settings: Settings,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// Values of the cluster's priority classes.
    pub priority_classes: BTreeMap<String, i32>,
    /// Value of the class that is the global default, else 0.
    pub default_priority: i32,
    /// All `LlamaDeployment`s.
    pub deployments: Vec<Deployment>,
}

/// How the operator was installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Worker image of deployments that name none.
    pub worker_image: String,
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
    /// Group names of this namespace that must not be used for new groups although no group above bears them: groups of other owners,
    /// and values of the group label on pods that still exist.
    pub names_in_use: BTreeSet<String>,
    /// Pods with the inspect label, owned by this object.
    pub inspect: Vec<InspectPod>,
    /// Whether the Service in front of the leaders exists, owned by this object.
    pub has_service: bool,
    /// What the gateways hold for it; absent when no gateway is known.
    pub demand: Option<Demand>,
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
    /// `metadata.creationTimestamp`.
    pub created_at: Millis,
    /// How far it is.
    pub phase: PodPhase,
    /// It has a deletion timestamp.
    pub terminating: bool,
    /// Termination message of its container.
    pub result: Option<String>,
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
    /// When the oldest of the summed samples was received.
    pub received_at: Millis,
}

/// A `LlamaGroup` and what belongs to it.
#[derive(Clone, Debug)]
pub struct Group {
    /// The object, never older than the last write of this process.
    pub object: Arc<LlamaGroup>,
    /// Pods whose controlling owner is this object, by UID.
    pub pods: Vec<Pod>,
    /// `spec.minAvailable` of its PodDisruptionBudget, if there is one.
    pub pdb_min_available: Option<i32>,
    /// Load as the leader tells it.
    pub load: Option<Load>,
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
    /// `status.phase`.
    pub phase: PodPhase,
    /// `metadata.deletionTimestamp`: when the kubelet kills it at the latest.
    pub deletion: Option<Millis>,
    /// Condition Ready is True.
    pub ready: bool,
    /// `status.podIP`.
    pub ip: Option<String>,
    /// Condition DisruptionTarget is True: evicted or preempted.
    pub evicted: bool,
    /// How the container ended.
    pub exit: Option<Exit>,
    /// Why the container does not start, as the kubelet says (reason and message of its waiting state).
    pub waiting: Option<String>,
    /// Why the pod is not scheduled, as the scheduler says.
    pub unschedulable: Option<String>,
    /// The latest report of its supervisor, if its control port was ever reached.
    pub report: Option<Report>,
}

impl Pod {
    /// Its latest report, if that still speaks of the present.
    #[must_use]
    pub fn fresh_report(&self, now: Millis) -> Option<&Report> {
        self.report
            .as_ref()
            .filter(|report| self.phase == PodPhase::Running && now - report.alive_at <= STALE_AFTER)
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
    /// When the supervisor was last known to be reachable: this report, or a later keep-alive of the open stream.
    pub alive_at: Millis,
    /// Generation the pod holds; 0 before the first Form.
    pub generation: i64,
    /// Its ranks.
    pub ranks: Vec<Rank>,
    /// A step of the whole group was completed within the stall time-out. Leader only.
    pub serving: bool,
    /// The group drains.
    pub draining: bool,
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
    /// Why it is not further.
    pub message: String,
}
