//! A node: a first process with network, mounts and process ids of its own. When it is killed the kernel ends everything on the node.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::addresses::NodeIndex;
use super::process::{self, Daemon};
use super::{certs::Authority, cgroup, containerd, kube_proxy, kubectl, kubelet, network};
use crate::{command, poll};

const INIT: &str = include_str!("node-init.sh");

/// A running node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    index: NodeIndex,
    init: i32,
}

impl Node {
    /// The nodes whose first process lives.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let mut nodes: Vec<Self> = process::all()?.iter().filter_map(Self::of).collect();
        nodes.sort();
        Ok(nodes)
    }

    fn of(daemon: &Daemon) -> Option<Self> {
        let index = NodeIndex::from_name(daemon.part.strip_prefix("node/")?)?;
        daemon.runs("bash").then_some(Self {
            index,
            init: daemon.pid,
        })
    }

    /// The node's place in the address plan.
    #[must_use]
    pub fn index(self) -> NodeIndex {
        self.index
    }

    /// Name of the Kubernetes node.
    #[must_use]
    pub fn name(self) -> String {
        self.index.name()
    }

    /// Pid of the node's first process, as the machine sees it.
    #[must_use]
    pub fn init(self) -> i32 {
        self.init
    }

    /// A command that runs inside the node: its network, its mounts, its processes.
    #[must_use]
    pub fn command(self, program: &Path) -> Command {
        let init = self.init.to_string();
        let mut command =
            command::command("nsenter", &["--target", &init, "--pid", "--mount", "--net", "--"]);
        command.arg(program);
        command
    }

    /// A path of the node's own file system as the machine can open it.
    #[must_use]
    pub fn file(self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// `/run/node` inside the node.
    pub(super) fn disk(self) -> PathBuf {
        folder(self.index).join("disk")
    }

    /// Starts the node's first process and containerd.
    pub(super) fn start(index: NodeIndex) -> Result<Self> {
        let part = format!("node/{}", index.name());
        let folder = folder(index);
        std::fs::create_dir_all(&folder)?;
        let mut command = command::command(
            "unshare",
            &[
                "--fork",
                "--kill-child",
                "--pid",
                "--mount",
                "--net",
                "--mount-proc",
                "--propagation",
                "private",
            ],
        );
        command.args(["bash", "-c", INIT, "node-init"]).arg(&folder);
        process::start(&part, &mut command)?;
        let is_ready = || {
            let node = process::find(&part, "bash")?.as_ref().and_then(Self::of);
            Ok(node.filter(|node| node.file("/run/node-ready").exists()))
        };
        let node = poll::until("the node's first process", Duration::from_secs(60), is_ready)
            .with_context(|| format!("its log is {}", process::log_file(&part).display()))?;
        network::plug(index, node.init)?;
        containerd::start(&node)?;
        containerd::wait(&node)?;
        Ok(node)
    }

    /// Makes the node a part of the cluster whose API server answers.
    pub(super) fn join(self, authority: &Authority, plan: &super::Layout) -> Result<()> {
        let name = self.name();
        let network = self.index.pod_network();
        // The node exists before its kubelet, so that its pods' network is the planned one.
        plan.kubectl().apply(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"podCIDR": network, "podCIDRs": [network]},
        }))?;
        authority.client(&name, &format!("system:node:{name}"), Some("system:nodes"))?;
        let kubeconfig = self.disk().join("kubeconfig");
        kubectl::write_kubeconfig(&kubeconfig, &plan.certificates(), &name)?;
        let group = cgroup::create(&name)?;
        kubelet::start(&self, &plan.certificates(), &kubeconfig, &group)?;
        kube_proxy::start(&self, &plan.kubeconfig_of("kube-proxy"))
    }
}

/// The node's state on the machine.
pub(super) fn folder(index: NodeIndex) -> PathBuf {
    super::Layout::default().state().join("nodes").join(index.name())
}

/// Whether `part` names a daemon of the node.
pub(super) fn owns(index: NodeIndex, part: &str) -> bool {
    part.split_once('/').is_some_and(|(_, node)| node == index.name())
}
