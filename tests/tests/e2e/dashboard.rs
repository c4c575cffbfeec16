//! The Grafana dashboard asks for what is there.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::{command, paths, poll};
use serde_json::{Value, json};

use crate::client::{ask, chat};
use crate::fixture::{Deployment, NAMESPACE, SOON};

#[test]
fn every_metric_of_the_dashboard_is_exported() -> Result<()> {
    let deployment = Deployment::create("measured", json!({}))?;
    deployment.wait_ready(1)?;
    ask(&deployment.cluster, &chat("measured", "Hello", 4))?;
    let dashboard = std::fs::read_to_string(paths::root().join("charts/llamero/dashboards/llamero.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let expressions: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str())
        .collect();
    ensure!(expressions.len() > 20, "only {} expressions", expressions.len());
    let words = |expression: &'_ str| -> Vec<String> {
        let words = expression.split(|at: char| !at.is_ascii_alphanumeric() && at != '_');
        words.map(str::to_owned).collect()
    };
    let mut metrics: Vec<String> = expressions.into_iter().flat_map(words).collect();
    // Those of GPUs are exported where there are some; a unit test of the worker knows their names.
    metrics.retain(|word| word.starts_with("llamero_") && !word.starts_with("llamero_device_"));
    // Some appear with what they count, a moment after the answer.
    poll::until("all metrics of the dashboard", SOON, || {
        let exported = exported(&deployment.cluster)?;
        let missing: Vec<&String> = metrics.iter().filter(|one| !exported.contains(*one)).collect();
        ensure!(missing.is_empty(), "{missing:?} are not among {exported:?}");
        Ok(Some(()))
    })
}

/// Names of the metrics of operator, gateway and workers.
fn exported(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let text = [
        scrape(cluster, "llamero-system", "llamero-operator")?,
        scrape(cluster, "llamero-system", "llamero-gateway")?,
        scrape(cluster, NAMESPACE, "llamero-worker")?,
    ]
    .concat();
    let names = text.lines().filter_map(|line| line.split([' ', '{']).next());
    Ok(names.map(str::to_owned).collect())
}

/// The metrics of a pod, fetched as its annotations say.
fn scrape(cluster: &Cluster, namespace: &str, app: &str) -> Result<String> {
    let selector = format!("app.kubernetes.io/name={app}");
    let pods = cluster
        .kubectl()
        .get(&["-n", namespace, "pods", "-l", &selector])?;
    // The leader of the group, whose name comes first, has all of them.
    let pod = &pods["items"][0];
    let ip = pod["status"]["podIP"]
        .as_str()
        .with_context(|| format!("no pod of {app}"))?;
    let annotations = &pod["metadata"]["annotations"];
    ensure!(annotations["prometheus.io/scrape"] == "true", "{annotations}");
    let port = annotations["prometheus.io/port"].as_str().context("no port")?;
    let url = format!("http://{ip}:{port}/metrics");
    command::output(Command::new("curl").args(["-sSf", "--max-time", "10", &url]))
}
