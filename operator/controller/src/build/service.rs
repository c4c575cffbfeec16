//! The Service of a deployment and the PodDisruptionBudget of a group; both are server-side applied.

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, LlamaGroup, labels};

use super::parts;

/// Headless Service over the ready leaders. gRPC keeps one connection open; names that resolve to all leaders let a client balance by
/// itself. The gateway does not need it.
#[must_use]
pub fn leader_service(deployment: &LlamaDeployment) -> Service {
    let name = deployment.name_any();
    let selector = [
        (labels::DEPLOYMENT, name.as_str()),
        (labels::ROLE, labels::ROLE_LEADER),
    ];
    Service {
        metadata: ObjectMeta {
            name: Some(labels::service_name(&name)),
            namespace: deployment.namespace(),
            labels: Some(parts::common_labels(&name, labels::WORKER_APP)),
            owner_references: parts::owner_reference(deployment).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
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

/// Budget that allows no voluntary disruption of a single pod: a group is whole or useless, so the operator moves whole groups.
#[must_use]
pub fn disruption_budget(group: &LlamaGroup, min_available: i32) -> PodDisruptionBudget {
    let name = group.name_any();
    let selector = [(labels::GROUP_NAME.to_owned(), name.clone())];
    PodDisruptionBudget {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: group.namespace(),
            labels: Some(parts::common_labels(&group.spec.deployment, labels::WORKER_APP)),
            owner_references: parts::owner_reference(group).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(min_available)),
            selector: Some(LabelSelector {
                match_labels: Some(selector.into()),
                match_expressions: None,
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
