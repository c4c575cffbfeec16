//! What is shown: each deployment with its groups, as the operator last wrote it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, LlamaDeploymentStatus, LlamaGroup, deployment::condition};
use serde_json::{Value, json};

use crate::observe::owned;

/// Deployments with their groups.
#[derive(Clone, Debug, Default)]
pub struct Tree<'a> {
    /// In the order of namespaces and names.
    pub deployments: Vec<(&'a LlamaDeployment, Vec<&'a LlamaGroup>)>,
}

impl<'a> Tree<'a> {
    /// Groups below the deployments that control them.
    #[must_use]
    pub fn of(deployments: &'a [LlamaDeployment], groups: &'a [LlamaGroup]) -> Self {
        let mut sorted: Vec<&LlamaDeployment> = deployments.iter().collect();
        sorted.sort_by_key(|object| (object.namespace(), object.name_any()));
        let below = |object: &LlamaDeployment| {
            let mut below: Vec<&LlamaGroup> = groups.iter().filter(|group| owned(*group, object)).collect();
            below.sort_by_key(|group| (group.name_any().len(), group.name_any()));
            below
        };
        Self {
            deployments: sorted.into_iter().map(|object| (object, below(object))).collect(),
        }
    }

    /// The same for programs: the statuses as the operator wrote them.
    #[must_use]
    pub fn json(&self) -> Value {
        let group = |group: &&LlamaGroup| {
            json!({"name": group.name_any(), "revision": group.spec.revision, "generation": group.spec.generation,
                "members": group.spec.members, "status": group.status})
        };
        let deployments = self.deployments.iter().map(|(object, groups)| {
            json!({"namespace": object.namespace(), "name": object.name_any(), "replicas": object.spec.replicas,
                "status": object.status, "groups": groups.iter().map(group).collect::<Vec<_>>()})
        });
        Value::Array(deployments.collect())
    }
}

/// Whether the operator has seen the object as it is now.
#[must_use]
pub fn observed(object: &LlamaDeployment) -> Option<&LlamaDeploymentStatus> {
    let status = object.status.as_ref()?;
    (status.observed_generation >= object.metadata.generation.unwrap_or(0)).then_some(status)
}

/// Whether a condition is as it is in a deployment with which nothing is wrong and nothing goes on.
#[must_use]
pub fn at_rest(condition: &Condition) -> bool {
    let wanted = match condition.type_.as_str() {
        condition::PROGRESSING | condition::DEGRADED | condition::RECONCILING | condition::STALLED => "False",
        _ => "True",
    };
    condition.status == wanted
}

/// Whether it says that something is wrong, and not only that something goes on.
#[must_use]
pub fn is_wrong(condition: &Condition) -> bool {
    !at_rest(condition)
        && !matches!(
            condition.type_.as_str(),
            condition::PROGRESSING | condition::RECONCILING
        )
}
