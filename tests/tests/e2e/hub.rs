//! Weights straight from a Hub: a local one that imitates the real one, outside of the cluster.

use anyhow::{Context, Result, ensure};
use llamero_fake_hub::{COMMIT, FakeHub, Faults, REPOSITORY};
use llamero_tests::cluster::{Cluster, Signal, addresses};
use llamero_tests::{paths, poll};
use serde_json::{Value, json};

use crate::client::{ask, chat, post};
use crate::faults::rank_process;
use crate::fixture::{Deployment, NAMESPACE, SOON, name_of, node_of};
use crate::secrecy::keeps_to_itself;

const QUESTION: &str = "What do llamas eat?";
const TOKEN: &str = "hf_only-here";
const ENV: &str = "a-tenant-s-own-value";
const SECRET: &str = "hugging-face";

fn hub(faults: Faults) -> FakeHub {
    let model = paths::local().join("models/SmolLM2-135M-Instruct-FP8");
    FakeHub::of_folder(&model, &addresses::HOST.to_string(), faults)
}

fn secret(cluster: &Cluster) -> Result<()> {
    cluster.kubectl().apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "stringData": {"token": TOKEN}
    }))
}

/// The specification of a newcomer on a cluster of one node.
fn on_one_node(server: &FakeHub, node: &str) -> Value {
    json!({
        "model": {"source": {"persistentVolumeClaim": null, "huggingFace": {
            "repo": REPOSITORY, "endpoint": server.endpoint, "tokenSecretRef": {"name": SECRET}}}},
        "worker": {
            "env": [{"name": "OF_THE_TENANT", "value": ENV}],
            "nodeSelector": {"kubernetes.io/hostname": node},
            "resources": {"requests": {"cpu": "50m", "memory": "640Mi"}, "limits": {"memory": "1Gi"}}
        }
    })
}

/// The cluster, with the token's Secret in it, and a node.
fn place() -> Result<(Cluster, String)> {
    let cluster = Cluster::connect()?;
    secret(&cluster)?;
    let nodes = cluster.nodes()?;
    let node = nodes.first().context("the cluster has no node")?.name();
    Ok((cluster, node))
}

#[test]
fn two_ranks_on_one_node_read_their_halves_and_a_moved_branch_changes_nothing() -> Result<()> {
    let claim = Deployment::create("by-claim-for-hub", json!({}))?;
    claim.wait_ready(1)?;
    let expected = ask(&claim.cluster, &chat("by-claim-for-hub", QUESTION, 24))?;
    drop(claim);

    let server = hub(Faults {
        token: Some(TOKEN.to_owned()),
        ..Faults::default()
    });
    let (cluster, node) = place()?;
    let deployment = Deployment::create("by-hub", on_one_node(&server, &node))?;
    deployment.wait_ready(1)?;
    let answer = ask(&cluster, &chat("by-hub", QUESTION, 24))?;
    ensure!(
        answer == expected,
        "from the Hub: {answer:?}\nfrom the claim: {expected:?}"
    );
    let pods = deployment.pods()?;
    ensure!(
        pods.len() == 2 && pods.iter().all(|pod| node_of(pod) == node),
        "both ranks run on {node}: {pods:?}"
    );
    let whole: u64 = 192_047_232;
    ensure!(
        server.sent() < whole * 14 / 10,
        "{} bytes left the Hub for a checkpoint of {whole}",
        server.sent()
    );

    // A second group is made of the same commit, though the branch is at another one now.
    server.faults().moved = true;
    deployment.kubectl().run(&[
        "-n",
        NAMESPACE,
        "scale",
        "llamadeployment",
        "by-hub",
        "--replicas=2",
    ])?;
    deployment.wait_ready(2)?;
    for group in deployment.groups()? {
        let revision = &group["spec"]["template"]["source"]["huggingFace"]["revision"];
        ensure!(revision == COMMIT, "a group reads {revision}");
    }
    fails(&deployment)?;
    keeps_to_itself(&cluster, &[QUESTION, &expected, TOKEN, ENV])
}

/// A rank is killed, and a request is refused: failures are told in more places than successes.
fn fails(deployment: &Deployment) -> Result<()> {
    let cluster = &deployment.cluster;
    let mut refused = chat(&deployment.name, QUESTION, 24);
    refused["temperature"] = json!("hot");
    let (status, said) = post(cluster, "/v1/chat/completions", refused.to_string().as_bytes())?;
    ensure!(status == 400, "a temperature of \"hot\": {status} {said}");
    let pods = deployment.pods()?;
    let pod = name_of(pods.first().context("no pod")?);
    let victim = rank_process(deployment, pod)?;
    victim.signal(Signal::KILL)?;
    poll::until("another process of the rank", SOON, || {
        Ok((rank_process(deployment, pod)? != victim).then_some(()))
    })?;
    deployment.wait_ready(2)?;
    ask(cluster, &chat(&deployment.name, QUESTION, 24)).map(drop)
}

#[test]
fn what_the_hub_refuses_is_a_sentence_in_status() -> Result<()> {
    let server = hub(Faults {
        gated: true,
        ..Faults::default()
    });
    let (_, node) = place()?;
    let gated = Deployment::create("gated", on_one_node(&server, &node))?;
    let message = gated.wait_condition("Accepted", "False")?;
    ensure!(
        message.contains("accept its terms at") && message.contains("tokenSecretRef"),
        "{message}"
    );
    drop(gated);

    *server.faults() = Faults::default();
    let mut change = on_one_node(&server, &node);
    change["model"]["source"]["huggingFace"]["tokenSecretRef"] = json!({"name": "no-such-secret"});
    let missing = Deployment::create("no-token", change)?;
    poll::until("the missing Secret in status", SOON, || {
        let status = missing.get()?["status"].to_string();
        Ok(status.contains("no-such-secret").then_some(()))
    })
}
