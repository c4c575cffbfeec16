//! The names that the operator, the workers, the gateway and the chart agree on.

/// API group of all resources.
pub const GROUP: &str = "llamero.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// Label: name of the `LlamaDeployment`.
pub const DEPLOYMENT: &str = "llamero.dev/deployment";
/// Label: name of the `LlamaGroup`.
pub const GROUP_NAME: &str = "llamero.dev/group";
/// Label: index of the pod in its group, from 0.
pub const MEMBER: &str = "llamero.dev/member";
/// Label: how often this member was replaced before.
pub const ATTEMPT: &str = "llamero.dev/attempt";
/// Label: [`ROLE_LEADER`] or [`ROLE_MEMBER`]. `status.selector` of a deployment matches leaders only.
pub const ROLE: &str = "llamero.dev/role";
/// Label: the revision that a group runs.
pub const REVISION: &str = "llamero.dev/revision";
/// Label on inspect pods: which source they look into (see `status.checkpoint.key`).
pub const INSPECT: &str = "llamero.dev/inspect";
/// Label on placeholders: name of the `LlamaGroup`. Not the label of its members, by which disruption budgets count.
pub const PLACEHOLDER_OF: &str = "llamero.dev/placeholder-of";
/// Label on placeholders: the member whose room they hold.
pub const PLACEHOLDER: &str = "llamero.dev/placeholder";
/// Annotation on inspect pods and network policies: digest of the settings they were made with, so that corrected ones make others.
pub const SETTINGS: &str = "llamero.dev/settings";
/// Value of [`ROLE`] on the pod of rank 0.
pub const ROLE_LEADER: &str = "leader";
/// Value of [`ROLE`] on all other worker pods.
pub const ROLE_MEMBER: &str = "member";

/// Annotation on CustomResourceDefinitions: the release that they are of, so that none goes back from a newer one.
pub const SCHEMA_VERSION: &str = "llamero.dev/schema-version";

/// `app.kubernetes.io/name`.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// `app.kubernetes.io/managed-by`.
pub const APP_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// `app.kubernetes.io/part-of`.
pub const APP_PART_OF: &str = "app.kubernetes.io/part-of";
/// Value of [`APP_PART_OF`] everywhere.
pub const PART_OF: &str = "llamero";
/// Value of [`APP_NAME`] on worker pods.
pub const WORKER_APP: &str = "llamero-worker";
/// Value of [`APP_NAME`] on inspect pods.
pub const INSPECT_APP: &str = "llamero-inspect";
/// Value of [`APP_NAME`] on placeholders.
pub const PLACEHOLDER_APP: &str = "llamero-placeholder";
/// Priority class of placeholders, which the chart makes.
pub const PLACEHOLDER_CLASS: &str = "llamero-placeholder";
/// Its value: below that of pods that say nothing, so that members, and whoever else is short of room, take it.
pub const PLACEHOLDER_PRIORITY: i32 = -1;
/// Value of [`APP_NAME`] on gateway pods.
pub const GATEWAY_APP: &str = "llamero-gateway";

/// Scheduling gate that holds a pod until its whole group is there.
pub const PLACEMENT_GATE: &str = "llamero.dev/placement";
/// Field manager, and value of [`APP_MANAGED_BY`].
pub const FIELD_MANAGER: &str = "llamero-operator";

/// vllm.Inference, Completion, Telemetry: on the leader's pod.
pub const INFERENCE_PORT: u16 = 18051;
/// RankControl: on every worker pod.
pub const CONTROL_PORT: u16 = 18052;
/// Demand: on every gateway pod.
pub const DEMAND_PORT: u16 = 18053;
/// Enrolment: on every operator pod, where links are authenticated.
pub const ENROLMENT_PORT: u16 = 18054;
/// Liveness, readiness and metrics of a worker pod.
pub const HEALTH_PORT: u16 = 8080;
/// Port of the first rank of a pod for its peers; rank `i` of the pod listens at `RANK_PORT + i`.
pub const RANK_PORT: u16 = 18100;

/// Longest name of a `LlamaDeployment`: the names of its pods must still fit a label.
pub const MAX_DEPLOYMENT_NAME: usize = 40;

/// Labels that every object of a deployment carries.
#[must_use]
pub fn common(deployment: &str, app: &str) -> std::collections::BTreeMap<String, String> {
    [
        (DEPLOYMENT, deployment),
        (APP_NAME, app),
        (APP_MANAGED_BY, FIELD_MANAGER),
        (APP_PART_OF, PART_OF),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Name of a member's pod.
#[must_use]
pub fn pod_name(group: &str, index: i32, attempt: i32) -> String {
    format!("{group}-{index}-{attempt}")
}

/// Name of a pod that holds the room of a member; `number` tells apart those that follow each other.
#[must_use]
pub fn placeholder_name(group: &str, index: i32, number: u32) -> String {
    format!("{group}-{index}-room-{number}")
}

/// Name of the group with this ordinal.
#[must_use]
pub fn group_name(deployment: &str, ordinal: u32) -> String {
    format!("{deployment}-{ordinal}")
}

/// Name of the `ControllerRevision` that keeps the revision with this digest.
#[must_use]
pub fn revision_name(deployment: &str, digest: &str) -> String {
    format!("{deployment}-{digest}")
}

/// Name of the Service in front of a deployment's leaders.
#[must_use]
pub fn service_name(deployment: &str) -> String {
    format!("{deployment}-inference")
}

/// Name of the pod that inspects the source with this key.
#[must_use]
pub fn inspect_pod_name(deployment: &str, key: &str) -> String {
    format!("{deployment}-inspect-{key}")
}

/// Label selector for the leaders of a deployment, as `status.selector` shows it.
#[must_use]
pub fn leader_selector(deployment: &str) -> String {
    format!("{DEPLOYMENT}={deployment},{ROLE}={ROLE_LEADER}")
}
