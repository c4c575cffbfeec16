//! Faults that can be caused, and that they end.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{Cluster, PodProcess, Signal};
use llamero_tests::command::output;
use llamero_tests::write_cutter::WriteCutter;
use llamero_tests::{paths, poll};
use serde_json::Value;

use crate::SOON;
use crate::pods::{NAMESPACE, Pods};
use crate::serve::{answers, fetch};

pub(crate) fn processes_are_signalled(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let url = pods.url("first")?;
    let server = server(cluster, "first")?;
    server.signal(Signal::STOP)?;
    ensure!(fetch(&url).is_err(), "a suspended process does not answer");
    server.signal(Signal::CONT)?;
    answers(&url, &["first"]).context("it answers when it goes on")?;

    server.signal(Signal::KILL)?;
    poll::until("the container's restart", SOON, || {
        let restarts = pods.value("pod/first", "/status/containerStatuses/0/restartCount")?;
        let ready = pods.value("pod/first", "/status/containerStatuses/0/ready")?;
        Ok((restarts == 1 && ready == true).then_some(()))
    })?;
    ensure!(!server.lives(), "the process is gone");
    ensure!(
        server.signal(Signal::KILL).is_err(),
        "a process that has ended cannot be signalled"
    );
    poll::until("another process that has taken over", SOON, || {
        Ok((self::server(cluster, "first")? != server).then_some(()))
    })
}

pub(crate) fn extended_resources_come_and_go(cluster: &Cluster, node: &str) -> Result<()> {
    let has = |wanted: Option<&str>| -> Result<()> {
        let object = cluster.kubectl().get(&["node", node])?;
        for list in ["capacity", "allocatable"] {
            let value = object
                .pointer(&format!("/status/{list}/nvidia.com~1gpu"))
                .and_then(Value::as_str);
            ensure!(value == wanted, "{list} is {value:?}, not {wanted:?}");
        }
        Ok(())
    };
    has(None)?;
    cluster.set_extended(node, "nvidia.com/gpu", 8)?;
    has(Some("8"))?;
    cluster.set_extended(node, "nvidia.com/gpu", 0)?;
    has(None)
}

pub(crate) fn the_api_server_stops_and_starts(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let before = server(cluster, "second")?;
    let url = pods.url("second")?;
    cluster.stop_api_server()?;
    ensure!(
        pods.run(&["get", "pods", "--request-timeout=2s"]).is_err(),
        "the API server does not answer"
    );
    answers(&url, &["second"]).context("pods go on")?;
    ensure!(
        server(cluster, "second")? == before,
        "and their processes are found"
    );
    cluster.start_api_server()?;
    ensure!(
        pods.run(&["get", "pods"])?.contains("second"),
        "the API server knows all that it knew"
    );
    ensure!(server(cluster, "second")? == before, "pods were not restarted");
    Ok(())
}

pub(crate) fn a_client_is_cut_off_after_a_write(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let cutter = WriteCutter::start(cluster.layout())?;
    let create = |name: &str| {
        let words = [
            "--server",
            &cutter.url(),
            "--namespace",
            NAMESPACE,
            "create",
            "configmap",
            name,
        ];
        output(
            Command::new(paths::program("kubectl"))
                .args(["--kubeconfig", "/dev/null"])
                .args(words),
        )
    };
    create("before")?;
    cutter.cut_after(2);
    create("first")?;
    ensure!(
        create("second").is_err(),
        "the answer to the last write is swallowed"
    );
    cutter.wait_for_cut(SOON)?;
    ensure!(create("third").is_err(), "nothing passes after the cut");
    let made = pods.run(&["get", "configmaps", "--output", "name"])?;
    ensure!(
        made.contains("second") && !made.contains("third"),
        "what was passed on was done: {made}"
    );
    let paths: Vec<String> = cutter.writes().into_iter().map(|write| write.path).collect();
    ensure!(paths.len() == 2, "both writes are told: {paths:?}");
    cutter.open();
    create("third")?;
    Ok(())
}

pub(crate) fn a_cut_node_is_not_ready(cluster: &Cluster, pods: &Pods, node: &str) -> Result<()> {
    let url = pods.url("second")?;
    cluster.cut_link(node)?;
    ensure!(
        pods.fetch("first", &url).is_err(),
        "nothing comes from a node that is cut off"
    );
    wait_for_readiness(cluster, node, "Unknown")?;
    cluster.restore_link(node)?;
    wait_for_readiness(cluster, node, "True")?;
    let answer = poll::until("an answer over the restored cable", SOON, || {
        Ok(Some(pods.fetch("first", &url)?))
    })?;
    ensure!(answer.trim() == "second", "the pod has lived on");
    Ok(())
}

pub(crate) fn nodes_come_and_go(cluster: &Cluster, pods: &Pods) -> Result<()> {
    let node = cluster.add_node()?;
    let name = node.name();
    cluster.import_image(&paths::images().join("toolbox.tar"))?;
    pods.start("third", &name)?;
    let url = pods.url("third")?;
    let answer = poll::until("an answer from the new node", SOON, || {
        pods.fetch("first", &url).map(Some)
    })?;
    ensure!(answer.trim() == "third", "the new node is connected");
    cluster.remove_node(&name)?;
    ensure!(cluster.node(&name).is_err(), "the node is gone");
    let listed = cluster.kubectl().run(&["get", "nodes"])?;
    ensure!(!listed.contains(&name), "also for the API server: {listed}");
    Ok(())
}

/// The pod's only process.
fn server(cluster: &Cluster, pod: &str) -> Result<PodProcess> {
    let processes = cluster.pod_processes(NAMESPACE, pod)?;
    processes
        .into_iter()
        .find(|process| process.command.contains("httpd"))
        .context("the pod's server runs")
}

fn wait_for_readiness(cluster: &Cluster, node: &str, wanted: &str) -> Result<()> {
    poll::until(&format!("readiness {wanted} of {node}"), SOON, || {
        let object = cluster.kubectl().get(&["node", node])?;
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .cloned();
        let ready = conditions
            .unwrap_or_default()
            .into_iter()
            .find(|condition| condition["type"] == "Ready");
        Ok(ready.filter(|condition| condition["status"] == wanted))
    })?;
    Ok(())
}
