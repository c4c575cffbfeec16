//! The worker pod of a member.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
        ObjectFieldSelector, Pod, PodSchedulingGate, PodSpec, Probe, ResourceRequirements, Toleration,
        Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use kube::ResourceExt as _;
use llamero_api::{
    LlamaGroup,
    deployment::{KvCacheDtype, SpeculationMethod},
    duration::Duration,
    group::GroupTemplate,
    labels::{self, CONTROL_PORT, HEALTH_PORT, INFERENCE_PORT, RANK_PORT},
};
use llamero_core::{backends, placement::ANY_NODE};

use super::{beside, parts, remote, threads};

/// Time between "not ready" and "no new requests" of a group that goes, where nobody says otherwise.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// The gated pod of member `index` in its `attempt`.
///
/// Its name tells group, index and attempt, so that making it twice finds the first. It is tied to no node yet: see [`super::bind`].
#[must_use]
pub fn member_pod(group: &LlamaGroup, index: i32, attempt: i32) -> Pod {
    let template = &group.spec.template;
    let group_name = group.name_any();
    let container = Container {
        name: parts::WORKER.to_owned(),
        args: Some(arguments(group, index)),
        env: Some(environment(template)),
        ports: Some(ports(template)),
        resources: Some(resources(template)),
        liveness_probe: Some(probe("/livez", 10, 3)),
        readiness_probe: Some(probe("/readyz", 1, 1)),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    let mut spec = parts::pod_spec(&template.worker, &template.source, container);
    spec.runtime_class_name = template.worker.runtime_class_name.clone();
    if template.accelerator_resource.is_some() {
        share_memory(&mut spec);
    }
    let mut members = group.spec.members.iter();
    if members.any(|m| m.index == index && m.node.as_deref() == Some(ANY_NODE)) {
        spec.affinity = Some(beside::unpinned(spec.affinity.take(), group));
    }
    spec.scheduling_gates = Some(vec![PodSchedulingGate {
        name: labels::PLACEMENT_GATE.to_owned(),
    }]);
    spec.termination_grace_period_seconds = Some(template.grace_seconds());
    spec.tolerations
        .get_or_insert_default()
        .extend(tolerations(template));
    // The supervisor restarts ranks itself. When it ends its weights are gone too, and the member is replaced, elsewhere if that is better.
    spec.restart_policy = Some("Never".to_owned());

    let role = if index == 0 {
        labels::ROLE_LEADER
    } else {
        labels::ROLE_MEMBER
    };
    let mut pod_labels = labels::common(&group.spec.deployment, labels::WORKER_APP);
    for (key, value) in [
        (labels::GROUP_NAME, group_name.as_str()),
        (labels::MEMBER, &index.to_string()),
        (labels::ATTEMPT, &attempt.to_string()),
        (labels::ROLE, role),
        (labels::REVISION, &group.spec.revision),
    ] {
        pod_labels.insert(key.to_owned(), value.to_owned());
    }
    Pod {
        metadata: ObjectMeta {
            name: Some(labels::pod_name(&group_name, index, attempt)),
            namespace: group.namespace(),
            labels: parts::pod_labels(&template.worker, pod_labels),
            annotations: parts::pod_annotations(
                &template.worker,
                [
                    ("kubectl.kubernetes.io/default-container", "worker".to_owned()),
                    ("prometheus.io/scrape", "true".to_owned()),
                    ("prometheus.io/port", labels::HEALTH_PORT.to_string()),
                ]
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
            ),
            owner_references: parts::owner_reference(group).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn arguments(group: &LlamaGroup, index: i32) -> Vec<String> {
    let template = &group.spec.template;
    let mut arguments = vec!["serve".to_owned()];
    let mut flag = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    flag("model-dir", parts::model_dir(&template.source));
    flag("model-name", template.model_name.clone());
    flag("group-uid", group.uid().unwrap_or_default());
    flag("member", index.to_string());
    flag("ranks-per-pod", template.ranks_per_pod.to_string());
    flag("tensor", template.tensor.to_string());
    flag("pipeline", template.pipeline.to_string());
    // What is placed on accelerators is never to compute on the CPU.
    if let Some(backend) = template
        .accelerator_resource
        .as_deref()
        .and_then(backends::driver)
    {
        flag("backend", backend.to_owned());
    }
    flag("max-context-length", template.max_context_length.to_string());
    if let Some(tokens) = template.engine.max_batched_tokens {
        flag("max-batched-tokens", tokens.to_string());
    }
    if let Some(sequences) = template.engine.max_sequences {
        flag("max-sequences", sequences.to_string());
    }
    if let Some(requests) = template.engine.max_queued_requests {
        flag("max-queued-requests", requests.to_string());
    }
    if template.kv_bytes_per_rank > 0 {
        flag("kv-memory", template.kv_bytes_per_rank.to_string());
    }
    if template.engine.kv_dtype() == KvCacheDtype::Fp8 {
        flag("kv-cache-dtype", "fp8".to_owned());
    }
    if let Some(speculation) = &template.engine.speculation {
        let method = match speculation.method {
            SpeculationMethod::PromptLookup => "prompt-lookup",
            // The API server refuses it, and so does a worker that does not know it.
            SpeculationMethod::DraftModel => "draft-model",
        };
        flag("speculation", method.to_owned());
        flag("max-drafts", speculation.max_drafts.to_string());
    }
    if let Some(lora) = &template.engine.lora {
        flag("max-adapters", lora.max_adapters.to_string());
        flag("max-adapter-rank", lora.max_rank.to_string());
    }
    for adapter in &template.adapters {
        flag("adapter", format!("{}={}", adapter.name, adapter.path));
    }
    if let Some(threads) = template.engine.threads {
        flag("threads", threads.to_string());
    }
    if let Some(identity) = &template.content_identity {
        flag("content-identity", identity.clone());
    }
    flag("stall-timeout", template.stall_timeout.to_string());
    let drain_grace = template.worker.drain_grace.unwrap_or(DRAIN_GRACE);
    flag("drain-grace", drain_grace.to_string());
    if template.engine.parse_special_tokens_in_messages {
        arguments.push("--parse-special-tokens-in-messages".to_owned());
    }
    arguments.extend(threads::arguments(group, index).into_iter().flatten());
    arguments.extend(remote::arguments(&template.source));
    arguments
}

/// The user's variables first; ours come last and so win.
fn environment(template: &GroupTemplate) -> Vec<EnvVar> {
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    };
    let mut ours = vec![
        field("LLAMERO_POD_UID", "metadata.uid"),
        field("LLAMERO_POD_IP", "status.podIP"),
        field("LLAMERO_POD_NAME", "metadata.name"),
        field("LLAMERO_NODE_NAME", "spec.nodeName"),
    ];
    ours.extend(remote::environment(&template.source));
    remote::merged(&template.worker.env, ours)
}

fn ports(template: &GroupTemplate) -> Vec<ContainerPort> {
    let port = |name: String, number: u16| ContainerPort {
        name: Some(name),
        container_port: i32::from(number),
        ..ContainerPort::default()
    };
    let fixed = [
        ("inference", INFERENCE_PORT),
        ("control", CONTROL_PORT),
        ("http", HEALTH_PORT),
    ];
    let ranks = (0..u16::try_from(template.ranks_per_pod).unwrap_or(1))
        .map(|local| port(format!("rank-{local}"), RANK_PORT + local));
    fixed
        .into_iter()
        .map(|(name, number)| port(name.to_owned(), number))
        .chain(ranks)
        .collect()
}

/// What sizing and the user asked for, and the accelerators: one for each rank of the pod.
pub(super) fn resources(template: &GroupTemplate) -> ResourceRequirements {
    let (mut requests, mut limits) = template
        .worker
        .resources
        .as_ref()
        .map(|resources| (resources.requests.clone(), resources.limits.clone()))
        .unwrap_or_default();
    if let Some(accelerator) = &template.accelerator_resource {
        let count = Quantity(template.ranks_per_pod.to_string());
        requests.insert(accelerator.clone(), count.clone());
        limits.insert(accelerator.clone(), count);
    }
    let some = |map: BTreeMap<String, Quantity>| Some(map).filter(|map| !map.is_empty());
    ResourceRequirements {
        requests: some(requests),
        limits: some(limits),
        claims: None,
    }
}

/// Room for what ranks of a pod share and drivers and NCCL put there, instead of the 64 MiB that container runtimes give. It counts as the
/// pod's memory. Users who mount something there are left their word.
fn share_memory(spec: &mut PodSpec) {
    const NAME: &str = "llamero-shm";
    const PATH: &str = "/dev/shm";
    const BYTES: &str = "1Gi";
    let mut mounts = spec
        .containers
        .iter()
        .filter_map(|container| container.volume_mounts.as_ref())
        .flatten();
    if mounts.any(|mount| mount.mount_path.trim_end_matches('/') == PATH) {
        return;
    }
    spec.volumes.get_or_insert_default().push(Volume {
        name: NAME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity(BYTES.to_owned())),
        }),
        ..Volume::default()
    });
    for container in &mut spec.containers {
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: NAME.to_owned(),
            mount_path: PATH.to_owned(),
            ..VolumeMount::default()
        });
    }
}

/// What every member bears, beside what the user says.
fn tolerations(template: &GroupTemplate) -> impl Iterator<Item = Toleration> {
    // A node that is not ready costs nothing while its ranks step: the operator judges, not a time-out.
    let nodes = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"].map(tolerated);
    let devices = device_toleration(template.accelerator_resource.as_deref());
    nodes.into_iter().chain(devices)
}

/// Nodes with devices bear a taint of that name so that others stay away. For pods that ask for none as well, which only prepare for those that do.
pub(super) fn device_toleration(resource: Option<&str>) -> Option<Toleration> {
    Some(Toleration {
        effect: Some("NoSchedule".to_owned()),
        ..tolerated(resource?)
    })
}

/// Without bound.
fn tolerated(taint: &str) -> Toleration {
    Toleration {
        key: Some(taint.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    }
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(2),
        failure_threshold: Some(failure_threshold),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn group(template: Value) -> LlamaGroup {
        let mut base = json!({
            "modelName": "smol", "maxContextLength": 2048, "tensor": 2, "pipeline": 1, "ranksPerPod": 1,
            "source": {"persistentVolumeClaim": {"claimName": "weights", "path": "smol-fp8"}},
            "kvBytesPerRank": 1048576, "weightBytesPerRank": 7, "stallTimeout": "10s",
            "worker": {"image": "llamero-worker:1", "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}}},
        });
        for (key, value) in template.as_object().unwrap() {
            base[key] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
            "metadata": {"name": "smol-0", "namespace": "models", "uid": "g-uid"},
            "spec": {"deployment": "smol", "revision": "r1", "generation": 1, "template": base,
                "members": [{"index": 0, "attempt": 0}, {"index": 1, "attempt": 2}]},
        }))
        .unwrap()
    }

    #[test]
    fn members_that_the_scheduler_places_keep_apart_and_in_one_domain() {
        let mut group = group(json!({"topologyKey": "zone", "topologyPolicy": "Required"}));
        let affinity = |group: &LlamaGroup| {
            let pod = serde_json::to_value(member_pod(group, 0, 0)).unwrap();
            pod["spec"]["affinity"].clone()
        };
        assert!(affinity(&group).is_null(), "the operator chooses nodes");
        group.spec.members[0].node = Some(ANY_NODE.to_owned());
        let of_group = json!({"matchLabels": {"llamero.dev/group": "smol-0"}});
        let rules = affinity(&group);
        for (rule, key) in [
            ("podAntiAffinity", "kubernetes.io/hostname"),
            ("podAffinity", "zone"),
        ] {
            let terms = &rules[rule]["requiredDuringSchedulingIgnoredDuringExecution"];
            assert_eq!(
                *terms,
                json!([{"labelSelector": of_group, "topologyKey": key}]),
                "{rule}"
            );
        }
    }

    #[test]
    fn a_member_of_a_group_on_two_nodes() {
        let pod = serde_json::to_value(member_pod(&group(json!({})), 1, 2)).unwrap();
        assert_eq!(
            pod["metadata"],
            json!({
                "name": "smol-0-1-2", "namespace": "models",
                "labels": {
                    "llamero.dev/deployment": "smol", "llamero.dev/group": "smol-0", "llamero.dev/member": "1",
                    "llamero.dev/attempt": "2", "llamero.dev/role": "member", "llamero.dev/revision": "r1",
                    "app.kubernetes.io/name": "llamero-worker", "app.kubernetes.io/part-of": "llamero",
                    "app.kubernetes.io/managed-by": "llamero-operator",
                },
                "annotations": {"kubectl.kubernetes.io/default-container": "worker", "prometheus.io/port": "8080",
                    "prometheus.io/scrape": "true"},
                "ownerReferences": [{"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup", "name": "smol-0",
                    "uid": "g-uid", "controller": true, "blockOwnerDeletion": true}],
            })
        );
        let field =
            |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let probe = |path: &str, period: i32, failures: i32| {
            json!({"httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": 2,
                "failureThreshold": failures})
        };
        assert_eq!(
            pod["spec"],
            json!({
                "schedulingGates": [{"name": "llamero.dev/placement"}],
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 60,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "tolerations": [
                    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
                    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
                ],
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [
                    {"name": "model", "persistentVolumeClaim": {"claimName": "weights", "readOnly": true}},
                    {"name": "tmp", "emptyDir": {}},
                ],
                "containers": [{
                    "name": "worker",
                    "image": "llamero-worker:1",
                    "args": ["serve", "--model-dir", "/model/smol-fp8", "--model-name", "smol", "--group-uid", "g-uid", "--member", "1",
                        "--ranks-per-pod", "1", "--tensor", "2", "--pipeline", "1", "--max-context-length", "2048",
                        "--kv-memory", "1048576", "--stall-timeout", "10s", "--drain-grace", "5s"],
                    "env": [
                        field("LLAMERO_POD_UID", "metadata.uid"), field("LLAMERO_POD_IP", "status.podIP"),
                        field("LLAMERO_POD_NAME", "metadata.name"), field("LLAMERO_NODE_NAME", "spec.nodeName"),
                    ],
                    "ports": [
                        {"name": "inference", "containerPort": 18051}, {"name": "control", "containerPort": 18052},
                        {"name": "http", "containerPort": 8080}, {"name": "rank-0", "containerPort": 18100},
                    ],
                    "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
                    "livenessProbe": probe("/livez", 10, 3),
                    "readinessProbe": probe("/readyz", 1, 1),
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "model", "mountPath": "/model", "readOnly": true},
                        {"name": "tmp", "mountPath": "/tmp"},
                    ],
                }],
            })
        );
    }

    #[test]
    fn accelerators_and_settings_of_the_engine() {
        let group = group(json!({
            "tensor": 16, "ranksPerPod": 8, "acceleratorResource": "nvidia.com/gpu", "kvBytesPerRank": 0,
            "engine": {"maxBatchedTokens": 4096, "maxSequences": 256, "threads": 4, "maxQueuedRequests": 9,
                "parseSpecialTokensInMessages": true, "kvCache": {"dtype": "fp8"},
                "speculation": {"method": "PromptLookup"}},
            "worker": {"image": "w", "env": [{"name": "LLAMERO_LOG", "value": "debug"}, {"name": "LLAMERO_POD_IP", "value": "0.0.0.0"}],
                "terminationGracePeriodSeconds": 600, "drainGrace": "1m", "runtimeClassName": "nvidia"},
        }));
        let pod = serde_json::to_value(member_pod(&group, 0, 0)).unwrap();
        let container = &pod["spec"]["containers"][0];
        let count = json!({"nvidia.com/gpu": "8"});
        assert_eq!(
            container["resources"],
            json!({"requests": count, "limits": count})
        );
        let own = json!({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"});
        assert_eq!(pod["spec"]["tolerations"][2], own);
        assert_eq!(container["ports"].as_array().unwrap().len(), 3 + 8);
        assert_eq!(pod["spec"]["runtimeClassName"], "nvidia");
        assert_eq!(
            pod["spec"]["volumes"][2],
            json!({"name": "llamero-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})
        );
        assert_eq!(
            container["volumeMounts"][2],
            json!({"name": "llamero-shm", "mountPath": "/dev/shm"})
        );
        let arguments = serde_json::to_string(&container["args"]).unwrap();
        assert!(
            arguments.contains(r#""--pipeline","1","--backend","cuda","#) && arguments.contains(
                r#""--max-batched-tokens","4096","--max-sequences","256","--max-queued-requests","9","--kv-cache-dtype","fp8","--speculation","prompt-lookup","--max-drafts","8","--threads","4""#
            ) && arguments.ends_with(r#""--drain-grace","1m","--parse-special-tokens-in-messages"]"#),
            "{arguments}"
        );
        assert!(!arguments.contains("--kv-memory"));
        let plain = serde_json::to_string(&member_pod(&self::group(json!({})), 0, 0)).unwrap();
        assert!(!plain.contains("speculation") && !plain.contains("drafts"));
        assert!(arguments.contains(r#""--backend","cuda""#), "{arguments}");
        assert_eq!(pod["metadata"]["labels"]["llamero.dev/role"], "leader");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 600);
        let env = container["env"].as_array().unwrap();
        let named: Vec<_> = env.iter().filter(|env| env["name"] == "LLAMERO_POD_IP").collect();
        assert!(
            named.len() == 1 && named[0]["value"].is_null(),
            "a user cannot replace {named:?}"
        );
        assert_eq!(env[0]["value"], "debug");
    }

    #[test]
    fn adapters_come_with_their_room() {
        let arguments = |template: Value| {
            let pod = serde_json::to_value(member_pod(&group(template), 1, 2)).unwrap();
            serde_json::to_string(&pod["spec"]["containers"][0]["args"]).unwrap()
        };
        let named = arguments(json!({
            "engine": {"lora": {"maxAdapters": 3, "maxRank": 8}},
            "adapters": [{"name": "sql", "path": "adapters/sql"}, {"name": "poet", "path": "poet"}],
        }));
        assert!(
            named.contains(
                r#""--max-adapters","3","--max-adapter-rank","8","--adapter","sql=adapters/sql","--adapter","poet=poet""#
            ),
            "{named}"
        );
        assert!(!arguments(json!({})).contains("adapter"));
    }

    #[test]
    fn shared_memory_is_for_devices_and_users_may_mount_their_own() {
        let spec =
            |template: Value| serde_json::to_value(member_pod(&group(template), 0, 0).spec.unwrap()).unwrap();
        let mounts = |spec: &Value| {
            let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
            mounts
                .iter()
                .filter(|mount| mount["mountPath"] == "/dev/shm")
                .count()
        };
        let on_cpus = spec(json!({"worker": {"image": "w", "runtimeClassName": "gvisor"}}));
        assert!(
            on_cpus["runtimeClassName"] == "gvisor" && mounts(&on_cpus) == 0,
            "{on_cpus}"
        );
        let own = json!({"image": "w", "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]});
        let own = spec(json!({"acceleratorResource": "nvidia.com/gpu", "worker": own}));
        assert!(
            mounts(&own) == 1 && own["volumes"].as_array().unwrap().len() == 3,
            "{own}"
        );
    }

    #[test]
    fn a_repository_needs_no_volume_and_is_pinned() {
        let group = group(
            json!({"source": {"huggingFace": {"repo": "org/m", "revision": "0a1b",
            "tokenSecretRef": {"name": "hf", "key": "t"}}}}),
        );
        let pod = serde_json::to_value(member_pod(&group, 0, 0)).unwrap();
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "tmp", "emptyDir": {}}]));
        let container = &pod["spec"]["containers"][0];
        let arguments = serde_json::to_string(&container["args"]).unwrap();
        assert!(
            arguments.contains(r#""--model-dir","/tmp/model""#)
                && arguments.contains(r#""--hub-repository","org/m","--hub-revision","0a1b""#),
            "{arguments}"
        );
        assert_eq!(
            container["env"][4],
            json!({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "t"}}})
        );
    }

    #[test]
    fn every_source_is_mounted_read_only() {
        let mounted = |source: Value| {
            let pod = serde_json::to_value(member_pod(&group(json!({"source": source})), 0, 0)).unwrap();
            let spec = &pod["spec"];
            (
                spec["volumes"][0].clone(),
                spec["containers"][0]["volumeMounts"][0].clone(),
                spec["containers"][0]["args"][2].clone(),
            )
        };
        let at_root = json!({"name": "model", "mountPath": "/model", "readOnly": true});
        let (volume, mount, dir) = mounted(json!({"hostPath": {"path": "/srv/weights"}}));
        assert_eq!(
            volume,
            json!({"name": "model", "hostPath": {"path": "/srv/weights", "type": "Directory"}})
        );
        assert_eq!((mount, dir), (at_root.clone(), json!("/model")));
        let (volume, mount, dir) =
            mounted(json!({"image": {"reference": "r/m:1", "pullPolicy": "IfNotPresent", "path": "w"}}));
        assert_eq!(
            volume,
            json!({"name": "model", "image": {"reference": "r/m:1", "pullPolicy": "IfNotPresent"}})
        );
        assert_eq!((mount, dir), (at_root, json!("/model/w")));
    }

    #[test]
    fn every_pod_of_a_group_is_told_what_the_group_s_snapshot_says_of_its_weights() {
        let arguments = |template: Value| {
            let pod = serde_json::to_value(member_pod(&group(template), 1, 3)).unwrap();
            pod["spec"]["containers"][0]["args"].as_array().unwrap().clone()
        };
        let digest = "a".repeat(64);
        let pinned = json!({"image": {"reference": format!("r/m@sha256:{digest}")}});
        let told = arguments(json!({"source": pinned, "contentIdentity": digest}));
        let at = told.iter().position(|word| word == "--content-identity").unwrap();
        assert_eq!(told[at + 1], json!(digest));
        // A group that an operator made which knew nothing of it: its other ranks found out from samples.
        let untold = arguments(json!({"source": pinned}));
        assert!(
            untold.iter().all(|word| word != "--content-identity"),
            "{untold:?}"
        );
    }
}
