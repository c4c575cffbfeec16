//! Up, down, to zero and back.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::poll;
use serde_json::json;

use crate::client::{ask, chat};
use crate::fixture::{Deployment, NAMESPACE, SOON};

#[test]
fn the_scale_subresource_moves_between_one_three_and_none() -> Result<()> {
    let deployment = Deployment::create("scaled", json!({"parallelism": {"tensor": 1}, "replicas": 1}))?;
    deployment.wait_ready(1)?;
    for replicas in [3, 0] {
        let count = format!("--replicas={replicas}");
        deployment
            .kubectl()
            .run(&["-n", NAMESPACE, "scale", "llamadeployment", "scaled", &count])?;
        deployment.wait_ready(replicas)?;
    }
    deployment.wait_no_pods()
}

#[test]
fn an_idle_deployment_goes_to_zero_and_a_request_wakes_it() -> Result<()> {
    let deployment = Deployment::create(
        "sleepy",
        json!({
            "parallelism": {"tensor": 1},
            "autoscaling": {
                "minReplicas": 0, "maxReplicas": 2, "targetRequestsPerGroup": 2,
                "scaleDownStabilization": "2s", "idleTimeoutToZero": "4s"
            }
        }),
    )?;
    // Its first group is not asked for anything and goes: what wakes it below is the request.
    deployment.wait_condition("Accepted", "True")?;
    deployment.wait_ready(0)?;
    // Held by the gateway until a group is there, then answered.
    let text = ask(&deployment.cluster, &chat("sleepy", "Good morning!", 16))?;
    ensure!(!text.trim().is_empty(), "the model wrote nothing");
    deployment.wait_ready(0)
}

#[test]
fn the_number_of_an_autoscaled_deployment_is_written_back_and_its_writer_told() -> Result<()> {
    let deployment = Deployment::create(
        "contested",
        json!({"parallelism": {"tensor": 1}, "autoscaling": {"minReplicas": 1, "maxReplicas": 1}}),
    )?;
    deployment.wait_ready(1)?;
    deployment.kubectl().run(&[
        "-n",
        NAMESPACE,
        "scale",
        "llamadeployment",
        "contested",
        "--replicas=3",
    ])?;
    let message = deployment.wait_condition("Scalable", "False")?;
    ensure!(message.contains("wrote spec.replicas"), "{message}");
    // It is told before it is done: once the number is written back, nobody knows any more who wrote it.
    poll::until("the number to be written back", SOON, || {
        let replicas = deployment.get()?["spec"]["replicas"].clone();
        ensure!(replicas == 1, "spec.replicas is {replicas}");
        Ok(Some(()))
    })?;
    deployment.wait_ready(1)
}

#[test]
fn load_brings_a_second_group_and_its_end_takes_it_away() -> Result<()> {
    let deployment = Deployment::create(
        "busy",
        json!({
            "parallelism": {"tensor": 1},
            "autoscaling": {
                "minReplicas": 1, "maxReplicas": 2, "targetRequestsPerGroup": 2,
                "scaleDownStabilization": "3s"
            }
        }),
    )?;
    deployment.wait_ready(1)?;
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|i| {
                let (cluster, enough) = (&deployment.cluster, &enough);
                scope.spawn(move || keep_asking(cluster, i, enough))
            })
            .collect();
        let grown = deployment.wait_ready(2);
        // Also after a failure: the threads are waited for.
        enough.store(true, Ordering::Relaxed);
        for request in asking {
            request
                .join()
                .map_err(|_| anyhow::anyhow!("a request panicked"))??;
        }
        grown
    })?;
    deployment.wait_ready(1)
}

/// Asks again and again, so that the load lasts however fast the machine answers or starts a group.
fn keep_asking(cluster: &Cluster, number: usize, enough: &AtomicBool) -> Result<()> {
    let request = chat("busy", &format!("Count from {number} to one thousand."), 300);
    while !enough.load(Ordering::Relaxed) {
        ask(cluster, &request)?;
    }
    Ok(())
}
