//! Objects of the API server, and the pods that are made of those that schema, rules and policy of an installation let through.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use llamero_api::deployment::{Source, Worker};
use llamero_api::group::{Intent, LlamaGroup, LlamaGroupSpec, Member};
use llamero_api::summary::CheckpointSummary;
use llamero_api::{LlamaDeployment, crds, labels};
use llamero_core::observed::{Enrolment, Node, Settings};
use llamero_core::placement::ANY_NODE;
use llamero_core::policy::{self, Policy};
use llamero_core::{revision, sizing};
use llamero_fuzz::{Shape, Target, drive};
use llamero_operator::build::enrol::let_enrol;
use llamero_operator::build::inspect::inspect_pod;
use llamero_operator::build::placeholder::placeholder_pod;
use llamero_operator::build::pod::member_pod;
use serde_json::Value;

use crate::outcome;

const HOST_FOLDER: &str = "/srv/models";
/// More groups, attempts and placeholders than a deployment sees in its life.
const MANY: u32 = 999_999;

/// An installation that bounds its tenants.
fn settings() -> Settings {
    Settings {
        worker_image: "llamero-worker:1".to_owned(),
        placeholder_image: "llamero-pause:1".to_owned(),
        policy: Policy {
            images: vec!["registry.example/*".to_owned()],
            host_paths: vec![HOST_FOLDER.to_owned()],
            service_accounts: Vec::new(),
            priority_classes: vec!["low".to_owned()],
            authenticated: true,
        },
        ..Settings::default()
    }
}

/// What the API server looks at before any rule.
fn schema() -> jsonschema::Validator {
    let definitions = crds::definitions().unwrap();
    let definition = definitions
        .iter()
        .find(|definition| definition["spec"]["names"]["kind"] == "LlamaDeployment");
    let schema = &definition.unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    jsonschema::validator_for(schema).unwrap()
}

#[test]
fn resources() {
    let target = Target {
        name: "resource",
        shape: Shape::Json,
        factor: 1000,
        // The rules in CEL are compiled once.
        constant: 16 << 20,
        threads: false,
    };
    let settings = settings();
    drive(target, || {
        let schema = schema();
        (Vec::new(), move |input: &[u8]| taken(input, &schema, &settings))
    });
}

/// What becomes of an input, in words: the last one is `checked` where pods are made.
fn taken(input: &[u8], schema: &jsonschema::Validator, settings: &Settings) -> String {
    let input: Value = match serde_json::from_slice(input) {
        Ok(value) => value,
        Err(error) => return error.to_string(),
    };
    let group = serde_json::from_value::<LlamaGroup>(input["group"].clone());
    let summary = serde_json::from_value::<CheckpointSummary>(input["summary"].clone());
    let deployment = serde_json::from_value::<LlamaDeployment>(input["deployment"].clone());
    let mut words = vec![outcome(group), outcome(summary.as_ref())];
    let object = match &deployment {
        Ok(object) => object,
        Err(error) => return format!("{} {error}", words.join(" ")),
    };
    let rules = outcome(object.validate_cel());
    let policy = outcome(policy::check(
        &object.spec.model.source,
        &object.spec.worker,
        settings,
    ));
    // Without a name there is no object, which is no matter of the schema.
    let is_well_formed = object.metadata.name.is_some() && schema.is_valid(&input["deployment"]);
    let is_let_in = is_well_formed && rules == "taken" && policy == "taken";
    words.extend([rules, policy]);
    let _ = revision::digest(&object.spec, object.model_name());
    let _ = revision::inspect_key(&object.spec);
    if let Ok(summary) = &summary {
        let pods = pods(object, summary, settings);
        words.push("planned".to_owned());
        if is_let_in {
            pods.iter().for_each(|pod| check(pod, object));
            words.push("checked".to_owned());
        }
    }
    words.join(" ")
}

/// Else changing them would try nothing.
#[test]
fn every_kind_of_source_gets_as_far_as_its_pods() {
    let (schema, settings) = (schema(), settings());
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/resource");
    for name in ["smollm2", "s3", "https", "hub", "host-path", "image", "volumes"] {
        let input = fs::read(corpus.join(name)).unwrap();
        let words = taken(&input, &schema, &settings);
        assert!(words.ends_with("checked"), "{name}: {words}");
    }
}

/// Every kind of pod that the operator makes for a deployment.
fn pods(object: &LlamaDeployment, summary: &CheckpointSummary, settings: &Settings) -> Vec<Pod> {
    let plan = sizing::plan(&object.spec, summary, &[Node::default()]);
    let template = revision::template(object, &plan, None, settings);
    let deployment = object.metadata.name.clone().unwrap_or_default();
    let spec = LlamaGroupSpec {
        revision: revision::digest(&object.spec, object.model_name()),
        template,
        generation: 1,
        members: vec![Member {
            index: 0,
            attempt: 0,
            node: None,
            placed_at: None,
            pod_uid: None,
            successor: None,
        }],
        without: Vec::new(),
        intent: Intent::Run,
        drain_since: None,
        placement_failures: 0,
        disrupted_since: None,
        place_after: None,
        provision: None,
        admitted: Default::default(),
        failures: Vec::new(),
        deployment: deployment.clone(),
    };
    let name = labels::group_name(&deployment, MANY);
    let group = LlamaGroup::new(&name, spec);
    let mut member = member_pod(&group, 255, i32::try_from(MANY).unwrap());
    let enrolment = Enrolment {
        address: "operator:18054".to_owned(),
        ..Enrolment::default()
    };
    let_enrol(&mut member, &enrolment, &group.spec.template.worker);
    let key = revision::inspect_key(&object.spec);
    let mut placeholder = placeholder_pod(&group, 255, &settings.placeholder_image, 600);
    placeholder.metadata.name = Some(labels::placeholder_name(&name, 255, MANY));
    vec![
        member,
        inspect_pod(object, &key, (None, ANY_NODE), settings),
        placeholder,
    ]
}

/// Nothing that a tenant writes gets a pod more than its installation lets it have, or a name that Kubernetes refuses.
fn check(pod: &Pod, object: &LlamaDeployment) {
    let meta = &pod.metadata;
    let name = meta.name.as_deref().unwrap_or_default();
    let is_letter = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    assert!(
        // Longer ones are cut where they become host names.
        name.len() <= 63
            && name.bytes().all(|letter| is_letter(letter) || letter == b'-')
            && name.bytes().next().is_some_and(is_letter)
            && name.bytes().last().is_some_and(is_letter),
        "the pod's name {name:?}"
    );
    let own = &object.spec.worker;
    let deployment = object.metadata.name.as_ref();
    let all = meta.labels.as_ref().unwrap();
    assert_eq!(all.get(labels::DEPLOYMENT), deployment, "{all:?}");
    for (key, value) in all.iter().filter(|(key, _)| !own.labels.contains_key(*key)) {
        assert!(is_label(value), "label {key} is {value:?}");
    }
    for key in meta.annotations.iter().flatten().map(|(key, _)| key) {
        assert!(
            !key.starts_with("llamero.dev/") || key == labels::SETTINGS,
            "{key}"
        );
    }
    let spec = pod.spec.as_ref().unwrap();
    volumes(spec);
    power(spec, &object.spec.model.source, own);
}

fn is_label(value: &str) -> bool {
    let is_end = |letter: u8| letter.is_ascii_alphanumeric();
    let is_inner = |letter: u8| is_end(letter) || b"-_.".contains(&letter);
    value.is_empty()
        || value.len() <= 63
            && value.bytes().all(is_inner)
            && value.bytes().next().is_some_and(is_end)
            && value.bytes().last().is_some_and(is_end)
}

/// No directory of a node but the allowed one, no way out of a volume, and no two volumes of one name where one of them is the operator's.
fn volumes(spec: &PodSpec) {
    let mut names = BTreeSet::new();
    let ours = [
        "model",
        "tmp",
        "model-ca",
        "llamero-shm",
        "llamero-token",
        "llamero-clients",
    ];
    for volume in spec.volumes.iter().flatten() {
        let is_new = names.insert(volume.name.as_str());
        assert!(
            is_new || !ours.contains(&volume.name.as_str()),
            "two volumes {}",
            volume.name
        );
        if let Some(host) = &volume.host_path {
            let below = host.path.strip_prefix(HOST_FOLDER);
            assert!(
                below.is_some_and(|below| below.is_empty() || below.starts_with('/')) && !climbs(&host.path),
                "the node's {}",
                host.path
            );
        }
    }
    for mount in spec
        .containers
        .iter()
        .filter_map(|container| container.volume_mounts.as_ref())
        .flatten()
    {
        let is_model = mount.mount_path == "/model" || mount.mount_path.starts_with("/model/");
        assert!(
            !is_model || mount.name == "model" && mount.read_only == Some(true) && mount.sub_path.is_none(),
            "{mount:?}"
        );
    }
    let arguments: Vec<&String> = spec
        .containers
        .iter()
        .filter_map(|one| one.args.as_ref())
        .flatten()
        .collect();
    let folder = arguments.iter().position(|argument| *argument == "--model-dir");
    if let Some(folder) = folder.and_then(|at| arguments.get(at + 1)) {
        let is_ours = ["/model", "/tmp"].iter().any(|top| {
            let below = folder.strip_prefix(top);
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        });
        assert!(is_ours && !climbs(folder), "the model's folder {folder:?}");
    }
}

fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

/// The *restricted* standard, and only the accounts, classes and images that are allowed.
fn power(spec: &PodSpec, source: &Source, own: &Worker) {
    assert_eq!(
        (spec.host_network, spec.host_pid, spec.host_ipc),
        (None, None, None)
    );
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert_eq!(
        spec.security_context.as_ref().unwrap().run_as_non_root,
        Some(true)
    );
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    assert_eq!(account, "default");
    let class = spec.priority_class_name.as_deref().unwrap_or("low");
    assert!(class == "low" || class == labels::PLACEHOLDER_CLASS, "{class}");
    assert!(spec.init_containers.is_none() && spec.containers.len() == 1);
    for container in &spec.containers {
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.privileged, None);
        let image = container.image.as_deref().unwrap_or_default();
        let allowed = image == "llamero-worker:1"
            || image == "llamero-pause:1"
            || image.starts_with("registry.example/");
        assert!(allowed, "the image {image} for {own:?}");
    }
    if let Some(image) = &source.image {
        assert!(image.reference.starts_with("registry.example/") || image.reference == "llamero-worker:1");
    }
}
