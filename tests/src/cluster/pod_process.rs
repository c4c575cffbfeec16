//! Finding and signalling the processes of a pod from the machine, without the API server.

use std::path::Path;

use anyhow::{Context, Result, bail};
pub use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use super::cgroup;
use super::node::Node;

/// Where containerd keeps the specification of each running container, inside a node.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";

/// One process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProcess {
    /// Process id as the machine sees it.
    pub pid: i32,
    /// Pod that it belongs to.
    pub pod: String,
    /// Node on which it runs.
    pub node: String,
    /// Container's name in the pod.
    pub container: String,
    /// Command line, words joined by blanks.
    pub command: String,
    /// Start in clock ticks since boot: with the pid it names the process for ever.
    started: u64,
}

impl PodProcess {
    /// Sends a signal to this very process.
    ///
    /// # Errors
    /// The process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let gone = || format!("process {} of container {} has ended", self.pid, self.container);
        let handle = Pid::from_raw(self.pid)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .with_context(gone)?;
        // Looked at after the handle was taken, so a recycled pid is noticed.
        if !self.lives() {
            bail!(gone());
        }
        pidfd_send_signal(&handle, signal).with_context(gone)
    }

    /// A process of this machine that is in no pod; `None` for one that has ended.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            pod: String::new(),
            node: String::new(),
            container: String::new(),
            command: String::new(),
            started: start_time(pid)?,
        })
    }

    /// Whether the process is still there and not only waiting to be reaped.
    #[must_use]
    pub fn lives(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
    linux: BundleLinux,
}

#[derive(Deserialize)]
struct BundleLinux {
    #[serde(rename = "cgroupsPath")]
    group: String,
}

impl Bundle {
    fn annotation(&self, name: &str) -> &str {
        self.annotations
            .get(&format!("io.kubernetes.cri.{name}"))
            .map_or("", String::as_str)
    }
}

/// Processes of the containers of the pod, or of all pods of the namespace, on the given nodes; a sandbox's is not among them. In the order of
/// their pids.
pub(super) fn find(nodes: &[Node], namespace: &str, pod: Option<&str>) -> Result<Vec<PodProcess>> {
    let mut found = Vec::new();
    for node in nodes {
        let Ok(bundles) = std::fs::read_dir(node.file(BUNDLES)) else {
            continue;
        };
        for entry in bundles.flatten() {
            // A container may go while we look.
            let Some(bundle) = read(&entry.path()) else {
                continue;
            };
            let is_wanted = bundle.annotation("container-type") == "container"
                && bundle.annotation("sandbox-namespace") == namespace
                && pod.is_none_or(|pod| bundle.annotation("sandbox-name") == pod);
            if is_wanted {
                let pids = cgroup::processes(&bundle.linux.group);
                found.extend(pids.into_iter().filter_map(|pid| describe(pid, *node, &bundle)));
            }
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

fn read(folder: &Path) -> Option<Bundle> {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).ok()?).ok()
}

fn describe(pid: i32, node: Node, bundle: &Bundle) -> Option<PodProcess> {
    let started = start_time(pid)?;
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&words)
        .trim_end_matches('\0')
        .replace('\0', " ");
    Some(PodProcess {
        pid,
        pod: bundle.annotation("sandbox-name").to_owned(),
        node: node.name(),
        container: bundle.annotation("container-name").to_owned(),
        command,
        started,
    })
}

/// Field 22 of `/proc/<pid>/stat`, see proc(5); `None` for a process that is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold blanks; fields are counted from behind it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}
