//! The short pod that reads a checkpoint's headers, for sources the operator cannot read itself.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, labels, summary::InspectOutcome};

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
        parts::MODEL_DIR,
        "--json",
        "--tensor",
        &deployment.spec.parallelism.tensor.to_string(),
        "--termination-log",
        "/dev/termination-log",
    ]
    .map(str::to_owned);
    let quantities = |pairs: &[(&str, &str)]| -> Option<BTreeMap<String, Quantity>> {
        Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), Quantity((*value).to_owned()))).collect())
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

/// What a finished inspect pod found; nothing while it runs.
#[must_use]
pub fn outcome(pod: &Pod) -> Option<InspectOutcome> {
    let status = pod.status.as_ref()?;
    let terminated = status
        .container_statuses
        .as_ref()
        .and_then(|statuses| statuses.iter().find(|status| status.name == "inspect"))
        .and_then(|status| status.state.as_ref())
        .and_then(|state| state.terminated.as_ref());
    let Some(terminated) = terminated else {
        // Evicted before the container ended, or never started.
        return (status.phase.as_deref() == Some("Failed")).then(|| InspectOutcome::Error {
            error: format!(
                "the pod that reads the checkpoint failed: {}",
                status.message.as_deref().or(status.reason.as_deref()).unwrap_or("no reason is known")
            ),
        });
    };
    let message = terminated.message.as_deref().unwrap_or("").trim();
    Some(serde_json::from_str(message).unwrap_or_else(|_| InspectOutcome::Error {
        error: match (terminated.exit_code, message) {
            (137, _) => "the pod that reads the checkpoint was killed, out of memory or by its node".to_owned(),
            (code, "") => format!("the pod that reads the checkpoint ended with code {code} and said nothing; is spec.worker.image a llamero-worker?"),
            (code, said) => format!("the pod that reads the checkpoint ended with code {code}: {said}"),
        },
    }))
}
