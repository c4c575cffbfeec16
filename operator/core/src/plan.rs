//! What is to be done: the output of [`crate::decide`].

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use llamero_api::{
    deployment::{AutoscalingState, CheckpointStatus, PlanStatus},
    group::{GroupTemplate, LlamaGroupSpec},
};

use crate::{children::ManagedObject, time::Millis};

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// Of an object's metadata.
    #[must_use]
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Another name in the same namespace.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        Self {
            namespace: self.namespace.clone(),
            name: name.to_owned(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Steps in the order in which they are to be applied, and what the report needs to know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Steps. Any subset may be applied; deciding again converges.
    pub steps: Vec<Step>,
    /// What was found out about each deployment.
    pub verdicts: BTreeMap<Key, Verdict>,
    /// When to decide again although nothing was seen to change.
    pub next_at: Option<Millis>,
}

/// One step and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// One word in CamelCase, for Events and metrics.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Which kind of Event to record once the step was applied.
    pub event: EventKind,
}

/// Whether a step is worth an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// No Event.
    None,
    /// Type Normal.
    Normal,
    /// Type Warning.
    Warning,
}

/// A pod that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// Namespace and name.
    pub key: Key,
    /// UID: precondition of whatever is done to it.
    pub uid: String,
}

/// What to do. Everything names its object; nothing depends on another step having been applied.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create a `LlamaGroup` owned by the deployment. That it exists already, with the same owner, is success.
    CreateGroup {
        /// The deployment.
        deployment: Key,
        /// Its UID, for the owner reference.
        deployment_uid: String,
        /// Name of the group.
        name: String,
        /// Its specification.
        spec: Box<LlamaGroupSpec>,
    },
    /// Replace a group's specification, fenced by its resource version. On conflict: drop it and decide again.
    WriteGroup {
        /// The group.
        group: Key,
        /// `metadata.resourceVersion` that was read.
        resource_version: String,
        /// The new specification.
        spec: Box<LlamaGroupSpec>,
        /// What an uncached list of the group's pods must show first; else drop the step and decide again.
        confirm: Confirm,
    },
    /// Create the gated pod of a member from the group's template. That it exists already, with the same owner UID, is success.
    CreatePod {
        /// The group.
        group: Key,
        /// Name of the pod.
        name: String,
        /// The member.
        index: i32,
        /// Its attempt.
        attempt: i32,
    },
    /// Create the pod that holds the room of a member, pinned to no node. That it exists already, with the same owner UID, is success.
    CreatePlaceholder {
        /// The group.
        group: Key,
        /// Name of the pod.
        name: String,
        /// The member.
        index: i32,
        /// It ends by itself after so many seconds on a node.
        most_seconds: i64,
    },
    /// One JSON patch: `test` the UID, pin the pod to the node by required affinity on `metadata.name`, remove the placement gate.
    Ungate {
        /// The group.
        group: Key,
        /// The pod.
        pod: PodRef,
        /// The node.
        node: String,
    },
    /// Delete a pod with its UID as precondition. That it is gone is success.
    DeletePod {
        /// The object that gets the Event: the group, or the deployment of an inspect pod.
        owner: Key,
        /// The pod.
        pod: PodRef,
        /// Grace in seconds; absent: the pod's own.
        grace_seconds: Option<i64>,
    },
    /// Push `RankControl.Form` to the targets. Idempotent.
    Form {
        /// The group.
        group: Key,
        /// Its UID.
        group_uid: String,
        /// Generation.
        generation: i64,
        /// Ranks that the group does without, in the order in which they were given up.
        lost: Vec<u32>,
        /// All other ranks in rank order.
        members: Vec<FormMember>,
        /// Pods that do not hold this generation yet.
        targets: Vec<FormTarget>,
    },
    /// Call `RankControl.Drain` on the leader. Idempotent.
    DrainGroup {
        /// The group.
        group: Key,
        /// The leader's pod.
        leader: FormTarget,
    },
    /// Delete a `LlamaGroup` with its UID as precondition, in the background: its pods follow by their owner references.
    DeleteGroup {
        /// The group.
        group: Key,
        /// Its UID.
        uid: String,
    },
    /// Server-side apply an object that follows from a deployment or group.
    Apply {
        /// The deployment or group.
        owner: Key,
        /// Its UID: nobody else's object of this name is touched.
        owner_uid: String,
        /// The object as it should be.
        object: ManagedObject,
    },
    /// Write `spec.replicas` through the scale subresource, fenced by the resource version. On conflict: drop it and decide again.
    ScaleDeployment {
        /// The deployment.
        deployment: Key,
        /// Its UID.
        deployment_uid: String,
        /// `metadata.resourceVersion` that was read.
        resource_version: String,
        /// Groups.
        replicas: i32,
    },
    /// Create the `ControllerRevision` that keeps a snapshot. That it exists already, with the same owner, is success.
    CreateRevision {
        /// The deployment.
        deployment: Key,
        /// Its UID, for the owner reference.
        deployment_uid: String,
        /// Name of the revision.
        name: String,
        /// Digest of the user's own words.
        digest: String,
        /// `revision`.
        number: i64,
        /// The snapshot.
        template: Box<GroupTemplate>,
    },
    /// Give a kept revision a new number.
    RenumberRevision {
        /// The deployment.
        deployment: Key,
        /// Name of the revision.
        name: String,
        /// Its UID.
        uid: String,
        /// `revision`.
        number: i64,
    },
    /// Delete a kept revision with its UID as precondition. That it is gone is success.
    DeleteRevision {
        /// The deployment.
        deployment: Key,
        /// Name of the revision.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Create the pod that inspects the checkpoint. That it exists already is success.
    CreateInspectPod {
        /// The deployment.
        deployment: Key,
        /// Name of the pod.
        name: String,
        /// Value of the inspect label.
        key: String,
        /// What groups of a revision that is rolled out are made from: the pod tries whether they start. Absent: it is made from the deployment's own words.
        trial: Option<Box<GroupTemplate>>,
        /// The node that a trial must run on and another pod should, or [`ANY_NODE`](crate::placement::ANY_NODE).
        node: String,
    },
}

impl Action {
    /// Its name, for logs and metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateGroup { .. } => "CreateGroup",
            Self::WriteGroup { .. } => "WriteGroup",
            Self::CreatePod { .. } => "CreatePod",
            Self::CreatePlaceholder { .. } => "CreatePlaceholder",
            Self::Ungate { .. } => "Ungate",
            Self::DeletePod { .. } => "DeletePod",
            Self::Form { .. } => "Form",
            Self::DrainGroup { .. } => "DrainGroup",
            Self::DeleteGroup { .. } => "DeleteGroup",
            Self::Apply { .. } => "Apply",
            Self::ScaleDeployment { .. } => "ScaleDeployment",
            Self::CreateInspectPod { .. } => "CreateInspectPod",
            Self::CreateRevision { .. } => "CreateRevision",
            Self::RenumberRevision { .. } => "RenumberRevision",
            Self::DeleteRevision { .. } => "DeleteRevision",
        }
    }

    /// Name of the action and of the object that it makes or changes: what a refusal is remembered by.
    #[must_use]
    pub fn target(&self) -> String {
        let name = match self {
            Self::CreateGroup { name, spec, .. } => format!("{name} {}", spec.revision),
            Self::CreatePod { name, .. }
            | Self::CreatePlaceholder { name, .. }
            | Self::CreateInspectPod { name, .. }
            | Self::CreateRevision { name, .. }
            | Self::RenumberRevision { name, .. }
            | Self::DeleteRevision { name, .. } => name.clone(),
            Self::WriteGroup { group, .. }
            | Self::Form { group, .. }
            | Self::DrainGroup { group, .. }
            | Self::DeleteGroup { group, .. } => group.name.clone(),
            Self::Ungate { pod, .. } | Self::DeletePod { pod, .. } => pod.key.name.clone(),
            Self::Apply { object, .. } => object.name().to_owned(),
            Self::ScaleDeployment { deployment, .. } => deployment.name.clone(),
        };
        format!("{} {name}", self.kind())
    }
}

/// What an uncached list of a group's pods must show before a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirm {
    /// UIDs that exist and are not being deleted.
    pub present: Vec<String>,
    /// UIDs that do not exist, or are being deleted, or have ended.
    pub gone: Vec<String>,
}

/// A rank in `Form`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormMember {
    /// Rank in the group.
    pub rank: u32,
    /// Its pod.
    pub pod_uid: String,
    /// Address of its pod.
    pub ip: String,
    /// Port for its peers.
    pub port: u16,
}

/// A pod that a call goes to, at the control port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormTarget {
    /// Its UID.
    pub pod_uid: String,
    /// Its address.
    pub ip: String,
}

/// What was found out about a deployment, for the report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether its specification can be served.
    pub acceptance: Acceptance,
    /// What sizing found, once the checkpoint is known.
    pub plan: Option<PlanStatus>,
    /// What the checkpoint is, as it is to be kept in the status.
    pub checkpoint: Option<CheckpointStatus>,
    /// The revision of new groups.
    pub revision: String,
    /// Wanted groups.
    pub desired: i32,
    /// Memory of the autoscaler.
    pub autoscaling: Option<AutoscalingState>,
    /// By group: what is missing for its placement.
    pub no_room: BTreeMap<String, String>,
    /// Groups among them for which nodes are asked, or will be.
    pub provisioning: BTreeSet<String>,
    /// By group: what is missing for successors of members whose nodes are being taken away.
    pub no_room_to_move: BTreeMap<String, String>,
    /// Another, older deployment that the model name belongs to.
    pub name_owner: Option<Key>,
    /// Why no group goes although the new revision has no room beside the old one.
    pub trial: Option<String>,
    /// Groups that must leave their nodes and may not, as fewer than `rollout.maxUnavailable` allows would serve.
    pub held: BTreeSet<String>,
    /// Why what is served, as it was accepted before, would be refused now.
    pub outgrown: Option<String>,
    /// The installation authenticates links.
    pub authenticated: bool,
    /// Why no certificates are given out.
    pub unenrollable: Option<String>,
    /// What is wrong with the cluster's CustomResourceDefinitions.
    pub definitions: Option<String>,
    /// The operator may read no nodes, so the scheduler alone chooses them.
    pub unpinned: bool,
    /// Why a step about the deployment itself was refused, in the words of who refused it.
    pub refusal: Option<String>,
}

/// Whether a specification can be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Acceptance {
    /// The checkpoint's headers are being read; why that takes long, or empty.
    Inspecting(String),
    /// The checkpoint cannot be read: why, and what to do.
    Unreadable(String),
    /// It does not fit: why, and what would.
    Refused(String),
    /// The worker image cannot compute on what is asked for: why, and what to do.
    NoBackend(String),
    /// The installation does not allow it: what, and what to do.
    PolicyRefused(String),
    /// The revision that it is to run is not kept: why, and which ones are.
    NoRevision(String),
    /// It can.
    #[default]
    Accepted,
}
