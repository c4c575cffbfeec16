//! Objects that follow from a deployment or group and are kept as they should be: server-side applied when they are missing, when
//! somebody changed a field that is ours, and when a new version of the operator wants another one.

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        networking::v1::NetworkPolicy,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use serde_json::Value;

use crate::{
    groups::GroupView,
    network,
    observed::{Deployment, Settings},
    plan::{Action, EventKind, Key, Step},
};

/// An object as it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum ManagedObject {
    /// The Service in front of a deployment's leaders.
    Service(Box<Service>),
    /// The disruption budget of a group.
    Budget(Box<PodDisruptionBudget>),
    /// Who may reach the pods of a deployment.
    Policy(Box<NetworkPolicy>),
}

impl ManagedObject {
    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Service(object) => object.metadata.name.as_deref(),
            Self::Budget(object) => object.metadata.name.as_deref(),
            Self::Policy(object) => object.metadata.name.as_deref(),
        }
        .unwrap_or_default()
    }
}

/// What is to be applied for a deployment. The policy first: no pod is to stand there without.
pub fn of_deployment(deployment: &Deployment, key: &Key, settings: &Settings, steps: &mut Vec<Step>) {
    steps.extend(policy(deployment, key, settings));
    steps.extend(service(deployment, key));
}

fn policy(deployment: &Deployment, key: &Key, settings: &Settings) -> Option<Step> {
    let wanted = network::of_deployment(deployment, settings.network.as_ref()?)?;
    if let Some(found) = &deployment.network_policy
        && shows(found.as_ref(), &wanted)
    {
        return None;
    }
    Some(Step {
        action: Action::Apply {
            owner: key.clone(),
            owner_uid: deployment.object.metadata.uid.clone().unwrap_or_default(),
            object: ManagedObject::Policy(Box::new(wanted)),
        },
        reason: "Fenced",
        message: "a NetworkPolicy around the pods".to_owned(),
        event: EventKind::None,
    })
}

fn service(deployment: &Deployment, key: &Key) -> Option<Step> {
    let wanted = leader_service(&deployment.object);
    if deployment
        .service
        .as_ref()
        .is_some_and(|found| shows(found.as_ref(), &wanted))
    {
        return None;
    }
    Some(Step {
        action: Action::Apply {
            owner: key.clone(),
            owner_uid: deployment.object.metadata.uid.clone().unwrap_or_default(),
            object: ManagedObject::Service(Box::new(wanted)),
        },
        reason: "Exposed",
        message: "a Service in front of the leaders".to_owned(),
        event: EventKind::None,
    })
}

/// What is to be applied for a group. Before a rank holds weights its pods may be evicted, so there is no budget yet: the disruption controller
/// would write its status for each pod that comes up.
#[must_use]
pub fn of_group(view: &GroupView<'_>, settings: &Settings) -> Option<Step> {
    let holds_weights = holds_weights(view);
    if view.group.budget.is_none() && !holds_weights {
        return None;
    }
    // Who may read no nodes moves nobody ahead of a drain, which would never end if no pod could be evicted: it may take one at a time.
    let spared = usize::from(settings.unpinned);
    let pods = view.members.len().saturating_sub(spared);
    let wanted = disruption_budget(&view.group.object, pods, holds_weights);
    if view
        .group
        .budget
        .as_ref()
        .is_some_and(|found| shows(found.as_ref(), &wanted))
    {
        return None;
    }
    Some(Step {
        action: Action::Apply {
            owner: view.key.clone(),
            owner_uid: view.uid(),
            object: ManagedObject::Budget(Box::new(wanted)),
        },
        reason: "Protected",
        message: format!("voluntary disruptions leave minAvailable {pods}"),
        event: EventKind::None,
    })
}

/// Some rank of the group has weights to lose.
fn holds_weights(view: &GroupView<'_>) -> bool {
    let pods = view.members.iter().filter_map(|m| m.pod);
    let mut reports = pods.filter_map(|pod| pod.report.as_ref()).peekable();
    if reports.peek().is_none() {
        let status = view.group.object.status.as_ref();
        return status.is_some_and(|status| status.loaded_bytes > 0);
    }
    reports
        .flat_map(|report| &report.ranks)
        .any(|rank| rank.loaded_bytes > 0)
}

/// Whether an object has every field as wanted; fields that are not ours may be anything.
fn shows<K: serde::Serialize>(found: &K, wanted: &K) -> bool {
    match (serde_json::to_value(found), serde_json::to_value(wanted)) {
        (Ok(found), Ok(wanted)) => covers(&found, &wanted),
        _ => false,
    }
}

fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| found.get(key).is_some_and(|found| covers(found, wanted))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found
                    .iter()
                    .zip(wanted)
                    .all(|(found, wanted)| covers(found, wanted))
        }
        _ => found == wanted,
    }
}

/// Headless Service over the ready leaders. gRPC keeps one connection open; names that resolve to all leaders let a client balance by
/// itself. The gateway does not need it.
#[must_use]
pub fn leader_service(deployment: &LlamaDeployment) -> Service {
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let selector = [
        (labels::DEPLOYMENT, name.as_str()),
        (labels::ROLE, labels::ROLE_LEADER),
    ];
    Service {
        metadata: ObjectMeta {
            name: Some(labels::service_name(&name)),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels::common(&name, labels::WORKER_APP)),
            owner_references: Some(vec![owner("LlamaDeployment", &deployment.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            ip_family_policy: Some("PreferDualStack".to_owned()),
            selector: Some(
                selector
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            ports: Some(vec![ServicePort {
                name: Some("grpc".to_owned()),
                port: i32::from(labels::INFERENCE_PORT),
                target_port: Some(IntOrString::String("inference".to_owned())),
                app_protocol: Some("kubernetes.io/h2c".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// Budget of which `pods`, as a rule all of the group, are never disrupted voluntarily: a group is whole or useless. Pods that are not ready may be evicted as long
/// as no rank holds weights; survivors, which are not ready while they form anew, may not.
#[must_use]
pub fn disruption_budget(group: &LlamaGroup, pods: usize, holds_weights: bool) -> PodDisruptionBudget {
    let name = group.metadata.name.clone().unwrap_or_default();
    let selector = [(labels::GROUP_NAME.to_owned(), name.clone())];
    PodDisruptionBudget {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: group.metadata.namespace.clone(),
            labels: Some(labels::common(&group.spec.deployment, labels::WORKER_APP)),
            owner_references: Some(vec![owner("LlamaGroup", &group.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(pods).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_labels: Some(selector.into()),
                match_expressions: None,
            }),
            unhealthy_pod_eviction_policy: Some(
                if holds_weights {
                    "IfHealthyBudget"
                } else {
                    "AlwaysAllow"
                }
                .to_owned(),
            ),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// Reference that makes the object of this metadata the controlling owner.
pub(crate) fn owner(kind: &str, metadata: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: format!("{}/{}", labels::GROUP, labels::VERSION),
        kind: kind.to_owned(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn added_fields_are_left_alone_and_changed_ones_are_not() {
        let wanted = json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 1}]}});
        for (found, same) in [
            (
                json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 1, "protocol": "TCP"}], "clusterIPs": ["None"]}}),
                true,
            ),
            (
                json!({"spec": {"selector": {"a": "c"}, "ports": [{"port": 1}]}}),
                false,
            ),
            (
                json!({"spec": {"selector": {"a": "b"}, "ports": [{"port": 1}, {"port": 2}]}}),
                false,
            ),
            (json!({"spec": {"ports": [{"port": 1}]}}), false),
        ] {
            assert_eq!(covers(&found, &wanted), same, "{found}");
        }
    }
}
