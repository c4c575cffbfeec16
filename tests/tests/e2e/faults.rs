//! What is lost and what goes on.

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{PodProcess, Signal};
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::client::{Stream, ask, chat_on};
use crate::fixture::{Deployment, NAMESPACE, SOON, name_of};

const QUESTION: &str = "Tell me a long story about a llama who crosses the Andes.";
const TOKENS: u32 = 1000;

#[test]
fn a_killed_rank_costs_no_token_and_no_survivor() -> Result<()> {
    let (deployment, expected) = answering("killed")?;
    let (leader, follower) = members(&deployment)?;
    let survivor = rank_process(&deployment, name_of(&leader))?;
    let victim = rank_process(&deployment, name_of(&follower))?;

    let mut stream = Stream::start(&deployment.cluster, chat_on("killed", QUESTION, TOKENS))?;
    ensure!(stream.read_to(100)?, "the stream ended early");
    victim.signal(Signal::KILL)?;
    stream.ensure_unfinished()?;
    ensure!(stream.finish()? == expected, "the interrupted stream differs");

    ensure!(survivor.lives(), "the surviving rank was restarted");
    poll::until("another process of the rank", SOON, || {
        let now = rank_process(&deployment, name_of(&follower))?;
        Ok((now != victim).then_some(()))
    })?;
    let (leader_now, follower_now) = members(&deployment)?;
    ensure!(
        leader_now["metadata"]["uid"] == leader["metadata"]["uid"],
        "the leader's pod was replaced"
    );
    ensure!(
        follower_now["metadata"]["uid"] == follower["metadata"]["uid"],
        "the follower's pod was replaced"
    );
    every_byte_loaded(&deployment)
}

#[test]
fn a_deleted_pod_is_replaced_and_the_stream_goes_on() -> Result<()> {
    let (deployment, expected) = answering("deleted")?;
    let generation = deployment.groups()?[0]["spec"]["generation"].clone();
    let (leader, follower) = members(&deployment)?;
    let survivor = rank_process(&deployment, name_of(&leader))?;

    let mut stream = Stream::start(&deployment.cluster, chat_on("deleted", QUESTION, TOKENS))?;
    ensure!(stream.read_to(100)?, "the stream ended early");
    let pod = name_of(&follower);
    deployment.kubectl().run(&[
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        pod,
        "--grace-period=0",
        "--force",
    ])?;
    stream.ensure_unfinished()?;
    ensure!(stream.finish()? == expected, "the interrupted stream differs");

    ensure!(survivor.lives(), "the surviving rank was restarted");
    let (leader_now, follower_now) = members(&deployment)?;
    ensure!(
        leader_now["metadata"]["uid"] == leader["metadata"]["uid"],
        "the leader's pod was replaced"
    );
    ensure!(
        follower_now["metadata"]["uid"] != follower["metadata"]["uid"],
        "the deleted pod is still there"
    );
    let now = deployment.groups()?[0]["spec"]["generation"].clone();
    ensure!(
        now.as_i64() > generation.as_i64(),
        "generation was {generation} and is {now}"
    );
    deployment.wait_ready(1)?;
    every_byte_loaded(&deployment)
}

/// As a drained node does it: the leader gets its signal and a grace, the other member nothing.
#[test]
fn a_deleted_leader_finishes_its_answer_and_leaves_the_other_its_weights() -> Result<()> {
    let (deployment, expected) = answering("headless")?;
    let (leader, follower) = members(&deployment)?;
    let survivor = rank_process(&deployment, name_of(&follower))?;

    let mut stream = Stream::start(&deployment.cluster, chat_on("headless", QUESTION, TOKENS))?;
    ensure!(stream.read_to(100)?, "the stream ended early");
    let delete = ["-n", NAMESPACE, "delete", "pod", name_of(&leader), "--wait=false"];
    deployment.kubectl().run(&delete)?;
    stream.ensure_unfinished()?;
    ensure!(stream.finish()? == expected, "the interrupted stream differs");

    poll::until("another leader", SOON, || {
        let (now, _) = members(&deployment)?;
        ensure!(
            now["metadata"]["uid"] != leader["metadata"]["uid"],
            "the deleted leader is still there"
        );
        Ok(Some(()))
    })?;
    deployment.wait_ready(1)?;
    ensure!(
        ask(&deployment.cluster, &chat_on("headless", QUESTION, TOKENS))? == expected,
        "the new leader answers differently"
    );
    ensure!(survivor.lives(), "the surviving rank was restarted");
    let (_, follower_now) = members(&deployment)?;
    ensure!(
        follower_now["metadata"]["uid"] == follower["metadata"]["uid"],
        "the follower's pod was replaced"
    );
    every_byte_loaded(&deployment)
}

/// A deployment that serves, and what it answers when nothing disturbs it.
fn answering(name: &str) -> Result<(Deployment, String)> {
    let deployment = Deployment::create(name, json!({}))?;
    deployment.wait_ready(1)?;
    let expected = ask(&deployment.cluster, &chat_on(name, QUESTION, TOKENS))?;
    Ok((deployment, expected))
}

/// The group's pods: the leader's and the other's.
fn members(deployment: &Deployment) -> Result<(Value, Value)> {
    poll::until("two running members", SOON, || {
        let mut pods = deployment.pods()?;
        pods.retain(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
        });
        ensure!(pods.len() == 2, "{} pods run", pods.len());
        let leads = |pod: &Value| pod["metadata"]["labels"]["llamero.dev/role"] == "leader";
        pods.sort_by_key(|pod| !leads(pod));
        let follower = pods.pop().context("no follower")?;
        let leader = pods.pop().context("no leader")?;
        ensure!(
            leads(&leader) && !leads(&follower),
            "there is not exactly one leader"
        );
        Ok(Some((leader, follower)))
    })
}

pub(crate) fn rank_process(deployment: &Deployment, pod: &str) -> Result<PodProcess> {
    let processes = deployment.cluster.pod_processes(NAMESPACE, pod)?;
    let rank = processes
        .into_iter()
        .find(|one| one.command.split(' ').nth(1) == Some("rank"));
    rank.with_context(|| format!("no rank process in {pod}"))
}

fn every_byte_loaded(deployment: &Deployment) -> Result<()> {
    poll::until("all bytes loaded in status", SOON, || {
        let group = deployment.groups()?[0]["status"].clone();
        let ranks = group["ranks"].as_array().context("no ranks in status")?;
        let whole =
            |rank: &Value| rank["loadedBytes"] == rank["totalBytes"] && rank["totalBytes"].as_i64() > Some(0);
        ensure!(ranks.len() == 2 && ranks.iter().all(whole), "{ranks:?}");
        Ok(Some(()))
    })
}
