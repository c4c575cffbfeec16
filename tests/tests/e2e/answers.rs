//! What a healthy group answers.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use llamero_identity::Identity;
use llamero_tests::{command, paths, poll};
use serde_json::json;

use crate::client::{ask, chat, gateway};
use crate::fixture::{Deployment, NAMESPACE, SOON, node_of};
use crate::parts::{self, Parts, write_pems};

#[test]
fn two_nodes_answer_as_one_process_and_the_traffic_is_seen_on_both_links() -> Result<()> {
    let prompt = chat("one", "Why do llamas hum?", 48);
    let one = Deployment::create("one", json!({"parallelism": {"tensor": 1}}))?;
    one.wait_ready(1)?;
    let expected = ask(&one.cluster, &prompt)?;
    ensure!(!expected.trim().is_empty(), "the model wrote nothing");
    drop(one);

    let two = Deployment::create("two", json!({}))?;
    two.wait_ready(1)?;
    let pods = two.pods()?;
    let nodes: Vec<&str> = pods.iter().map(node_of).collect();
    ensure!(nodes.len() == 2 && nodes[0] != nodes[1], "pods are on {nodes:?}");
    let before: Vec<_> = nodes
        .iter()
        .map(|node| two.cluster.link_bytes(node))
        .collect::<Result<_>>()?;
    let got = ask(&two.cluster, &chat("two", "Why do llamas hum?", 48))?;
    ensure!(got == expected, "two nodes: {got:?}\none process: {expected:?}");
    for (node, before) in nodes.iter().zip(before) {
        // 48 tokens, 30 layers, two reductions of at least one 576-wide f32 row each.
        let least = 48 * 30 * 2 * 576 * 4;
        let sent = two.cluster.link_bytes(node)?.sent - before.sent;
        ensure!(
            sent > least,
            "{node} sent {sent} bytes, fewer than the partial sums of {least}"
        );
    }
    drop(two);

    let staged = Deployment::create("staged", json!({"parallelism": {"tensor": 1, "pipeline": 2}}))?;
    staged.wait_ready(1)?;
    let pods = staged.pods()?;
    ensure!(
        pods.len() == 2 && node_of(&pods[0]) != node_of(&pods[1]),
        "not on two nodes"
    );
    let got = ask(&staged.cluster, &chat("staged", "Why do llamas hum?", 48))?;
    ensure!(got == expected, "two stages: {got:?}\none process: {expected:?}");
    Ok(())
}

#[test]
fn grpcurl_lists_and_calls_a_leader_and_the_gateway() -> Result<()> {
    let deployment = Deployment::create("grpc", json!({}))?;
    deployment.wait_ready(1)?;
    let groups = deployment.groups()?;
    let leader = groups[0]["status"]["leaderAddress"]
        .as_str()
        .context("no leader address")?;
    // It shows a gateway's certificate. Who answers is not checked: names of servers mean nothing here, and grpcurl knows no other check.
    let folder = tempfile::tempdir()?;
    let parts = Parts::of(&deployment.kubectl())?;
    let grpcurl = |who: &Identity, words: &[&str]| {
        let [certificate, key] = write_pems(&parts.as_who(who)?, folder.path())?;
        command::output(
            Command::new(paths::binaries().join("grpcurl"))
                .args(["-insecure", "-cert", &certificate, "-key", &key])
                .args(words),
        )
    };
    let as_gateway = parts::gateway();
    let services = grpcurl(&as_gateway, &[leader, "list"])?;
    for service in [
        "vllm.Inference",
        "vllm.Control",
        "grpc.health.v1.Health",
        "llamero.v1.Completion",
    ] {
        ensure!(services.contains(service), "{service} is not among {services}");
    }
    poll::until("the leader to be healthy", SOON, || {
        let health = grpcurl(&as_gateway, &[leader, "grpc.health.v1.Health/Check"])?;
        ensure!(
            health.contains("SERVING") && !health.contains("NOT_SERVING"),
            "{health}"
        );
        Ok(Some(()))
    })?;
    let request = r#"{"text": "Llamas are", "temperature": 0, "stopping": {"max_new_tokens": 8}, "response": {"output_text": true}}"#;
    let answer = grpcurl(&as_gateway, &["-d", request, leader, "vllm.Inference/Generate"])?;
    ensure!(answer.contains("LENGTH") || answer.contains("STOP"), "{answer}");
    let info = grpcurl(&as_gateway, &[leader, "vllm.Control/GetServerInfo"])?;
    ensure!(info.contains("\"tensorParallelSize\": 2"), "{info}");
    let pods = deployment.pods()?;
    let control = format!(
        "{}:18052",
        pods[0]["status"]["podIP"].as_str().context("no pod IP")?
    );
    let services = grpcurl(&parts::operator(), &[&control, "list"])?;
    ensure!(
        services.contains("llamero.v1.RankControl"),
        "{services} in {NAMESPACE}"
    );

    // Through the gateway a client needs its address only; requests name the model, and metadata where they cannot.
    let gateway = gateway(&deployment.cluster)?;
    let plainly = |words: &[&str]| {
        let mut grpcurl = Command::new(paths::binaries().join("grpcurl"));
        command::output(grpcurl.arg("-plaintext").args(words))
    };
    let services = plainly(&[&gateway, "list"])?;
    ensure!(
        services.contains("vllm.Inference") && services.contains("vllm.Control"),
        "{services}"
    );
    let request =
        r#"{"model": "grpc", "text": "Llamas are", "temperature": 0, "stopping": {"max_new_tokens": 8}}"#;
    let whole = plainly(&["-d", request, &gateway, "vllm.Inference/Generate"])?;
    let streamed = plainly(&["-d", request, &gateway, "vllm.Inference/GenerateStream"])?;
    for answer in [&whole, &streamed] {
        ensure!(answer.contains("LENGTH") || answer.contains("STOP"), "{answer}");
    }
    ensure!(
        streamed.matches("\"outputs\"").count() > 1,
        "not in pieces: {streamed}"
    );
    let named = ["-H", "model: grpc", &gateway];
    let info = plainly(&[&named[..], &["vllm.Control/GetServerInfo"]].concat())?;
    ensure!(info.contains("\"tensorParallelSize\": 2"), "{info}");
    let info = plainly(&[&named[..], &["vllm.Control/GetModelInfo"]].concat())?;
    ensure!(info.contains("\"servedModelName\": \"grpc\""), "{info}");
    Ok(())
}
