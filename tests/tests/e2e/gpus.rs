//! GPUs: ranks on an emulated driver, on nodes that say that they have GPUs, as NVIDIA's device plugin has them say it.
//!
//! Both images come from `images/build.sh`: `emulated`, and the weights of SmolLM2 cut to two layers, which keeps an interpreted step
//! short. `LLAMERO_LONG=1 tests/e2e.sh`, or `tests/e2e.sh gpus`, makes them.

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{PodProcess, Signal};
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::client::{Stream, ask, chat_on};
use crate::fixture::{Deployment, NAMESPACE, SOON, name_of, node_of};
use crate::placement::{GPU, Gpus};

/// The cut model has these tokens.
const QUESTION: &str = "What is the capital of the";
const TOKENS: u32 = 12;

/// The cut model with `change` merged over its specification. Its patience is that of steps that are interpreted on a loaded machine.
fn create(name: &str, change: Value) -> Result<Deployment> {
    let mut spec = json!({
        "model": {
            "source": {
                "persistentVolumeClaim": null,
                "image": {"reference": "docker.io/library/llamero-weights-cut:dev", "pullPolicy": "IfNotPresent"}
            },
            "maxContextLength": 256
        },
        "parallelism": {"tensor": 1},
        "recovery": {"stallTimeout": "120s"},
        "engine": {"maxBatchedTokens": 64, "maxSequences": 2}
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    Deployment::create(name, spec)
}

/// Two ranks on the two GPUs of one node. The operator counts on what a real driver takes, of which the emulated one takes nothing: its
/// devices have 1 GiB.
fn on_gpus(image: &str) -> Value {
    json!({
        "parallelism": {"tensor": 2},
        "accelerator": {"resource": GPU, "perNode": 2, "memory": "4Gi"},
        "worker": {"image": image}
    })
}

#[test]
#[ignore = "needs an image that takes minutes to build: see above"]
fn ranks_on_gpus_answer_as_the_cpu_does_and_a_killed_one_costs_no_token() -> Result<()> {
    let reference = create("plain", json!({}))?;
    reference.wait_ready(1)?;
    let expected = ask(&reference.cluster, &chat_on("plain", QUESTION, TOKENS))?;
    ensure!(!expected.is_empty(), "there is nothing to compare");
    drop(reference);

    // The last node, which nothing else prefers.
    let gpus = Gpus::new(&[0, 0, 2])?;
    let with_gpus = &gpus.nodes[2];
    let deployment = create("gpus", on_gpus("llamero-worker:0.1.0-cuda-emulated"))?;
    deployment.wait_ready(1)?;
    let pod = only_pod(&deployment)?;
    ensure!(node_of(&pod) == with_gpus, "the pod is on {}", node_of(&pod));
    let group = deployment.groups()?.pop().context("no group")?;
    for rank in group["status"]["ranks"].as_array().context("no ranks")? {
        let device = &rank["device"];
        let measured = ["name", "id", "driver", "memory", "readBandwidth", "exchange"];
        ensure!(
            measured.iter().all(|field| device[*field].is_string()),
            "rank {} has the device {device}",
            rank["rank"]
        );
    }
    ensure!(
        ask(&deployment.cluster, &chat_on("gpus", QUESTION, TOKENS))? == expected,
        "GPUs answer differently from the CPU"
    );

    let [survivor, victim] = [0, 1].map(|rank| rank_process(&deployment, name_of(&pod), rank));
    let (survivor, victim) = (survivor?, victim?);
    let mut stream = Stream::start(&deployment.cluster, chat_on("gpus", QUESTION, TOKENS))?;
    ensure!(stream.read_to(5)?, "the stream ended early");
    victim.signal(Signal::KILL)?;
    stream.ensure_unfinished()?;
    ensure!(stream.finish()? == expected, "the interrupted stream differs");
    ensure!(survivor.lives(), "the surviving rank was restarted");
    poll::until("another process of the rank", SOON, || {
        Ok((rank_process(&deployment, name_of(&pod), 1)? != victim).then_some(()))
    })?;
    let now = only_pod(&deployment)?;
    ensure!(
        now["metadata"]["uid"] == pod["metadata"]["uid"],
        "the pod was replaced"
    );

    // A second group finds no GPUs, and goes to no node that has none.
    deployment.kubectl().run(&[
        "-n",
        NAMESPACE,
        "scale",
        "llamadeployment",
        "gpus",
        "--replicas=2",
    ])?;
    poll::until("the missing GPUs in status", SOON, || {
        let message = deployment.wait_condition("Placed", "False")?;
        ensure!(message.contains(GPU), "the message is {message}");
        Ok(Some(()))
    })?;
    let nodes: Vec<Value> = deployment.pods()?;
    let elsewhere = |pod: &&Value| !node_of(pod).is_empty() && node_of(pod) != with_gpus;
    ensure!(
        !nodes.iter().any(|pod| elsewhere(&pod)),
        "a pod is on a node without GPUs"
    );
    Ok(())
}

#[test]
fn a_worker_image_without_cuda_says_so_before_it_takes_a_gpu() -> Result<()> {
    let _gpus = Gpus::new(&[0, 0, 2])?;
    let change = json!({"accelerator": {"resource": GPU, "perNode": 2}});
    let deployment = Deployment::create("no-cuda", change)?;
    let message = deployment.wait_condition("Accepted", "False")?;
    ensure!(
        message.contains("the worker image computes on cpu only") && message.contains("backend cuda"),
        "the message is {message}"
    );
    ensure!(deployment.pods()?.is_empty(), "there are pods of a group");
    Ok(())
}

fn only_pod(deployment: &Deployment) -> Result<Value> {
    let mut pods = deployment.pods()?;
    ensure!(pods.len() == 1, "{} pods", pods.len());
    pods.pop().context("no pod")
}

fn rank_process(deployment: &Deployment, pod: &str, rank: u32) -> Result<PodProcess> {
    let processes = deployment.cluster.pod_processes(NAMESPACE, pod)?;
    let rank_of = |one: &PodProcess| {
        let mut words = one.command.split(' ').skip_while(|word| *word != "--rank");
        words.nth(1)?.parse::<u32>().ok()
    };
    let found = processes.into_iter().find(|one| rank_of(one) == Some(rank));
    found.with_context(|| format!("no process of rank {rank} in {pod}"))
}
