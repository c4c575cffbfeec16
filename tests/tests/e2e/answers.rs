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
fn the_openai_package_streams_a_chat() -> Result<()> {
    let deployment = Deployment::create("openai", json!({}))?;
    deployment.wait_ready(1)?;
    let python = paths::local().join("venv-openai/bin/python");
    let script = r#"
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="unused")
assert [model.id for model in client.models.list()].count("openai") == 1
ask = dict(model="openai", temperature=0, max_tokens=24, messages=[{"role": "user", "content": "Say hello."}])
whole = client.chat.completions.create(**ask)
chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert text == whole.choices[0].message.content != "", (text, whole)
count = lambda usage: (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
assert count(chunks[-1].usage) == count(whole.usage), (chunks[-1].usage, whole.usage)
cached = chunks[-1].usage.prompt_tokens_details.cached_tokens
assert 16 <= cached < whole.usage.prompt_tokens, (cached, "of a prompt that the group has just computed")
assert len(chunks) > 3
plain = client.completions.create(model="openai", prompt="Llamas are", temperature=0, max_tokens=8)
assert plain.choices[0].text and plain.usage.completion_tokens == 8, plain
try:
    client.chat.completions.create(**{**ask, "model": "nobody"})
    raise SystemExit("an unknown model was served")
except openai.NotFoundError as error:
    assert error.code == "model_not_found", error
print("ok")
"#;
    let url = format!("http://{}/v1", gateway(&deployment.cluster)?);
    let printed = command::output(Command::new(python).args(["-c", script, &url]))?;
    ensure!(printed.trim() == "ok", "{printed}");
    Ok(())
}

#[test]
fn grpcurl_lists_and_calls() -> Result<()> {
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
    let gateway = parts::gateway();
    let services = grpcurl(&gateway, &[leader, "list"])?;
    for service in [
        "vllm.Inference",
        "vllm.Control",
        "grpc.health.v1.Health",
        "llamero.v1.Completion",
    ] {
        ensure!(services.contains(service), "{service} is not among {services}");
    }
    poll::until("the leader to be healthy", SOON, || {
        let health = grpcurl(&gateway, &[leader, "grpc.health.v1.Health/Check"])?;
        ensure!(
            health.contains("SERVING") && !health.contains("NOT_SERVING"),
            "{health}"
        );
        Ok(Some(()))
    })?;
    let request = r#"{"text": "Llamas are", "temperature": 0, "stopping": {"max_new_tokens": 8}, "response": {"output_text": true}}"#;
    let answer = grpcurl(&gateway, &["-d", request, leader, "vllm.Inference/Generate"])?;
    ensure!(answer.contains("LENGTH") || answer.contains("STOP"), "{answer}");
    let info = grpcurl(&gateway, &[leader, "vllm.Control/GetServerInfo"])?;
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
    Ok(())
}
