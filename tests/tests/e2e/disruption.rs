//! A node is drained while a stream runs.

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::Cluster;
use llamero_tests::poll;
use serde_json::{Value, json};

use crate::client::{Stream, ask, chat};
use crate::fixture::{Deployment, SOON, node_of};

const QUESTION: &str = "Tell me a long story about a llama who crosses the Andes.";
const TOKENS: u32 = 400;

/// Puts a drained node back into service.
struct Drained {
    cluster: Cluster,
    node: String,
}

impl Drop for Drained {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.kubectl().run(&["uncordon", &self.node]) {
            eprintln!("left behind: {error:#}");
        }
    }
}

/// A stream, and the group's generation from before it.
struct Witness {
    stream: Stream,
    generation: i64,
}

impl Witness {
    fn start(deployment: &Deployment) -> Result<Self> {
        let generation = generation(deployment)?;
        let stream = Stream::start(&deployment.cluster, chat("drained", QUESTION, TOKENS))?;
        Ok(Self { stream, generation })
    }

    /// Reads to the end, which must be the expected one. Whether the group got another generation meanwhile.
    fn finish(self, deployment: &Deployment, expected: &str) -> Result<bool> {
        let text = self.stream.finish()?;
        ensure!(
            text == expected,
            "the stream over the move differs: {text:?}\nundisturbed: {expected:?}"
        );
        Ok(generation(deployment)? > self.generation)
    }
}

fn generation(deployment: &Deployment) -> Result<i64> {
    let groups = deployment.groups()?;
    let group = groups.first().context("the group is gone")?;
    group["spec"]["generation"]
        .as_i64()
        .context("the group has no generation")
}

#[test]
fn a_drained_node_s_member_moves_while_the_stream_goes_on() -> Result<()> {
    let deployment = Deployment::create("drained", json!({}))?;
    deployment.wait_ready(1)?;
    let expected = ask(&deployment.cluster, &chat("drained", QUESTION, TOKENS))?;
    let is_leader = |pod: &&Value| pod["metadata"]["labels"]["llamero.dev/role"] == "leader";
    let pods = deployment.pods()?;
    let follower = pods.iter().find(|pod| !is_leader(pod));
    let node = follower.map(node_of).unwrap_or_default().to_owned();
    ensure!(!node.is_empty(), "no follower is placed: {pods:?}");
    let drained = Drained {
        cluster: Cluster::connect()?,
        node,
    };

    let crossed = std::thread::scope(|scope| -> Result<bool> {
        // An eviction is refused while the group serves, and asked for again; the pod goes when its successor has taken over.
        let draining = scope.spawn(|| {
            drained.cluster.kubectl().run(&[
                "drain",
                &drained.node,
                "--pod-selector=llamero.dev/deployment=drained",
                "--delete-emptydir-data",
                "--timeout=300s",
            ])
        });
        // How long a successor takes is the machine's affair, so streams overlap until it has taken over: one of them runs at that time.
        let mut running = Witness::start(&deployment)?;
        let mut crossed = false;
        while !draining.is_finished() {
            running.stream.read_to(expected.len() / 2)?;
            let next = Witness::start(&deployment)?;
            crossed |= running.finish(&deployment, &expected)?;
            running = next;
        }
        crossed |= running.finish(&deployment, &expected)?;
        draining
            .join()
            .map_err(|_| anyhow::anyhow!("the drain panicked"))??;
        Ok(crossed)
    })?;
    ensure!(crossed, "no stream ran while the member moved");

    poll::until("both members off the drained node", SOON, || {
        let pods = deployment.pods()?;
        let gone = pods.len() == 2 && pods.iter().all(|pod| node_of(pod) != drained.node);
        Ok(gone.then_some(()))
    })?;
    deployment.wait_ready(1)?;
    // A successor that did not come up on a loaded machine is told too, but not charged.
    let failures = deployment.groups()?[0]["spec"]["failures"].clone();
    let mut charged = failures.as_array().into_iter().flatten();
    ensure!(
        !charged.any(|failure| failure["charged"] == true),
        "a move is charged as a failure: {failures}"
    );
    Ok(())
}
