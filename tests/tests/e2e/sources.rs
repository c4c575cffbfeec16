//! Weights from each kind of source.

use anyhow::{Context, Result, ensure};
use llamero_tests::{cluster::Cluster, paths};
use serde_json::{Value, json};

use crate::client::{ask, chat};
use crate::fixture::Deployment;

const QUESTION: &str = "What do llamas eat?";

#[test]
fn an_image_and_a_directory_of_the_nodes_hold_the_same_model_as_the_claim() -> Result<()> {
    let claim = Deployment::create("by-claim", json!({}))?;
    let expected = answer(&claim)?;
    drop(claim);

    let image =
        json!({"reference": "docker.io/library/llamero-weights-smollm2:dev", "pullPolicy": "IfNotPresent"});
    let image = Deployment::create("by-image", source("image", image))?;
    ensure!(
        answer(&image)? == expected,
        "the image's model answers differently"
    );
    drop(image);

    let namespace = Namespace::create("host-weights")?;
    let host = Deployment::create_in(namespace.0, "by-host-path", source("hostPath", host_path()?))?;
    ensure!(answer(&host)? == expected, "the nodes' model answers differently");
    Ok(())
}

#[test]
fn a_restricted_namespace_forbids_directories_of_the_nodes_and_status_says_so() -> Result<()> {
    let host = Deployment::create("forbidden", source("hostPath", host_path()?))?;
    let message = host.wait_condition("Degraded", "True")?;
    ensure!(
        message.contains("PodSecurity") && message.contains("hostPath"),
        "{message}"
    );
    Ok(())
}

fn source(kind: &str, value: Value) -> Value {
    let mut source = json!({"persistentVolumeClaim": null});
    source[kind] = value;
    json!({"model": {"source": source}})
}

/// The nodes of the local cluster share this machine's files.
fn host_path() -> Result<Value> {
    let path = paths::local().join("models/SmolLM2-135M-Instruct-FP8");
    Ok(json!({"path": path.to_str().context("the checkout's path is not UTF-8")?}))
}

fn answer(deployment: &Deployment) -> Result<String> {
    deployment.wait_ready(1)?;
    ask(&deployment.cluster, &chat(&deployment.name, QUESTION, 24))
}

/// A namespace without a Pod Security Standard.
struct Namespace(&'static str);

impl Namespace {
    fn create(name: &'static str) -> Result<Self> {
        Cluster::connect()?.kubectl().apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}
        }))?;
        Ok(Self(name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let delete = || {
            Cluster::connect()?
                .kubectl()
                .run(&["delete", "namespace", self.0, "--timeout=180s"])
        };
        if let Err(error) = delete() {
            eprintln!("left behind: {error:#}");
        }
    }
}
