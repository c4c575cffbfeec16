//! The local cluster does what the other tests build on. Starts and stops a cluster of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{Cluster, Signal};
use llamero_tests::poll;

mod pods;
use pods::Pods;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_comes_up_serves_can_be_disturbed_and_leaves_nothing() -> Result<()> {
    Cluster::down()?;
    let cluster = Cluster::up(2)?;
    let result = checks(&cluster);
    // Also after a failure; its message is the more interesting one.
    let down = Cluster::down();
    result?;
    down?;
    ensure!(Cluster::leftovers()?.is_empty(), "left behind: {:?}", Cluster::leftovers()?);
    Cluster::down().context("down is safe to repeat")
}

fn checks(cluster: &Cluster) -> Result<()> {
    let nodes: Vec<String> = cluster.nodes()?.iter().map(|node| node.name()).collect();
    let pods = Pods::create(cluster)?;
    pods.start("first", &nodes[0])?;
    pods.start("second", &nodes[1])?;

    traffic_crosses_the_cable(cluster, &pods, &nodes)?;
    names_are_resolved(&pods)?;
    service_addresses_work(&pods)?;
    ports_are_forwarded(&pods)?;
    processes_are_found_and_signalled(cluster, &pods)?;
    extended_resources_come_and_go(cluster, &nodes[0])?;
    the_api_server_stops_and_starts(cluster, &pods)?;
    a_cut_node_is_not_ready(cluster, &pods, &nodes[1])?;
    nodes_come_and_go(cluster)
}
