//! The template of new groups, and a digest that changes exactly when a user changed what pods are made from.
//!
//! The digest is taken over a semantic, versioned view of the user's own words: defaults that the operator resolves (its worker image,
//! sizes that follow from the checkpoint) are not in it, so that upgrading the operator rolls nobody's pods. When a field is
//! added to the API, it enters the view only where it differs from its default.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::LocalObjectReference;
use llamero_api::{
    LlamaDeployment, LlamaDeploymentSpec,
    deployment::{
        CheckpointStatus, KvCacheDtype, OnePodPerNode, PlanStatus, PullPolicy, Resources as WorkerResources,
        Source, TopologyPolicy, Worker,
    },
    group::GroupTemplate,
    quantity,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{autoscalers, identity, observed::Settings, resources, sizing};

/// Digest of the template, ten hexadecimal digits.
#[must_use]
pub fn digest(spec: &LlamaDeploymentSpec, model_name: &str) -> String {
    hex(&view(spec, model_name), 10)
}

/// Digest of the source and split that an inspection looks into, eight hexadecimal digits.
#[must_use]
pub fn inspect_key(spec: &LlamaDeploymentSpec) -> String {
    let mut looked_into = json!({"version": 1, "source": value(&spec.model.source), "tensor": spec.parallelism.tensor,
        "restartedAt": value(&spec.rollout.restarted_at)});
    // One stage is left out, as it was before there could be more: nobody's checkpoint is to be read again by an upgrade.
    if spec.parallelism.pipeline > 1
        && let Some(map) = looked_into.as_object_mut()
    {
        map.insert("pipeline".to_owned(), json!(spec.parallelism.pipeline));
    }
    hex(&looked_into, 8)
}

/// The snapshot that a new group keeps.
#[must_use]
pub fn template(
    object: &LlamaDeployment,
    plan: &PlanStatus,
    checkpoint: Option<&CheckpointStatus>,
    settings: &Settings,
) -> GroupTemplate {
    let spec = &object.spec;
    let mut worker = self::worker(&spec.worker, settings);
    worker.inspect_resources = None;
    if let Some(pinned) = checkpoint.and_then(|checkpoint| pinned(checkpoint, &worker)) {
        worker.image = Some(pinned);
    }
    autoscalers::annotate(&mut worker.annotations, &spec.disruption);
    let resources = worker.resources.get_or_insert_with(WorkerResources::default);
    let accelerator_resource = spec.accelerator.as_ref().and_then(|a| a.resource.clone());
    let names_memory = resources.requests.contains_key(resources::MEMORY)
        || resources.limits.contains_key(resources::MEMORY);
    if !names_memory {
        let summary = checkpoint.and_then(|checkpoint| checkpoint.summary.as_ref());
        let per_rank = match accelerator_resource {
            // The plan is about the device's memory, and the node's is asked for here.
            Some(_) => sizing::host_bytes_beside_device(spec, summary),
            None => plan.memory_bytes_per_rank,
        };
        let bytes = per_rank.saturating_mul(i64::from(plan.ranks_per_pod.max(1)));
        resources
            .requests
            .insert(resources::MEMORY.to_owned(), quantity::bytes(bytes));
    }
    GroupTemplate {
        model_name: object.model_name().to_owned(),
        source: pinned_source(&spec.model.source, checkpoint),
        max_context_length: plan.max_context_length,
        tensor: spec.parallelism.tensor,
        pipeline: spec.parallelism.pipeline,
        ranks_per_pod: plan.ranks_per_pod,
        accelerator_resource,
        content_identity: identity::of_source(&spec.model.source).or_else(|| read_identity(checkpoint)),
        kv_bytes_per_rank: plan.kv_bytes_per_rank,
        weight_bytes_per_rank: plan.weight_bytes_per_rank,
        topology_key: spec.placement.topology_key.clone(),
        topology_policy: spec.placement.policy,
        one_pod_per_node: Some(one_pod_per_node(spec)),
        stall_timeout: spec.recovery.stall_timeout,
        transport: settings.transport,
        engine: spec.engine.clone(),
        adapters: spec.adapters.clone(),
        worker,
    }
}

/// What the user asks for, else nodes of their own for accelerators only: ranks on CPUs must also run where there is one node.
fn one_pod_per_node(spec: &LlamaDeploymentSpec) -> OnePodPerNode {
    let has_device = spec
        .accelerator
        .as_ref()
        .is_some_and(|accelerator| accelerator.resource.is_some());
    let usual = match has_device {
        true => OnePodPerNode::Required,
        false => OnePodPerNode::Preferred,
    };
    spec.placement.one_pod_per_node.unwrap_or(usual)
}

/// What the inspect pod says that the weights are, where their source tells that of each file.
fn read_identity(checkpoint: Option<&CheckpointStatus>) -> Option<String> {
    checkpoint?.summary.as_ref()?.content_identity.clone()
}

/// The source, at the commit that was looked into, so that a branch that moves changes no group and mixes nothing.
fn pinned_source(source: &Source, checkpoint: Option<&CheckpointStatus>) -> Source {
    let mut source = source.clone();
    let summary = checkpoint.and_then(|checkpoint| checkpoint.summary.as_ref());
    let commit = summary.and_then(|summary| summary.commit.as_ref());
    if let (Some(hub), Some(commit)) = (&mut source.hugging_face, commit) {
        hub.revision = Some(commit.clone());
    }
    source
}

/// Digest of the settings of pods, eight hexadecimal digits.
#[must_use]
pub fn settings_digest(worker: &Worker) -> String {
    hex(&value(worker), 8)
}

/// The digest that the worker's image had when an inspect pod ran it, so that a tag that moves changes no group. Only for an image that
/// nodes pull: one that was loaded onto them is not known there by a digest of a repository.
fn pinned(checkpoint: &CheckpointStatus, worker: &Worker) -> Option<String> {
    let id = checkpoint.image_id.as_deref()?;
    let id = id.split_once("://").map_or(id, |(_, rest)| rest);
    let (repository, digest) = id.split_once('@')?;
    let same = checkpoint.image.is_some() && checkpoint.image == worker.image;
    let pulled = worker.image_pull_policy != Some(PullPolicy::Never);
    let real = !repository.is_empty() && digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64);
    (same && pulled && real).then(|| id.to_owned())
}

/// The user's settings of pods, with the operator's own where the user says nothing.
#[must_use]
pub fn worker(own: &Worker, settings: &Settings) -> Worker {
    let mut worker = own.clone();
    worker.image.get_or_insert_with(|| settings.worker_image.clone());
    worker.image_pull_policy = worker.image_pull_policy.or(settings.pull_policy);
    for name in &settings.pull_secrets {
        let secret = LocalObjectReference { name: name.clone() };
        if !worker.image_pull_secrets.contains(&secret) {
            worker.image_pull_secrets.push(secret);
        }
    }
    worker
}

fn view(spec: &LlamaDeploymentSpec, model_name: &str) -> Value {
    let amount = |q: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
        q.and_then(|q| quantity::milli(q).ok())
    };
    let mut worker = value(&spec.worker);
    if let Some(map) = worker.as_object_mut() {
        map.remove("inspectResources");
    }
    if let (Some(map), Some(resources)) = (worker.as_object_mut(), &spec.worker.resources) {
        let amounts = |map| {
            resources::Resources::from_quantities(map)
                .iter()
                .map(|(n, a)| (n.to_owned(), json!(a)))
                .collect::<Map<_, _>>()
        };
        map.insert(
            "resources".into(),
            json!({"requests": amounts(&resources.requests), "limits": amounts(&resources.limits)}),
        );
    }
    let mut engine = value(&spec.engine);
    if let Some(map) = engine.as_object_mut() {
        let kv = spec
            .engine
            .kv_cache
            .as_ref()
            .and_then(|kv| amount(kv.memory.as_ref()));
        let cache = match spec.engine.kv_dtype() {
            KvCacheDtype::Fp8 => json!({"memory": kv, "dtype": "fp8"}),
            KvCacheDtype::Auto => json!({"memory": kv}),
        };
        map.insert("kvCache".into(), cache);
    }
    let accelerator = spec.accelerator.as_ref();
    json!({
        "version": 1,
        "modelName": model_name,
        "source": value(&spec.model.source),
        "maxContextLength": spec.model.max_context_length,
        "tensor": spec.parallelism.tensor,
        "pipeline": spec.parallelism.pipeline,
        "ranksPerPod": spec.ranks_per_pod(),
        "acceleratorResource": accelerator.and_then(|a| a.resource.as_deref()),
        "acceleratorMemory": accelerator.and_then(|a| amount(a.memory.as_ref())),
        "topologyKey": spec.placement.topology_key,
        "topologyRequired": (spec.placement.policy == TopologyPolicy::Required).then_some(true),
        "onePodPerNode": value(&spec.placement.one_pod_per_node),
        "stallTimeout": spec.recovery.stall_timeout.millis(),
        "engine": engine,
        "adapters": value(&spec.adapters),
        "worker": worker,
        "restartedAt": value(&spec.rollout.restarted_at),
        "safeToEvict": spec.disruption.safe_to_evict,
    })
}

/// Types of the API always have a JSON form; null stands in so that this stays total.
fn value<T: serde::Serialize>(part: &T) -> Value {
    serde_json::to_value(part).unwrap_or(Value::Null)
}

pub(crate) fn hex(view: &Value, digits: usize) -> String {
    let canonical = prune(view.clone()).map(|v| v.to_string()).unwrap_or_default();
    let mut text: String = Sha256::digest(canonical)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    text.truncate(digits);
    text
}

/// Without nulls and empty containers: absent and empty mean the same. Keys go in sorted, whatever order the map type keeps.
fn prune(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let kept: BTreeMap<_, _> = map
                .into_iter()
                .filter_map(|(key, v)| Some((key, prune(v)?)))
                .collect();
            (!kept.is_empty()).then(|| Value::Object(kept.into_iter().collect()))
        }
        Value::Array(items) => {
            let kept: Vec<_> = items.into_iter().filter_map(prune).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use llamero_api::group::Transport;

    use super::*;

    fn spec(change: impl FnOnce(&mut Value)) -> LlamaDeploymentSpec {
        let mut whole = json!({
            "model": {"source": {"hostPath": {"path": "/m"}}},
            "parallelism": {"tensor": 2},
            "worker": {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
        });
        change(&mut whole);
        serde_json::from_value(whole).unwrap()
    }

    /// A change of this value rolls every user's pods when the operator is upgraded.
    #[test]
    fn digest_is_golden() {
        assert_eq!(digest(&spec(|_| {}), "llama"), "0fc80c83b0");
    }

    /// Switching it on rolls nobody's pods either: it is no part of the digest.
    #[test]
    fn links_are_as_the_installation_says_when_a_revision_is_made() {
        let object: LlamaDeployment = serde_json::from_value(
            json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d"}, "spec": spec(|_| {})}),
        )
        .unwrap();
        let made = |transport| {
            let settings = Settings {
                transport,
                ..Settings::default()
            };
            template(&object, &PlanStatus::default(), None, &settings)
        };
        let (before, after) = (made(Transport::Plain), made(Transport::Mutual));
        assert_eq!(
            (before.transport, after.transport),
            (Transport::Plain, Transport::Mutual)
        );
        // What was kept before there was a choice is read as plain text, and written as it was.
        let kept = serde_json::to_value(&before).unwrap();
        assert!(kept.get("transport").is_none());
        let read: GroupTemplate = serde_json::from_value(kept).unwrap();
        assert_eq!(read, before);
        assert_eq!(serde_json::to_value(&after).unwrap()["transport"], "Mutual");
    }

    #[test]
    fn other_stages_are_looked_into_again() {
        let stages = |stages: i32| inspect_key(&spec(|s| s["parallelism"]["pipeline"] = json!(stages)));
        assert_eq!(stages(1), inspect_key(&spec(|_| {})));
        assert!(stages(2) != stages(1) && stages(3) != stages(2));
    }

    #[test]
    fn a_restart_reads_the_checkpoint_again() {
        let at = |time: &str| inspect_key(&spec(|s| s["rollout"] = json!({"restartedAt": time})));
        let keys = [
            inspect_key(&spec(|_| {})),
            at("2026-01-01T00:00:00Z"),
            at("2026-01-02T00:00:00Z"),
        ];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    }

    #[test]
    fn a_branch_is_pinned_to_the_commit_that_was_looked_into() {
        let object: LlamaDeployment = serde_json::from_value(
            json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d"},
            "spec": spec(|s| s["model"]["source"] = json!({"huggingFace": {"repo": "org/m", "revision": "main"}}))}),
        )
        .unwrap();
        let revision = |commit: Value| {
            let checkpoint = serde_json::from_value(json!({"key": "k", "inspectedAt": "2026-01-01T00:00:00Z", "summary": {
                "formatVersion": 1, "architecture": "LlamaForCausalLM", "hiddenSize": 1, "layers": 1, "qHeads": 1, "kvHeads": 1,
                "headDim": 1, "ffnSize": 1, "vocabSize": 1, "maxPositionEmbeddings": 1, "weights": "bf16", "parameters": 1,
                "checkpointBytes": 1, "plans": [], "commit": commit, "contentIdentity": "a".repeat(64)}}))
            .unwrap();
            let made = template(
                &object,
                &PlanStatus::default(),
                Some(&checkpoint),
                &Settings::default(),
            );
            assert_eq!(made.content_identity, Some("a".repeat(64)));
            made.source.hugging_face.unwrap().revision
        };
        assert_eq!(revision(json!("0a1b")).as_deref(), Some("0a1b"));
        assert_eq!(revision(Value::Null).as_deref(), Some("main"));
    }

    #[test]
    fn ranks_on_cpus_share_nodes_unless_the_user_forbids_it() {
        let chosen = |change: fn(&mut Value)| one_pod_per_node(&spec(change));
        assert_eq!(chosen(|_| {}), OnePodPerNode::Preferred);
        assert_eq!(
            chosen(|s| s["accelerator"] = json!({"perNode": 2})),
            OnePodPerNode::Preferred
        );
        assert_eq!(
            chosen(|s| s["accelerator"] = json!({"resource": "nvidia.com/gpu"})),
            OnePodPerNode::Required
        );
        assert_eq!(
            chosen(|s| s["placement"] = json!({"onePodPerNode": "Required"})),
            OnePodPerNode::Required
        );
    }

    #[test]
    fn an_image_is_pinned_to_the_digest_that_was_looked_into() {
        let digest = format!("registry.example/w@sha256:{}", "a".repeat(64));
        let image = |worker: Value, ran: &str, id: &str| {
            let whole = json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d"},
                "spec": spec(|s| s["worker"] = worker)});
            let checkpoint = serde_json::from_value(
                json!({"key": "k", "inspectedAt": "2026-01-01T00:00:00Z", "image": ran, "imageID": id}),
            )
            .unwrap();
            let object: LlamaDeployment = serde_json::from_value(whole).unwrap();
            template(
                &object,
                &PlanStatus::default(),
                Some(&checkpoint),
                &Settings::default(),
            )
            .worker
            .image
            .unwrap()
        };
        let tagged = || json!({"image": "w:1"});
        assert_eq!(image(tagged(), "w:1", &digest), digest);
        assert_eq!(
            image(tagged(), "w:1", &format!("docker-pullable://{digest}")),
            digest
        );
        for (worker, ran, id) in [
            (tagged(), "w:0", digest.as_str()),
            (tagged(), "w:1", "sha256:0123"),
            (
                json!({"image": "w:1", "imagePullPolicy": "Never"}),
                "w:1",
                digest.as_str(),
            ),
        ] {
            assert_eq!(image(worker, ran, id), "w:1");
        }
    }

    #[test]
    fn pods_with_devices_ask_for_memory_of_the_node() {
        let made = |worker: Value| {
            let whole = json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d"},
                "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 8},
                    "accelerator": {"resource": "nvidia.com/gpu", "perNode": 4}, "worker": worker}});
            let checkpoint = serde_json::from_value(json!({"key": "k", "inspectedAt": "2026-01-01T00:00:00Z", "summary": {
                "formatVersion": 1, "architecture": "LlamaForCausalLM", "hiddenSize": 16_384, "layers": 126, "qHeads": 128,
                "kvHeads": 8, "headDim": 128, "ffnSize": 53_248, "vocabSize": 128_256, "maxPositionEmbeddings": 131_072,
                "weights": "fp8", "parameters": 1, "checkpointBytes": 1, "plans": []}}))
            .unwrap();
            let object: LlamaDeployment = serde_json::from_value(whole).unwrap();
            let plan = PlanStatus {
                ranks_per_pod: 4,
                memory_bytes_per_rank: 80 << 30,
                ..PlanStatus::default()
            };
            template(&object, &plan, Some(&checkpoint), &Settings::default()).worker
        };
        let worker = made(json!({}));
        // Of the embedding, 4.2 GB, each of four ranks pins an eighth.
        let memory = quantity::units(&worker.resources.unwrap().requests["memory"]).unwrap();
        let (embedding, process) = (2 * 128_256 * 16_384 / 8, 2 << 30);
        assert_eq!(memory, 4 * (embedding + process));
        let worker = made(json!({"resources": {"requests": {"memory": "9Gi"}}}));
        assert_eq!(worker.resources.unwrap().requests["memory"].0, "9Gi");
    }

    #[test]
    fn other_words_for_the_same_are_the_same() {
        let base = digest(&spec(|_| {}), "llama");
        let same: [fn(&mut Value); 8] = [
            |s| s["adapters"] = json!([]),
            |s| s["engine"] = json!({"parseSpecialTokensInMessages": false}),
            |s| s["engine"] = json!({"kvCache": {"dtype": "auto"}}),
            |s| s["worker"]["resources"]["requests"]["memory"] = json!("1024Mi"),
            |s| s["worker"]["resources"]["requests"]["cpu"] = json!("1000m"),
            |s| s["worker"]["tolerations"] = json!([]),
            |s| s["parallelism"]["pipeline"] = json!(1),
            |s| s["accelerator"] = json!({"perNode": 1}),
        ];
        for change in same {
            assert_eq!(digest(&spec(change), "llama"), base);
        }
    }

    #[test]
    fn what_pods_do_not_see_changes_nothing() {
        let base = digest(&spec(|_| {}), "llama");
        let same: [fn(&mut Value); 7] = [
            |s| s["worker"]["inspectResources"] = json!({"requests": {"cpu": "1"}}),
            |s| s["replicas"] = json!(5),
            |s| s["autoscaling"] = json!({"maxReplicas": 5}),
            |s| s["placement"] = json!({"deadline": "9m"}),
            |s| s["rollout"] = json!({"paused": true, "strategy": "Recreate", "revision": "0123456789"}),
            |s| s["rollout"] = json!({"partition": 2, "canaryPercent": 5}),
            |s| s["holdAtZero"] = json!(true),
        ];
        for change in same {
            assert_eq!(digest(&spec(change), "llama"), base);
        }
    }

    #[test]
    fn what_pods_see_changes_it() {
        let base = digest(&spec(|_| {}), "llama");
        let other: [fn(&mut Value); 16] = [
            |s| s["engine"] = json!({"speculation": {"method": "PromptLookup"}}),
            |s| s["engine"] = json!({"speculation": {"method": "PromptLookup", "maxDrafts": 3}}),
            |s| s["engine"] = json!({"lora": {"maxAdapters": 2}}),
            |s| s["adapters"] = json!([{"name": "a", "path": "a"}]),
            |s| s["engine"] = json!({"kvCache": {"dtype": "fp8"}}),
            |s| s["disruption"] = json!({"safeToEvict": false}),
            |s| s["engine"] = json!({"maxQueuedRequests": 7}),
            |s| s["engine"] = json!({"parseSpecialTokensInMessages": true}),
            |s| s["worker"]["drainGrace"] = json!("9s"),
            |s| s["placement"] = json!({"onePodPerNode": "Required"}),
            |s| s["rollout"] = json!({"restartedAt": "2026-01-01T00:00:00Z"}),
            |s| s["worker"]["image"] = json!("worker:2"),
            |s| s["worker"]["resources"]["requests"]["cpu"] = json!("2"),
            |s| s["parallelism"]["tensor"] = json!(4),
            |s| s["model"]["maxContextLength"] = json!(512),
            |s| s["recovery"] = json!({"stallTimeout": "5s"}),
        ];
        for change in other {
            assert_ne!(digest(&spec(change), "llama"), base);
        }
        assert_ne!(digest(&spec(|_| {}), "another"), base);
    }
}
