//! The bounds of tenants stand twice, in the chart's admission policy and in the operator: they must say the same.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_api::LlamaDeployment;
use llamero_core::observed::Settings;
use llamero_core::policy::{self, Policy};
use llamero_tests::cluster::{Cluster, Kubectl};
use llamero_tests::command::{output, output_with_input};
use llamero_tests::{paths, poll};
use serde_json::{Value, json};

use crate::fixture::SOON;
use crate::policy::Unbound;

/// A namespace of its own, to which the policy under test is bound.
const NAMESPACE: &str = "bounds";
/// The installation's worker image, which is always allowed.
const REPOSITORY: &str = "registry.example:5000/llamero/worker";
const TAG: &str = "9.9";
const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// What the installation allows.
fn bounds(everything: bool) -> Policy {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    if everything {
        return Policy {
            host_paths: words(&["/"]),
            ..Policy::default()
        };
    }
    Policy {
        images: words(&["registry.example:5000/models/*", "exact:1"]),
        host_paths: words(&["/models", "/slash/"]),
        service_accounts: words(&["loader", "team-*"]),
        priority_classes: words(&["batch-*", "system-batch"]),
        authenticated: true,
    }
}

/// The policy as the chart renders it for these bounds, in force in [`NAMESPACE`] only.
struct Rendered(Kubectl, String);

impl Rendered {
    fn of(kubectl: Kubectl, bounds: &Policy) -> Result<Self> {
        let set = |name: &str, value: Value| format!("{name}={value}");
        let manifest = output(
            Command::new(paths::program("helm"))
                .args(["template", "bounds"])
                .arg(paths::root().join("charts/llamero"))
                .args(["--namespace", NAMESPACE, "--show-only", "templates/tenants.yaml"])
                .args(["--set-json", &set("watchNamespaces", json!([NAMESPACE]))])
                .args(["--set-json", &set("tenants.images", json!(bounds.images))])
                .args(["--set-json", &set("tenants.hostPaths", json!(bounds.host_paths))])
                .args([
                    "--set-json",
                    &set("tenants.serviceAccounts", json!(bounds.service_accounts)),
                ])
                .args([
                    "--set-json",
                    &set("tenants.priorityClasses", json!(bounds.priority_classes)),
                ])
                .args([
                    "--set-string",
                    &format!("workerImage.repository={REPOSITORY},workerImage.tag={TAG}"),
                ]),
        )?;
        output_with_input(&mut kubectl.command(&["apply", "-f", "-"]), manifest.as_bytes())?;
        Ok(Self(kubectl, manifest))
    }
}

impl Drop for Rendered {
    fn drop(&mut self) {
        let mut command = self.0.command(&["delete", "--ignore-not-found", "-f", "-"]);
        if let Err(error) = output_with_input(&mut command, self.1.as_bytes()) {
            eprintln!("the policy of this test is still there: {error:#}");
        }
    }
}

fn deployment(source: Value, worker: Value) -> Value {
    json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "bounded", "namespace": NAMESPACE},
        "spec": {"model": {"source": source}, "parallelism": {"tensor": 1}, "worker": worker}})
}

fn cases() -> Vec<Value> {
    let claim = || json!({"persistentVolumeClaim": {"claimName": "weights"}});
    let images = [
        "exact:1",
        "exact:2",
        "exact:1@sha256:0",
        "registry.example:5000/models/llama",
        "registry.example:5000/models",
        "registry.example:5000/modelsx/llama",
        "models/llama",
    ];
    let own = [
        format!("{REPOSITORY}:{TAG}"),
        format!("{REPOSITORY}:9.8"),
        format!("{REPOSITORY}@{DIGEST}"),
        format!("{REPOSITORY}:{TAG}@{DIGEST}"),
        format!("{REPOSITORY}x@{DIGEST}"),
        format!("{REPOSITORY}:1/x@{DIGEST}"),
        format!("{REPOSITORY}/x@{DIGEST}"),
    ];
    let images: Vec<String> = images.map(str::to_owned).into_iter().chain(own).collect();
    let mut cases = vec![deployment(claim(), json!({}))];
    for image in &images {
        cases.push(deployment(claim(), json!({"image": image})));
        cases.push(deployment(json!({"image": {"reference": image}}), json!({})));
    }
    for path in [
        "/models",
        "/models/",
        "/models/a/b",
        "/modelsx",
        "/models/../etc",
        "/models/..",
        "/models/..a",
        "/models//b",
        "/slash",
        "/slash/a",
        "/slashes",
        "/etc",
    ] {
        cases.push(deployment(json!({"hostPath": {"path": path}}), json!({})));
    }
    for account in ["default", "loader", "loader2", "team-a", "team", "other"] {
        cases.push(deployment(claim(), json!({"serviceAccountName": account})));
    }
    for class in [
        "batch-a",
        "batch",
        "system-batch",
        "system-node-critical",
        "other",
    ] {
        cases.push(deployment(claim(), json!({"priorityClassName": class})));
    }
    cases
}

/// Whether the API server admits it, as far as the admission policies of this installation are concerned.
fn admitted(kubectl: &Kubectl, object: &Value) -> Result<bool> {
    let mut command = kubectl.command(&["create", "--dry-run=server", "-f", "-"]);
    match output_with_input(&mut command, object.to_string().as_bytes()) {
        Ok(_) => Ok(true),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(
                said.contains("is not allowed by this installation"),
                "{object}: {said}"
            );
            Ok(false)
        }
    }
}

/// Whether the operator would accept it.
fn accepted(object: &Value, settings: &Settings) -> Result<bool> {
    let object: LlamaDeployment = serde_json::from_value(object.clone())?;
    Ok(policy::check(&object.spec.model.source, &object.spec.worker, settings).is_ok())
}

#[test]
fn both_copies_of_the_bounds_agree() -> Result<()> {
    let kubectl = Cluster::connect()?.kubectl();
    let _unbound = Unbound::new(Cluster::connect()?.kubectl())?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    kubectl.apply(&namespace)?;
    for everything in [false, true] {
        let bounds = bounds(everything);
        let _rendered = Rendered::of(Cluster::connect()?.kubectl(), &bounds)?;
        let settings = Settings {
            worker_image: format!("{REPOSITORY}:{TAG}"),
            policy: bounds,
            ..Settings::default()
        };
        // The API server takes some moments to take a policy up and to forget one. Both sets refuse one of these, and only one of them.
        let signs = [
            deployment(json!({"hostPath": {"path": "/models/../etc"}}), json!({})),
            deployment(json!({"hostPath": {"path": "/etc"}}), json!({})),
        ];
        poll::until("the policy to be in force", SOON, || {
            let (first, second) = (admitted(&kubectl, &signs[0])?, admitted(&kubectl, &signs[1])?);
            Ok((!first && second == everything).then_some(()))
        })?;
        let (mut refused, cases) = (0, cases());
        for case in &cases {
            let (by_server, by_operator) = (admitted(&kubectl, case)?, accepted(case, &settings)?);
            ensure!(
                by_server == by_operator,
                "the API server says {by_server} and the operator {by_operator} to {}",
                case["spec"]
            );
            refused += usize::from(!by_server);
        }
        ensure!(
            refused > 0 && refused < cases.len(),
            "{refused} of {} are refused",
            cases.len()
        );
    }
    kubectl
        .run(&["delete", "namespace", NAMESPACE, "--wait=false"])
        .map(drop)
        .context("the namespace is still there")
}
