//! The short pod that reads a checkpoint's headers, for sources the operator cannot read itself.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, deployment::Source, group::GroupTemplate, labels};
use llamero_core::{inspect::REQUESTS, observed::Settings, placement::ANY_NODE, revision};

use super::{bind, parts, pod, remote};

/// The pod that inspects the deployment's source; `key` is what the answer is kept under. With a trial it is made from the snapshot of that
/// revision: it shows that groups of the revision could start on that node.
///
/// It asks for no accelerator and little memory: only headers are read. It tolerates what the workers tolerate, whose nodes it may have to be on.
#[must_use]
pub fn inspect_pod(
    deployment: &LlamaDeployment,
    key: &str,
    (trial, node): (Option<&GroupTemplate>, &str),
    settings: &Settings,
) -> Pod {
    let name = deployment.name_any();
    let worker = match trial {
        Some(trial) => trial.worker.clone(),
        None => revision::worker(&deployment.spec.worker, settings),
    };
    let parallelism = &deployment.spec.parallelism;
    let (source, tensor, pipeline) = match trial {
        Some(trial) => (&trial.source, trial.tensor, trial.pipeline),
        None => (
            &deployment.spec.model.source,
            parallelism.tensor,
            parallelism.pipeline,
        ),
    };
    // Proxies and what else the network asks for stand in the user's variables.
    let environment = source
        .is_remote()
        .then(|| remote::merged(&worker.env, remote::environment(source)));
    let container = Container {
        name: parts::INSPECT.to_owned(),
        args: Some(arguments(source, tensor, pipeline)),
        env: environment.filter(|env| !env.is_empty()),
        resources: Some(resources(deployment)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    let mut spec = parts::pod_spec(&worker, source, container);
    spec.restart_policy = Some("Never".to_owned());
    spec.termination_grace_period_seconds = Some(1);
    let accelerator = match trial {
        Some(trial) => trial.accelerator_resource.as_deref(),
        None => deployment
            .spec
            .accelerator
            .as_ref()
            .and_then(|a| a.resource.as_deref()),
    };
    if let Some(toleration) = pod::device_toleration(accelerator) {
        spec.tolerations.get_or_insert_default().push(toleration);
    }
    if node != ANY_NODE {
        let affinity = spec.affinity.as_ref();
        spec.affinity = Some(match trial {
            Some(_) => bind::pinned(affinity, node),
            // That node may be cordoned or full: who reads headers elsewhere may have to wait for the volume, but does not wait for ever.
            None => bind::drawn(affinity, node),
        });
    }

    let mut pod_labels = labels::common(&name, labels::INSPECT_APP);
    pod_labels.insert(labels::INSPECT.to_owned(), key.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(labels::inspect_pod_name(&name, key)),
            namespace: deployment.namespace(),
            labels: parts::pod_labels(&worker, pod_labels),
            annotations: parts::pod_annotations(
                &worker,
                [(labels::SETTINGS.to_owned(), revision::settings_digest(&worker))].into(),
            ),
            owner_references: parts::owner_reference(deployment).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn arguments(source: &Source, tensor: i32, pipeline: i32) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "inspect",
        "--model-dir",
        &parts::model_dir(source),
        "--json",
        "--tensor",
        &tensor.to_string(),
        "--pipeline",
        &pipeline.to_string(),
        "--termination-log",
        "/dev/termination-log",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(remote::arguments(source));
    arguments
}

/// What the user asked for, else what reading headers takes.
fn resources(deployment: &LlamaDeployment) -> ResourceRequirements {
    let quantities = |pairs: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Quantity((*value).to_owned())))
            .collect()
    };
    let (requests, limits) = match &deployment.spec.worker.inspect_resources {
        Some(asked) => (asked.requests.clone(), asked.limits.clone()),
        None => (quantities(&REQUESTS), quantities(&[("memory", "512Mi")])),
    };
    let some = |map: BTreeMap<String, Quantity>| Some(map).filter(|map| !map.is_empty());
    ResourceRequirements {
        requests: some(requests),
        limits: some(limits),
        claims: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(worker: serde_json::Value) -> serde_json::Value {
        tried(worker, (None, ANY_NODE))
    }

    fn deployment(worker: serde_json::Value) -> LlamaDeployment {
        serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": "d", "namespace": "n", "uid": "u"},
            "spec": {"model": {"source": {"hostPath": {"path": "/w"}}}, "parallelism": {"tensor": 1}, "worker": worker},
        }))
        .unwrap()
    }

    fn tried(worker: serde_json::Value, made: (Option<&GroupTemplate>, &str)) -> serde_json::Value {
        let deployment = deployment(worker);
        let settings = Settings {
            worker_image: "default:1".into(),
            pull_policy: Some(llamero_api::deployment::PullPolicy::Always),
            pull_secrets: vec!["chart".into()],
            ..Settings::default()
        };
        serde_json::to_value(inspect_pod(&deployment, "k", made, &settings)).unwrap()
    }

    #[test]
    fn a_repository_is_read_with_the_user_s_proxy_and_the_secret_s_token() {
        let deployment: LlamaDeployment = serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": "d", "namespace": "n", "uid": "u"},
            "spec": {
                "model": {"source": {"huggingFace": {
                    "repo": "org/m", "endpoint": "https://mirror", "tokenSecretRef": {"name": "hf"},
                    "caBundle": {"configMap": "roots"}}}},
                "parallelism": {"tensor": 1},
                "worker": {"env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}, {"name": "HF_TOKEN", "value": "old"}]}},
        }))
        .unwrap();
        let pod = serde_json::to_value(inspect_pod(
            &deployment,
            "k",
            (None, ANY_NODE),
            &Settings::default(),
        ))
        .unwrap();
        let container = &pod["spec"]["containers"][0];
        let arguments = serde_json::to_string(&container["args"]).unwrap();
        assert!(
            arguments.contains(
                r#""--hub-repository","org/m","--hub-revision","main","--hub-endpoint","https://mirror","--hub-ca-file","/etc/llamero/ca/bundle.pem""#
            ),
            "{arguments}"
        );
        assert_eq!(
            container["env"],
            json!([
                {"name": "HTTPS_PROXY", "value": "http://proxy"},
                {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}}},
            ])
        );
        assert_eq!(
            pod["spec"]["volumes"],
            json!([
                {"name": "model-ca", "configMap": {"name": "roots", "items": [{"key": "ca.crt", "path": "bundle.pem"}]}},
                {"name": "tmp", "emptyDir": {}},
            ])
        );
    }

    #[test]
    fn the_chart_s_image_settings_reach_it() {
        let spec = &pod(json!({"imagePullSecrets": [{"name": "own"}]}))["spec"];
        assert_eq!(
            spec["imagePullSecrets"],
            json!([{"name": "own"}, {"name": "chart"}])
        );
        let container = &spec["containers"][0];
        assert_eq!(
            (&container["image"], &container["imagePullPolicy"]),
            (&json!("default:1"), &json!("Always"))
        );
        assert_eq!(container["resources"]["requests"]["memory"], "64Mi");
    }

    #[test]
    fn a_trial_is_made_from_its_revision_and_runs_where_a_group_is_to_go() {
        let template: GroupTemplate = serde_json::from_value(json!({
            "modelName": "m", "source": {"image": {"reference": "r/m:2", "path": "w"}}, "maxContextLength": 1, "tensor": 4, "pipeline": 1,
            "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s",
            "worker": {"image": "worker:2", "resources": {"requests": {"memory": "64Gi"}}},
        }))
        .unwrap();
        let spec = &tried(json!({"image": "worker:1"}), (Some(&template), "node-a"))["spec"];
        let container = &spec["containers"][0];
        assert_eq!(container["image"], "worker:2");
        assert_eq!(container["args"][2], "/model/w");
        assert_eq!(container["args"][5], "4");
        assert_eq!(container["resources"]["requests"]["memory"], "64Mi");
        assert_eq!(spec["volumes"][0]["image"]["reference"], "r/m:2");
        let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(
            terms["nodeSelectorTerms"][0]["matchFields"][0]["values"],
            json!(["node-a"])
        );
        assert!(spec["schedulingGates"].is_null());
    }

    #[test]
    fn who_reads_headers_is_drawn_to_where_the_volume_is_attached() {
        let spec = &tried(json!({}), (None, "node-a"))["spec"];
        let affinity = &spec["affinity"]["nodeAffinity"];
        let drawn = &affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["preference"];
        assert_eq!(drawn["matchFields"][0]["values"], json!(["node-a"]));
        assert!(affinity["requiredDuringSchedulingIgnoredDuringExecution"].is_null());
    }

    /// Nodes with GPUs bear this taint as a rule, and what only reads headers asks for none.
    #[test]
    fn what_looks_for_workers_with_devices_tolerates_the_taint_of_their_nodes() {
        let mut deployment = deployment(json!({"tolerations": [{"key": "own", "operator": "Exists"}]}));
        let tolerations = |deployment: &LlamaDeployment, trial: Option<&GroupTemplate>| {
            let pod = inspect_pod(deployment, "k", (trial, ANY_NODE), &Settings::default());
            serde_json::to_value(pod.spec.unwrap().tolerations).unwrap()
        };
        let own = json!({"key": "own", "operator": "Exists"});
        let device = json!({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
        assert_eq!(tolerations(&deployment, None), json!([own]));
        let trial: GroupTemplate = serde_json::from_value(json!({
            "modelName": "m", "source": {}, "maxContextLength": 1, "tensor": 1, "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1,
            "weightBytesPerRank": 1, "stallTimeout": "1s", "acceleratorResource": "nvidia.com/gpu",
        }))
        .unwrap();
        assert_eq!(tolerations(&deployment, Some(&trial)), json!([device]));
        deployment.spec.accelerator =
            Some(serde_json::from_value(json!({"resource": "nvidia.com/gpu"})).unwrap());
        assert_eq!(tolerations(&deployment, None), json!([own, device]));
    }

    #[test]
    fn labels_annotations_volumes_and_resources_of_the_user_are_on_it() {
        let pod = pod(json!({
            "labels": {"team": "a", "llamero.dev/inspect": "stolen"},
            "annotations": {"sidecar.istio.io/inject": "false"},
            "volumes": [{"name": "ca", "configMap": {"name": "roots"}}],
            "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/extra"}],
            "inspectResources": {"requests": {"memory": "128Mi"}},
        }));
        assert_eq!(pod["metadata"]["labels"]["team"], "a");
        assert_eq!(pod["metadata"]["labels"]["llamero.dev/inspect"], "k");
        assert_eq!(pod["metadata"]["annotations"]["sidecar.istio.io/inject"], "false");
        assert_eq!(
            pod["spec"]["volumes"][2],
            json!({"name": "ca", "configMap": {"name": "roots"}})
        );
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            container["volumeMounts"][2],
            json!({"name": "ca", "mountPath": "/etc/ssl/extra", "readOnly": true})
        );
        assert_eq!(container["resources"], json!({"requests": {"memory": "128Mi"}}));
    }
}
