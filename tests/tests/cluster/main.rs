//! The local cluster does what the other tests build on. Takes down a cluster that runs, and starts and stops its own.

mod disturb;
mod pods;
mod serve;

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use llamero_tests::cluster::{Cluster, process};
use llamero_tests::{paths, poll};
use pods::Pods;

/// Long enough for a machine that has other things to do.
const SOON: Duration = Duration::from_secs(180);

#[test]
fn a_cluster_serves_can_be_disturbed_and_leaves_nothing() -> Result<()> {
    Cluster::down()?;
    crash_half_way_up()?;
    ensure!(
        !Cluster::leftovers()?.is_empty(),
        "the crash has left something to clear"
    );
    let cluster = Cluster::up(2)?;
    let result = checks(&cluster);
    // Also after a failure, whose message is the more interesting one.
    let down = Cluster::down();
    result?;
    down?;
    let left = Cluster::leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Cluster::down().context("down is safe to repeat")
}

fn checks(cluster: &Cluster) -> Result<()> {
    cluster.import_image(&paths::images().join("toolbox.tar"))?;
    let nodes: Vec<String> = cluster.nodes()?.iter().map(|node| node.name()).collect();
    let pods = Pods::create(cluster)?;
    pods.start("first", &nodes[0])?;
    pods.start("second", &nodes[1])?;

    serve::traffic_crosses_the_cable(cluster, &pods, &nodes[1])?;
    serve::names_and_service_addresses_work(&pods)?;
    serve::pods_reach_the_api_server(&pods)?;
    serve::the_machine_reaches_pods_and_services(&pods)?;
    serve::an_image_is_a_volume(&pods)?;
    serve::ports_are_forwarded(cluster, &pods)?;
    disturb::processes_are_signalled(cluster, &pods)?;
    disturb::extended_resources_come_and_go(cluster, &nodes[0])?;
    disturb::the_api_server_stops_and_starts(cluster, &pods)?;
    disturb::a_client_is_cut_off_after_a_write(cluster, &pods)?;
    disturb::a_cut_node_is_not_ready(cluster, &pods, &nodes[1])?;
    disturb::nodes_come_and_go(cluster, &pods)
}

/// Kills the program that starts a cluster once the first node's process is there.
fn crash_half_way_up() -> Result<()> {
    let mut up = Command::new(env!("CARGO_BIN_EXE_llamero-cluster"))
        .args(["up", "--nodes", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let has_node = || {
        Ok(process::all()?
            .iter()
            .any(|daemon| daemon.part.starts_with("node/"))
            .then_some(()))
    };
    poll::until("a first node", SOON, has_node)?;
    up.kill()?;
    up.wait()?;
    Ok(())
}
