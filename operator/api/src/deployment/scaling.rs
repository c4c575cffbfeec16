//! How many groups there are, and how they change.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// Lets the operator choose the number of groups by load.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas")
    .message("autoscaling.minReplicas must not exceed autoscaling.maxReplicas"))]
#[serde(rename_all = "camelCase")]
pub struct Autoscaling {
    /// Fewest groups; 0 lets an idle deployment release everything. A request then waits at the gateway while a group starts.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: i32,
    /// Most groups.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Running and waiting requests that one group should have.
    #[serde(default = "sixteen")]
    #[schemars(range(min = 1, max = 100_000))]
    pub target_requests_per_group: i32,
    /// The load must have asked for fewer groups for this long before groups go. Choose at least the time a group takes to start.
    #[serde(default = "five_minutes")]
    pub scale_down_stabilization: Duration,
    /// With minReplicas 0: how long without any request until the last group goes.
    #[serde(default = "fifteen_minutes")]
    pub idle_timeout_to_zero: Duration,
}

const fn one() -> i32 {
    1
}

const fn sixteen() -> i32 {
    16
}

const fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

const fn fifteen_minutes() -> Duration {
    Duration::from_secs(900)
}

/// How groups of older revisions are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    /// Some after others, within maxSurge and maxUnavailable.
    #[default]
    RollingUpdate,
    /// All at once: groups of the new revision are made when the old ones are gone. Nothing answers meanwhile.
    Recreate,
}

/// How groups are replaced when their template changes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.strategy == 'Recreate' || self.maxSurge > 0 || self.maxUnavailable > 0")
    .message("rollout.maxSurge and rollout.maxUnavailable must not both be 0: no group could ever be replaced"),
    validation = Rule::new("self.strategy != 'Recreate' || !has(self.partition) || self.partition == 0")
    .message("rollout.partition needs the strategy RollingUpdate: Recreate lets all older groups go at once"))]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Whether old groups go before new ones are made.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// Groups that there may be beside the wanted ones while others are replaced. A serving group goes only when its replacement serves, as
    /// long as there is room for one.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_surge: i32,
    /// Where there is no room for a surge: ready groups that may be missing while others are replaced. A group is replaced by a new
    /// one; revisions never mix in a group.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub max_unavailable: i32,
    /// A canary: so many of the oldest groups keep the revision that they have, and only the others are replaced. 0 when it has proved itself.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 1000))]
    pub partition: i32,
    /// Share of the requests, in percent, that the gateway sends to groups of the new revision while older ones serve too. Absent: by load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub canary_percent: Option<i32>,
    /// Leave groups of older revisions alone.
    #[serde(default)]
    pub paused: bool,
    /// A rollout that gets no further for this long (no group made, no bytes loaded, none ready, none gone) is reported as stalled. It goes
    /// on being tried.
    #[serde(default = "forty_five_minutes")]
    pub progress_deadline: Duration,
    /// A kept revision that all groups are to run, whatever the rest of the specification says: the way back from a bad change. Remove it
    /// to follow the specification again. Kept are the last `revisionHistoryLimit`, in ControllerRevisions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub revision: Option<String>,
    /// Another time here reads the checkpoint again and replaces all groups: for weights that were changed in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<Time>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &i32) -> bool {
    *number == 0
}

const fn forty_five_minutes() -> Duration {
    Duration::from_secs(2700)
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            max_surge: 1,
            max_unavailable: 1,
            partition: 0,
            canary_percent: None,
            paused: false,
            progress_deadline: forty_five_minutes(),
            revision: None,
            restarted_at: None,
        }
    }
}
