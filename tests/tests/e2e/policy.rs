//! What tenants may ask for: an admission policy tells who writes, and the operator refuses where it is absent.

use anyhow::{Context, Result, bail, ensure};
use llamero_tests::cluster::{Cluster, Kubectl};
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::fixture::{Deployment, NAMESPACE, SOON};

const BINDING: &str = "llamero-tenants";

fn asking(change: Value) -> Value {
    json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "greedy", "namespace": NAMESPACE},
        "spec": {"model": {"source": {"hostPath": {"path": "/etc"}}}, "parallelism": {"tensor": 1}, "worker": change}})
}

fn refusal(kubectl: &Kubectl, object: &Value) -> Result<String> {
    match kubectl.apply(object) {
        Ok(()) => {
            kubectl.run(&["-n", NAMESPACE, "delete", "llamadeployment", "greedy"])?;
            bail!("admitted: {object}")
        }
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// The binding is taken away while this lives.
pub(crate) struct Unbound {
    kubectl: Kubectl,
    binding: Value,
}

impl Unbound {
    pub(crate) fn new(kubectl: Kubectl) -> Result<Self> {
        let mut binding = kubectl.get(&["validatingadmissionpolicybinding", BINDING])?;
        let metadata = binding["metadata"].as_object_mut().context("no metadata")?;
        metadata.retain(|field, _| matches!(field.as_str(), "name" | "labels" | "annotations"));
        kubectl.run(&["delete", "validatingadmissionpolicybinding", BINDING])?;
        Ok(Self { kubectl, binding })
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if let Err(error) = self.kubectl.apply(&self.binding) {
            eprintln!("the binding {BINDING} is not back: {error:#}");
        }
    }
}

#[test]
fn a_directory_that_is_not_allowed_is_refused_by_the_api_server_and_by_the_operator() -> Result<()> {
    let kubectl = Cluster::connect()?.kubectl();
    let said = refusal(&kubectl, &asking(json!({})))?;
    ensure!(
        said.contains("model.source.hostPath.path /etc is not allowed"),
        "{said}"
    );
    let mut sly = asking(json!({}));
    let allowed = llamero_tests::paths::local().join("models");
    sly["spec"]["model"]["source"]["hostPath"]["path"] = json!(format!("{}/../..", allowed.display()));
    ensure!(
        refusal(&kubectl, &sly)?.contains("is not allowed"),
        "a way out of the directory is admitted"
    );
    // The API server tells the first thing that it finds.
    let mut critical = asking(json!({"priorityClassName": "system-node-critical"}));
    critical["spec"]["model"]["source"] = json!({"persistentVolumeClaim": {"claimName": "weights"}});
    let said = refusal(&kubectl, &critical)?;
    ensure!(
        said.contains("worker.priorityClassName system-node-critical is not allowed"),
        "{said}"
    );

    let unbound = Unbound::new(Cluster::connect()?.kubectl())?;
    let source = json!({"persistentVolumeClaim": null, "hostPath": {"path": "/etc"}});
    // The API server takes some moments to forget a policy.
    let deployment = poll::until("the policy to be gone", SOON, || {
        Ok(Deployment::create("greedy", json!({"model": {"source": source}})).ok())
    })?;
    let message = deployment.wait_condition("Accepted", "False")?;
    ensure!(
        message.contains("/etc is not allowed by this installation"),
        "{message}"
    );
    let conditions = deployment.get()?["status"]["conditions"].clone();
    let accepted = conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["type"] == "Accepted");
    ensure!(
        accepted.is_some_and(|one| one["reason"] == "PolicyRefused"),
        "{conditions}"
    );
    let selector = "llamero.dev/deployment=greedy";
    let pods = deployment
        .kubectl()
        .get(&["-n", NAMESPACE, "pods", "-l", selector])?;
    ensure!(
        pods["items"].as_array().is_some_and(Vec::is_empty),
        "a pod was made: {pods}"
    );
    drop(unbound);
    Ok(())
}
