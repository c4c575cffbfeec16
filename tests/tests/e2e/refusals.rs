//! What is refused, by whom, and in which words.

use anyhow::{Context, Result, bail, ensure};
use llamero_tests::{cluster::Cluster, paths};
use serde_json::{Value, json};

use crate::client::{chat, post};
use crate::fixture::{Deployment, NAMESPACE};

#[test]
fn samples_pass_and_mistakes_are_refused_by_the_api_server() -> Result<()> {
    let kubectl = Cluster::connect()?.kubectl();
    let samples = paths::root().join("manifests/samples");
    let samples = samples.to_str().context("the checkout's path is not UTF-8")?;
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        samples,
    ])?;

    let good = json!({
        "model": {"source": {"persistentVolumeClaim": {"claimName": "weights"}}},
        "parallelism": {"tensor": 2}
    });
    let wrong = [
        (
            json!({"model": {"source": {"persistentVolumeClaim": {"claimName": "a"}, "hostPath": {"path": "/b"}}}}),
            "exactly one of",
        ),
        (json!({"model": {"source": {}}}), "exactly one of"),
        (json!({"replikas": 1}), "unknown field \"spec.replikas\""),
        (json!({"accelerator": {"resource": "gpu"}}), "nvidia.com/gpu"),
        (json!({"parallelism": {"tensor": 0}}), "tensor"),
        (
            json!({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}),
            "must not exceed",
        ),
    ];
    for (change, words) in wrong {
        let mut spec = good.clone();
        for (key, value) in change.as_object().context("a change is an object")? {
            spec[key] = value.clone();
        }
        let object = json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": "wrong", "namespace": NAMESPACE}, "spec": spec});
        match kubectl.apply(&object) {
            Ok(()) => {
                kubectl.run(&["-n", NAMESPACE, "delete", "llamadeployment", "wrong"])?;
                bail!("accepted: {change}");
            }
            Err(error) => ensure!(
                format!("{error:#}").contains(words),
                "{change} was refused with {error:#}, not with {words:?}"
            ),
        }
    }
    Ok(())
}

#[test]
fn more_ranks_than_q_heads_is_said_before_anything_starts() -> Result<()> {
    let deployment = Deployment::create("heads", json!({"parallelism": {"tensor": 10}}))?;
    let message = deployment.wait_condition("Accepted", "False")?;
    ensure!(message.contains("q heads") && message.contains('9'), "{message}");
    ensure!(deployment.groups()?.is_empty(), "groups were made");
    Ok(())
}

#[test]
fn accelerators_that_the_worker_image_cannot_use_are_refused() -> Result<()> {
    let deployment = Deployment::create("gpus", json!({"accelerator": {"resource": "nvidia.com/gpu"}}))?;
    let message = deployment.wait_condition("Accepted", "False")?;
    ensure!(message.contains("computes on cpu only"), "{message}");
    ensure!(deployment.groups()?.is_empty(), "groups were made");
    Ok(())
}

#[test]
fn missing_weights_are_said_in_status() -> Result<()> {
    let source = json!({"persistentVolumeClaim": {"claimName": "weights", "path": "nowhere"}});
    let deployment = Deployment::create("missing", json!({"model": {"source": source}}))?;
    let message = deployment.wait_condition("Accepted", "False")?;
    ensure!(message.contains("config.json"), "{message}");
    Ok(())
}

#[test]
fn the_gateway_refuses_in_openais_form() -> Result<()> {
    let deployment = Deployment::create("polite", json!({}))?;
    deployment.wait_ready(1)?;
    let with = |key: &str, value: Value| {
        let mut request = chat("polite", "Hello", 8);
        request[key] = value;
        request.to_string().into_bytes()
    };
    let long = "llama ".repeat(4000);
    let wrong: Vec<(Vec<u8>, u16)> = vec![
        (b"{\"model\": ".to_vec(), 400),
        (
            b"{\"model\": \"polite\", \"messages\": [{\"role\": \"user\", \"content\": \"\xff\xfe\"}]}"
                .to_vec(),
            400,
        ),
        (with("model", json!("nobody")), 404),
        (with("temperature", json!(-1)), 400),
        (with("top_p", json!(7)), 400),
        (with("max_tokens", json!(-5)), 400),
        (with("messages", json!([])), 400),
        (with("messages", json!([{"role": "user", "content": long}])), 400),
    ];
    for (body, code) in wrong {
        let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        let (got, answer) = post(&deployment.cluster, "/v1/chat/completions", &body)?;
        ensure!(got == code, "HTTP {got} instead of {code} for {shown}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        ensure!(
            message.len() > 10 && answer["error"]["type"].is_string(),
            "{answer} for {shown}"
        );
    }
    Ok(())
}
