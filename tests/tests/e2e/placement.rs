//! Whole groups or nothing.

use anyhow::{Context as _, Result, ensure};
use llamero_tests::cluster::{Cluster, Kubectl};
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::fixture::{Deployment, NAMESPACE, SOON, node_of};

pub(crate) const GPU: &str = "nvidia.com/gpu";

/// Gives nodes GPUs and takes them away again.
pub(crate) struct Gpus {
    cluster: Cluster,
    /// Names of all nodes.
    pub(crate) nodes: Vec<String>,
}

impl Gpus {
    /// As many as `counts` says for each node in the order of their names.
    pub(crate) fn new(counts: &[u32]) -> Result<Self> {
        let cluster = Cluster::connect()?;
        let nodes: Vec<String> = cluster.nodes()?.iter().map(|node| node.name()).collect();
        let gpus = Self { cluster, nodes };
        for (node, count) in gpus.nodes.iter().zip(counts) {
            gpus.cluster.set_extended(node, GPU, *count)?;
        }
        Ok(gpus)
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        for node in &self.nodes {
            if let Err(error) = self.cluster.set_extended(node, GPU, 0) {
                eprintln!("left behind: {error:#}");
            }
        }
    }
}

/// A pod with a GPU that the operator's reservations do not know: it arrives through the node's name, past the scheduler. It goes when
/// this is dropped.
struct Thief(Kubectl);

impl Thief {
    /// Returns when the node has let it in.
    fn sit(kubectl: Kubectl, node: &str) -> Result<Self> {
        kubectl.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "thief", "namespace": NAMESPACE},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "sit", "image": "llamero-worker:0.1.0", "imagePullPolicy": "Never",
                    "args": ["serve", "--help"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "resources": {"limits": {GPU: "1"}}
                }]
            }
        }))?;
        let this = Self(kubectl);
        poll::until("the thief to be let in", SOON, || {
            let status = this.0.get(&["-n", NAMESPACE, "pod", "thief"])?["status"].clone();
            // A pod that the kubelet turns away has a start time too, and takes no room.
            ensure!(
                status["startTime"].is_string() && status["phase"] != "Failed",
                "its status is {status}"
            );
            Ok(Some(()))
        })?;
        Ok(this)
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        let words = [
            "-n",
            NAMESPACE,
            "delete",
            "pod",
            "thief",
            "--force",
            "--grace-period=0",
            "--ignore-not-found",
        ];
        if let Err(error) = self.0.run(&words) {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// One GPU a pod, that the CPU worker holds and does not use: placement is the same for all extended resources.
fn seat() -> Value {
    json!({"resources": {"requests": {GPU: "1"}, "limits": {GPU: "1"}}})
}

#[test]
fn a_group_that_does_not_fit_holds_nothing_and_starts_when_room_appears() -> Result<()> {
    let gpus = Gpus::new(&[1, 0, 0])?;
    let deployment = Deployment::create("room", json!({"worker": seat()}))?;
    names_what_is_missing(&deployment)?;
    ensure!(
        holding(&deployment)?.is_empty(),
        "pods hold accelerators: {:?}",
        holding(&deployment)?
    );

    gpus.cluster.set_extended(&gpus.nodes[1], GPU, 1)?;
    deployment.wait_ready(1)?;
    ensure!(holding(&deployment)?.len() == 2, "two nodes have a GPU in use");
    Ok(())
}

#[test]
fn an_attempt_whose_room_is_taken_is_rolled_back_whole_and_placed_later() -> Result<()> {
    let gpus = Gpus::new(&[1, 1, 0])?;
    let deployment = Deployment::create(
        "taken",
        json!({"worker": seat(), "placement": {"deadline": "30s"}, "replicas": 0}),
    )?;
    let kubectl = deployment.kubectl();
    deployment.wait_condition("Accepted", "True")?;
    // There is no scheduler while the operator places, and the room is gone when there is one again.
    let scheduler = gpus.cluster.stop_scheduler()?;
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "scale",
        "llamadeployment",
        "taken",
        "--replicas=1",
    ])?;
    let pods = poll::until("ungated pods", SOON, || {
        let pods = deployment.pods()?;
        let ungated = |pod: &Value| {
            pod["spec"]["schedulingGates"]
                .as_array()
                .is_none_or(Vec::is_empty)
        };
        Ok((pods.len() == 2 && pods.iter().all(ungated)).then_some(pods))
    })?;
    let thief = Thief::sit(deployment.kubectl(), &pinned_node(&pods[1]))?;
    drop(scheduler);
    poll::until("the attempt to be rolled back whole", SOON, || {
        let now: Vec<Value> = deployment
            .pods()?
            .iter()
            .map(|pod| pod["metadata"]["uid"].clone())
            .collect();
        Ok((!pods.iter().any(|pod| now.contains(&pod["metadata"]["uid"]))).then_some(()))
    })?;
    drop(thief);
    deployment.wait_ready(1)
}

/// Nobody adds nodes here, so a node of the cluster gets what it was short of: to the scheduler that is the same.
#[test]
fn a_group_asks_for_nodes_and_starts_when_all_are_there() -> Result<()> {
    let gpus = Gpus::new(&[1, 0, 0])?;
    let placement = json!({"whenFull": "Provision", "onePodPerNode": "Required", "provisionDeadline": "10m"});
    let deployment = Deployment::create("asks", json!({"worker": seat(), "placement": placement}))?;
    poll::until(
        "a placeholder that has a node and one that finds none",
        SOON,
        || {
            let placeholders = placeholders(&deployment)?;
            let waits = placeholders.iter().filter(|pod| is_unschedulable(pod)).count();
            let runs = placeholders
                .iter()
                .filter(|pod| pod["status"]["phase"] == "Running")
                .count();
            ensure!(
                deployment.pods()?.is_empty(),
                "members are made before there is room for all"
            );
            Ok((waits == 1 && runs == 1).then_some(()))
        },
    )?;
    poll::until("what was asked for in status", SOON, || {
        let message = deployment.wait_condition("Placed", "False")?;
        let told = [
            "needs 2 nodes with",
            GPU,
            "ask for 2 nodes or rooms, 1 of which have come, for 10m",
        ];
        Ok(told.iter().all(|words| message.contains(words)).then_some(()))
    })?;

    gpus.cluster.set_extended(&gpus.nodes[1], GPU, 1)?;
    deployment.wait_ready(1)?;
    poll::until("the placeholders to go", SOON, || {
        Ok(placeholders(&deployment)?.is_empty().then_some(()))
    })?;

    // Another group for which only one node comes, which is given back.
    gpus.cluster.set_extended(&gpus.nodes[2], GPU, 1)?;
    let patch = json!({"spec": {"replicas": 2, "placement": {"provisionDeadline": "8s"}}}).to_string();
    let words = [
        "-n",
        NAMESPACE,
        "patch",
        "llamadeployment",
        "asks",
        "--type=merge",
        "-p",
        &patch,
    ];
    deployment.kubectl().run(&words)?;
    poll::until("the second group to give up", SOON, || {
        let groups = deployment.groups()?;
        let provision = |group: &Value| group["spec"]["provision"]["failures"].as_i64();
        Ok(groups
            .iter()
            .any(|group| provision(group) == Some(1))
            .then_some(()))
    })?;
    poll::until("the node to be given back", SOON, || {
        Ok(placeholders(&deployment)?.is_empty().then_some(()))
    })
}

fn placeholders(deployment: &Deployment) -> Result<Vec<Value>> {
    let selector = format!(
        "llamero.dev/deployment={},llamero.dev/placeholder",
        deployment.name
    );
    let list = deployment
        .kubectl()
        .get(&["-n", NAMESPACE, "pods", "-l", &selector])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// What autoscalers of a cluster look for.
fn is_unschedulable(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|one| one["type"] == "PodScheduled" && one["reason"] == "Unschedulable")
}

/// Waits until status says that accelerators are missing, not that the checkpoint is still being read.
fn names_what_is_missing(deployment: &Deployment) -> Result<()> {
    poll::until("the missing accelerators in status", SOON, || {
        let message = deployment.wait_condition("Placed", "False")?;
        ensure!(message.contains(GPU), "the message is {message}");
        Ok(Some(()))
    })
}

/// Names of the nodes on which the deployment's pods hold an accelerator.
fn holding(deployment: &Deployment) -> Result<Vec<String>> {
    let holds = |pod: &&Value| {
        !node_of(pod).is_empty() && pod["spec"]["containers"][0]["resources"]["limits"][GPU] != Value::Null
    };
    Ok(deployment
        .pods()?
        .iter()
        .filter(holds)
        .map(|pod| node_of(pod).to_owned())
        .collect())
}

fn pinned_node(pod: &Value) -> String {
    let terms = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    terms[0]["matchFields"][0]["values"][0]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Defaults for every container of the namespace, until this is dropped.
struct Defaults(Kubectl);

impl Defaults {
    fn of_storage(kubectl: Kubectl, amount: &str) -> Result<Self> {
        kubectl.apply(&json!({
            "apiVersion": "v1", "kind": "LimitRange",
            "metadata": {"name": "defaults", "namespace": NAMESPACE},
            "spec": {"limits": [{"type": "Container", "defaultRequest": {"ephemeral-storage": amount}}]}
        }))?;
        Ok(Self(kubectl))
    }
}

impl Drop for Defaults {
    fn drop(&mut self) {
        let words = ["-n", NAMESPACE, "delete", "limitrange", "defaults"];
        if let Err(error) = self.0.run(&words) {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// Nothing in the template says how much the pods ask for: they are looked at before they are released.
#[test]
fn a_group_is_placed_by_what_its_pods_ask_for_once_they_are_admitted() -> Result<()> {
    let defaults = Defaults::of_storage(Cluster::connect()?.kubectl(), "32Mi")?;
    let deployment = Deployment::create("admitted", json!({"replicas": 1}))?;
    deployment.wait_ready(1)?;
    let groups = deployment.groups()?;
    let admitted = &groups[0]["spec"]["admitted"];
    ensure!(admitted["ephemeral-storage"] == "33554432", "{admitted}");
    let members = groups[0]["spec"]["members"].as_array().into_iter().flatten();
    let again: Vec<&Value> = members.map(|member| &member["attempt"]).collect();
    ensure!(again.iter().all(|attempt| **attempt == 1), "{again:?}");
    ensure!(groups[0]["spec"]["failures"].is_null(), "{groups:?}");
    drop(defaults);
    Ok(())
}

/// A volume that one node reaches, with its claim, until this is dropped.
struct Near(Kubectl);

impl Near {
    fn on(kubectl: Kubectl, node: &str) -> Result<Self> {
        let volume = kubectl.get(&["persistentvolume", "demo-weights"])?;
        let hosts = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]);
        let shared = json!({"storageClassName": "", "accessModes": ["ReadWriteOnce"]});
        let mut spec = shared.clone();
        spec["capacity"] = json!({"storage": "1Gi"});
        spec["hostPath"] = volume["spec"]["hostPath"].clone();
        spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": hosts}]}});
        spec["claimRef"] = json!({"namespace": NAMESPACE, "name": "near"});
        let this = Self(kubectl);
        this.0.apply(&json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "near"}, "spec": spec}))?;
        let mut spec = shared;
        spec["volumeName"] = json!("near");
        spec["resources"] = json!({"requests": {"storage": "1Gi"}});
        this.0.apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "near", "namespace": NAMESPACE}, "spec": spec
        }))?;
        Ok(this)
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        for words in [
            &[
                "-n",
                NAMESPACE,
                "delete",
                "persistentvolumeclaim",
                "near",
                "--wait=false",
            ][..],
            &["delete", "persistentvolume", "near", "--wait=false"],
        ] {
            if let Err(error) = self.0.run(words) {
                eprintln!("left behind: {error:#}");
            }
        }
    }
}

#[test]
fn a_group_goes_where_its_volume_is_or_says_why_it_cannot() -> Result<()> {
    let cluster = Cluster::connect()?;
    let nodes: Vec<String> = cluster.nodes()?.iter().map(|node| node.name()).collect();
    let node = nodes.last().context("the cluster has no nodes")?;
    let near = Near::on(cluster.kubectl(), node)?;
    let source = json!({"persistentVolumeClaim": {"claimName": "near", "path": "SmolLM2-135M-Instruct-FP8"}});
    let deployment = Deployment::create(
        "near",
        json!({"model": {"source": source}, "placement": {"onePodPerNode": "Required"}}),
    )?;
    poll::until("the claim to be named", SOON, || {
        let message = deployment.wait_condition("Placed", "False")?;
        ensure!(
            message.contains("some do not reach the volume of claim near"),
            "the message is {message}"
        );
        Ok(Some(()))
    })?;
    ensure!(deployment.pods()?.iter().all(|pod| node_of(pod).is_empty()));
    deployment.kubectl().run(&[
        "-n",
        NAMESPACE,
        "patch",
        "llamadeployment",
        "near",
        "--type=merge",
        "-p",
        r#"{"spec": {"placement": {"onePodPerNode": "Preferred"}}}"#,
    ])?;
    deployment.wait_ready(1)?;
    let pods = deployment.pods()?;
    let on: Vec<&str> = pods.iter().map(node_of).collect();
    ensure!(on == [node.as_str(), node.as_str()], "{on:?}");
    drop(deployment);
    drop(near);
    Ok(())
}
