//! The rules of the definitions, evaluated as the API server evaluates them: what is refused, and what the user is told.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use llamero_api::deployment::KvCacheDtype;
use llamero_api::{LlamaDeployment, LlamaGroup};
use serde_json::{Value, json};

fn deployment(change: impl FnOnce(&mut Value)) -> LlamaDeployment {
    let mut object = json!({
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "LlamaDeployment",
        "metadata": {"name": "llama"},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": "weights"}}},
            "parallelism": {"tensor": 2}
        }
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn refused(object: &LlamaDeployment) -> String {
    object.validate_cel().unwrap_err().to_string()
}

#[test]
fn the_smallest_deployment_is_accepted() {
    let object = deployment(|_| {});
    object.validate_cel().unwrap();
    assert_eq!(
        (
            object.spec.ranks(),
            object.spec.ranks_per_pod(),
            object.spec.pods()
        ),
        (2, 1, 2)
    );
    assert_eq!(object.model_name(), "llama");
    assert_eq!(object.spec.recovery.stall_timeout.to_string(), "30s");
}

#[test]
fn a_method_of_drafting_that_is_not_built_is_refused_by_name() {
    let with = |speculation: Value| deployment(|o| o["spec"]["engine"] = json!({"speculation": speculation}));
    let usual = with(json!({"method": "PromptLookup"}));
    usual.validate_cel().unwrap();
    assert_eq!(usual.spec.engine.speculation.as_ref().unwrap().max_drafts, 8);
    assert!(refused(&with(json!({"method": "DraftModel"}))).contains("DraftModel is not built yet"));
}

#[test]
fn two_sources_are_refused() {
    let two = deployment(|o| o["spec"]["model"]["source"]["hostPath"] = json!({"path": "/models"}));
    assert!(refused(&two).contains("give exactly one of model.source"));
    let none = deployment(|o| o["spec"]["model"]["source"] = json!({}));
    assert!(refused(&none).contains("give exactly one of model.source"));
}

#[test]
fn replicas_default_to_one_and_may_stand_beside_autoscaling() {
    assert_eq!(deployment(|_| {}).spec.replicas, 1);
    let both = deployment(|o| {
        o["spec"]["replicas"] = json!(2);
        o["spec"]["autoscaling"] = json!({"maxReplicas": 3});
    });
    both.validate_cel().unwrap();
}

#[test]
fn a_rollout_that_can_replace_nothing_is_refused() {
    let stuck = deployment(|o| o["spec"]["rollout"] = json!({"maxSurge": 0, "maxUnavailable": 0}));
    assert!(refused(&stuck).contains("must not both be 0"));
    deployment(|o| {
        o["spec"]["rollout"] = json!({"strategy": "Recreate", "maxSurge": 0, "maxUnavailable": 0});
    })
    .validate_cel()
    .unwrap();
    deployment(|o| o["spec"]["rollout"] = json!({"maxUnavailable": 0}))
        .validate_cel()
        .unwrap();
}

#[test]
fn a_canary_needs_groups_that_are_replaced_one_after_another() {
    let rollout = |rollout: Value| deployment(|o| o["spec"]["rollout"] = rollout);
    let all_at_once = rollout(json!({"strategy": "Recreate", "partition": 1}));
    assert!(refused(&all_at_once).contains("rollout.partition needs the strategy RollingUpdate"));
    for fine in [
        json!({"strategy": "Recreate", "partition": 0}),
        json!({"partition": 1, "canaryPercent": 5}),
    ] {
        rollout(fine).validate_cel().unwrap();
    }
}

#[test]
fn bounds_of_autoscaling_are_ordered() {
    let crossed = deployment(|o| o["spec"]["autoscaling"] = json!({"minReplicas": 4, "maxReplicas": 3}));
    assert!(refused(&crossed).contains("minReplicas must not exceed"));
    deployment(|o| o["spec"]["autoscaling"] = json!({"minReplicas": 0, "maxReplicas": 3}))
        .validate_cel()
        .unwrap();
}

#[test]
fn a_resource_without_domain_is_refused() {
    for name in ["gpu", "nvidia.com/", "/gpu", "nvidia.com/gpu/0", "NVIDIA.com/gpu"] {
        let object = deployment(|o| o["spec"]["accelerator"] = json!({"resource": name}));
        assert!(refused(&object).contains("for example nvidia.com/gpu"), "{name}");
    }
    deployment(|o| o["spec"]["accelerator"] = json!({"resource": "nvidia.com/gpu"}))
        .validate_cel()
        .unwrap();
}

#[test]
fn every_pod_holds_equally_many_ranks() {
    let uneven = deployment(|o| {
        o["spec"]["parallelism"]["tensor"] = json!(9);
        o["spec"]["accelerator"] = json!({"resource": "nvidia.com/gpu", "perNode": 8});
    });
    assert!(refused(&uneven).contains("a multiple of it"));
}

#[test]
fn pods_hold_equally_many_ranks_of_all_stages() {
    let staged = |tensor: i32, pipeline: i32, per_node: i32| {
        deployment(|o| {
            o["spec"]["parallelism"] = json!({"tensor": tensor, "pipeline": pipeline});
            o["spec"]["accelerator"] = json!({"perNode": per_node});
        })
    };
    staged(1, 2, 1).validate_cel().unwrap();
    staged(8, 2, 8).validate_cel().unwrap();
    assert!(refused(&staged(3, 2, 4)).contains("a multiple of it"));
}

#[test]
fn names_that_pods_cannot_bear_are_refused() {
    for name in ["8b", "llama.8b", &"l".repeat(41)] {
        let object = deployment(|o| o["metadata"]["name"] = json!(name));
        assert!(
            refused(&object).contains("at most 40 lower-case letters"),
            "{name}"
        );
    }
}

#[test]
fn paths_stay_inside_the_volume() {
    for path in ["/abs", "../up", "a/../../b"] {
        let object =
            deployment(|o| o["spec"]["model"]["source"]["persistentVolumeClaim"]["path"] = json!(path));
        assert!(refused(&object).contains("relative to the volume"), "{path}");
    }
}

#[test]
fn adapters_need_room_and_a_place_in_the_model_s_volume() {
    let adapters = json!([{"name": "sql", "path": "adapters/sql"}, {"name": "team/poet", "path": "poet"}]);
    let with = |change: &dyn Fn(&mut Value)| {
        deployment(|o| {
            o["spec"]["adapters"] = adapters.clone();
            o["spec"]["engine"] = json!({"lora": {"maxAdapters": 2}});
            change(&mut o["spec"]);
        })
    };
    let good = with(&|_| {});
    good.validate_cel().unwrap();
    assert_eq!(good.spec.engine.lora.as_ref().unwrap().max_rank, 16);
    type Case<'a> = (&'a dyn Fn(&mut Value), &'a str);
    let refusals: [Case<'_>; 7] = [
        (&|s| s["engine"] = json!({}), "set engine.lora.maxAdapters"),
        (
            &|s| s["engine"]["lora"]["maxAdapters"] = json!(1),
            "to their number or more",
        ),
        (
            &|s| s["accelerator"] = json!({"resource": "nvidia.com/gpu"}),
            "CPU backend only",
        ),
        (
            &|s| s["model"]["source"] = json!({"huggingFace": {"repo": "org/name"}}),
            "must be persistentVolumeClaim, hostPath or image",
        ),
        (
            &|s| s["adapters"][0]["path"] = json!("../x"),
            "may not contain . or ..",
        ),
        (
            &|s| s["adapters"][0]["path"] = json!("/x"),
            "relative to the model's directory",
        ),
        (&|s| s["adapters"][0]["name"] = json!("a b"), "letters, digits"),
    ];
    for (change, part) in refusals {
        let why = refused(&with(change));
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[test]
fn a_group_that_goes_keeps_time_to_finish_what_runs() {
    let worker = |worker: Value| deployment(|o| o["spec"]["worker"] = worker);
    let long = worker(json!({"drainGrace": "1m"}));
    assert!(refused(&long).contains("worker.drainGrace must be shorter"));
    worker(json!({"drainGrace": "59s500ms"})).validate_cel().unwrap();
    worker(json!({"drainGrace": "1m", "terminationGracePeriodSeconds": 61}))
        .validate_cel()
        .unwrap();
}

fn group(change: impl FnOnce(&mut Value)) -> LlamaGroup {
    let mut object = json!({
        "apiVersion": "llamero.dev/v1alpha1",
        "kind": "LlamaGroup",
        "metadata": {"name": "llama-0"},
        "spec": {
            "deployment": "llama",
            "revision": "r1",
            "template": {
                "modelName": "llama",
                "source": {"hostPath": {"path": "/models"}},
                "maxContextLength": 2048,
                "tensor": 1, "pipeline": 1, "ranksPerPod": 1,
                "kvBytesPerRank": 1, "weightBytesPerRank": 1,
                "stallTimeout": "30s"
            },
            "generation": 3,
            "members": [{"index": 0, "attempt": 0}],
            "intent": "Run"
        }
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

#[test]
fn a_group_keeps_its_template_and_its_generation_only_grows() {
    let old = group(|_| {});
    group(|o| o["spec"]["generation"] = json!(4))
        .validate_cel_update(&old)
        .unwrap();
    let shrunk = group(|o| o["spec"]["generation"] = json!(2))
        .validate_cel_update(&old)
        .unwrap_err();
    assert!(shrunk.to_string().contains("only grows"));
    let changed = group(|o| o["spec"]["template"]["tensor"] = json!(2))
        .validate_cel_update(&old)
        .unwrap_err();
    assert!(
        changed
            .to_string()
            .contains("never changes its deployment, revision or template")
    );
}

#[test]
fn a_draining_group_stays_so() {
    let draining = group(|o| o["spec"]["intent"] = json!("Drain"));
    let back = group(|_| {}).validate_cel_update(&draining).unwrap_err();
    assert!(back.to_string().contains("cannot be put back"));
}

#[test]
fn types_of_the_kv_cache_have_their_usual_names() {
    let with = |dtype: Value| -> Result<LlamaDeployment, _> {
        serde_json::from_value(
            json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d"},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 1},
                "engine": {"kvCache": {"dtype": dtype}}}}),
        )
    };
    for (name, dtype) in [("auto", KvCacheDtype::Auto), ("fp8", KvCacheDtype::Fp8)] {
        assert_eq!(with(json!(name)).unwrap().spec.engine.kv_dtype(), dtype);
    }
    assert!(with(json!("int4")).is_err());
}

#[test]
fn every_sample_is_accepted() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/samples");
    let mut names = Vec::new();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let written: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let object: LlamaDeployment =
            serde_json::from_value(written.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        object
            .validate_cel()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        // A field that the types do not know would be lost here.
        let read = serde_json::to_value(&object).unwrap();
        assert!(covers(&read, &written), "{name} has a field that is not known");
        names.push(name);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "llama-3.2-1b.yaml",
            "llama-3.2-3b.yaml",
            "llama-405b-fp8.yaml",
            "llama-405b-two-nodes.yaml",
            "llama-70b.yaml",
            "llama-8b-s3.yaml",
            "llama-8b.yaml",
            "smollm2-claim.yaml",
            "smollm2.yaml"
        ]
    );
}

/// Whether `read` has everything that was `written`.
fn covers(read: &Value, written: &Value) -> bool {
    match (read, written) {
        (Value::Object(read), Value::Object(written)) => written
            .iter()
            .all(|(key, value)| read.get(key).is_some_and(|read| covers(read, value))),
        (Value::Array(read), Value::Array(written)) => {
            read.len() == written.len()
                && read
                    .iter()
                    .zip(written)
                    .all(|(read, written)| covers(read, written))
        }
        // Durations and sizes have several spellings.
        (Value::String(_), Value::String(_)) => true,
        _ => read == written,
    }
}

#[test]
fn a_repository_is_named_as_the_hub_names_it() {
    let source = |hub: Value| deployment(move |o| o["spec"]["model"]["source"] = json!({"huggingFace": hub}));
    source(json!({"repo": "org/m-1.b"})).validate_cel().unwrap();
    let all = source(
        json!({"repo": "org/m", "revision": "refs/pr/1", "endpoint": "https://hub/mirror",
        "tokenSecretRef": {"name": "hf"}, "caBundle": {"configMap": "roots"}}),
    );
    all.validate_cel().unwrap();
    let hub = all.spec.model.source.hugging_face.unwrap();
    assert_eq!(
        (hub.token_secret_ref.unwrap().key, hub.ca_bundle.unwrap().key),
        ("token".into(), "ca.crt".into())
    );
    for (hub, said) in [
        (json!({"repo": "m"}), "huggingFace.repo must be"),
        (json!({"repo": "https://hub/org/m"}), "huggingFace.repo must be"),
        (
            json!({"repo": "org/m", "endpoint": "hub"}),
            "huggingFace.endpoint must be",
        ),
        (
            json!({"repo": "org/m", "revision": "a b"}),
            "huggingFace.revision must be",
        ),
    ] {
        let refusal = refused(&source(hub.clone()));
        assert!(refusal.contains(said), "{hub}: {refusal}");
    }
}

#[test]
fn buckets_and_web_servers_are_addressed() {
    let source = |source: Value| deployment(move |o| o["spec"]["model"]["source"] = source);
    for right in [
        json!({"s3": {"uri": "s3://weights"}}),
        json!({"s3": {"uri": "s3://w/llama/8b", "endpoint": "http://minio:9000", "region": "eu-1",
            "credentialsSecretRef": {"name": "keys"}, "caBundle": {"configMap": "roots"}}}),
        json!({"s3": {"uri": "gs://w.example/x/"}}),
        json!({"s3": {"uri": "az://w/x"}}),
        json!({"https": {"url": "https://h:8443/m", "tokenSecretRef": {"name": "t"}}}),
    ] {
        let object = source(right);
        object.validate_cel().unwrap();
        assert!(object.spec.model.source.is_remote());
    }
    for (wrong, part) in [
        (json!({"s3": {"uri": "weights/x"}}), "s3.uri must be"),
        (json!({"s3": {"uri": "http://w/x"}}), "s3.uri must be"),
        (json!({"s3": {"uri": "s3://w/x?y"}}), "s3.uri must be"),
        (
            json!({"s3": {"uri": "s3://w", "endpoint": "minio"}}),
            "s3.endpoint must be",
        ),
        (json!({"s3": {"uri": "gs://w", "region": "eu"}}), "for s3:// only"),
        (json!({"https": {"url": "h/m"}}), "https.url must be"),
        (json!({"https": {"url": "https://h/m?x"}}), "https.url must be"),
        (
            json!({"https": {"url": "https://h"}, "s3": {"uri": "s3://w"}}),
            "exactly one of",
        ),
    ] {
        let said = refused(&source(wrong));
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn only_groups_on_cpus_go_on_without_members() {
    let allowed = |gpus: bool| {
        deployment(|o| {
            o["spec"]["recovery"] = json!({"degraded": "Allow"});
            if gpus {
                o["spec"]["accelerator"] = json!({"resource": "nvidia.com/gpu"});
            }
        })
    };
    allowed(false).validate_cel().unwrap();
    let why = refused(&allowed(true));
    assert!(why.contains("recovery.degraded: Allow is for CPUs"), "{why}");
}
