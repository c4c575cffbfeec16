//! Up, down, to zero and back.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::client::{ask, chat};
use crate::fixture::{Deployment, NAMESPACE};

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
    deployment.wait_ready(1)?;
    let replicas = deployment.get()?["spec"]["replicas"].clone();
    ensure!(replicas == 1, "spec.replicas is {replicas}");
    Ok(())
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
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6)
            .map(|i| {
                let cluster = &deployment.cluster;
                scope.spawn(move || {
                    ask(
                        cluster,
                        &chat("busy", &format!("Count from {i} to one thousand."), 1200),
                    )
                })
            })
            .collect();
        deployment.wait_ready(2)?;
        for request in asking {
            request
                .join()
                .map_err(|_| anyhow::anyhow!("a request panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    deployment.wait_ready(1)
}
