//! A node is drained while a stream runs.

use anyhow::{Result, ensure};
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

    let mut stream = Stream::start(&deployment.cluster, chat("drained", QUESTION, TOKENS))?;
    ensure!(stream.read_to(50)?, "the stream ended early");
    // An eviction is refused while the group serves, and asked for again; the pod goes when its successor has taken over.
    deployment.kubectl().run(&[
        "drain",
        &drained.node,
        "--pod-selector=llamero.dev/deployment=drained",
        "--delete-emptydir-data",
        "--timeout=120s",
    ])?;
    ensure!(stream.finish()? == expected, "the stream over the move differs");

    poll::until("both members off the drained node", SOON, || {
        let pods = deployment.pods()?;
        let gone = pods.len() == 2 && pods.iter().all(|pod| node_of(pod) != drained.node);
        Ok(gone.then_some(()))
    })?;
    deployment.wait_ready(1)?;
    let failures = deployment.groups()?[0]["spec"]["failures"].clone();
    ensure!(failures.is_null(), "a move counts as a failure: {failures}");
    Ok(())
}
