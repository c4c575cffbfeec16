//! The short pod that reads a checkpoint's headers, for sources the operator cannot read itself.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, labels};

use super::parts;

/// The pod that inspects the deployment's source; `key` is what the answer is kept under.
///
/// It asks for no accelerator and little memory: only headers are read.
#[must_use]
pub fn inspect_pod(deployment: &LlamaDeployment, key: &str, default_image: &str) -> Pod {
    let name = deployment.name_any();
    let arguments = [
        "inspect",
        "--model-dir",
        &parts::model_dir(&deployment.spec.model.source),
        "--json",
        "--tensor",
        &deployment.spec.parallelism.tensor.to_string(),
        "--termination-log",
        "/dev/termination-log",
    ]
    .map(str::to_owned);
    let quantities = |pairs: &[(&str, &str)]| -> Option<BTreeMap<String, Quantity>> {
        Some(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), Quantity((*value).to_owned())))
                .collect(),
        )
    };
    let container = Container {
        name: "inspect".to_owned(),
        args: Some(arguments.into()),
        resources: Some(ResourceRequirements {
            requests: quantities(&[("cpu", "50m"), ("memory", "64Mi")]),
            limits: quantities(&[("memory", "512Mi")]),
            claims: None,
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    let mut worker = deployment.spec.worker.clone();
    worker.image.get_or_insert_with(|| default_image.to_owned());
    let mut spec = parts::pod_spec(&worker, &deployment.spec.model.source, container);
    spec.restart_policy = Some("Never".to_owned());
    spec.termination_grace_period_seconds = Some(1);

    let mut pod_labels = parts::common_labels(&name, labels::INSPECT_APP);
    pod_labels.insert(labels::INSPECT.to_owned(), key.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(labels::inspect_pod_name(&name, key)),
            namespace: deployment.namespace(),
            labels: Some(pod_labels),
            owner_references: parts::owner_reference(deployment).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}
