//! Taking everything back, from whatever state a start or a crash has left.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::addresses::NodeIndex;
use super::{Layout, cgroup, network, process, sysctl};
use crate::command::{command, output};
use crate::poll;

/// For what is over in a moment on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops all processes and removes all that they have made; nothing to do is success.
pub(super) fn run(layout: &Layout) -> Result<()> {
    // Nodes first, and at once: a node's first process takes all others with it.
    // A daemon may have started another one meanwhile, so they are looked for until there are none.
    poll::until("no process to be left", PATIENCE, || {
        process::end(&process::all()?, Signal::KILL, Duration::ZERO)?;
        Ok(process::all()?.is_empty().then_some(()))
    })?;
    for name in cgroup::left(is_node)? {
        // The kernel counts a process out of its group shortly after its end.
        poll::until("empty control groups", PATIENCE, || {
            Ok(Some(cgroup::remove(&name)?))
        })?;
    }
    network::remove_all()?;
    sysctl::restore(&layout.sysctls())?;
    for mount in mounts(layout)? {
        output(&mut command("umount", &["--lazy", &mount]))?;
    }
    if layout.state().exists() {
        std::fs::remove_dir_all(layout.state()).context("cannot remove the cluster's files")?;
    }
    let left = leftovers(layout)?;
    if !left.is_empty() {
        bail!("the cluster is down but has left behind: {}", left.join(", "));
    }
    Ok(())
}

/// Whatever of the cluster is on the machine: processes, control groups, links, routes, mounts and files. Empty when it is down.
///
/// # Errors
/// The machine cannot be looked at.
pub(super) fn leftovers(layout: &Layout) -> Result<Vec<String>> {
    let mut left: Vec<String> = process::all()?
        .iter()
        .map(|daemon| format!("process {} ({})", daemon.pid, daemon.part))
        .collect();
    left.extend(
        cgroup::left(is_node)?
            .iter()
            .map(|name| format!("control group {name}")),
    );
    left.extend(network::links()?.iter().map(|name| format!("link {name}")));
    left.extend(network::routes()?.iter().map(|route| format!("route {route}")));
    left.extend(mounts(layout)?.iter().map(|place| format!("mount {place}")));
    if layout.state().exists() {
        left.push(format!("folder {}", layout.state().display()));
    }
    Ok(left)
}

fn is_node(name: &str) -> bool {
    NodeIndex::from_name(name).is_some()
}

/// Mounts below the cluster's folder, innermost first. The nodes' mounts are in namespaces of their own, so there should be none.
fn mounts(layout: &Layout) -> Result<Vec<String>> {
    let state = format!("{}/", layout.state().display());
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut places: Vec<String> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|place| place.starts_with(&state))
        .map(str::to_owned)
        .collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.len()));
    Ok(places)
}
