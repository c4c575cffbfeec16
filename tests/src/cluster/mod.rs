//! A real Kubernetes on this machine.
//!
//! Control plane and DNS run as ordinary processes; a node is a process with network, mounts and process ids of its own, in which containerd, kubelet
//! and kube-proxy run. Nodes are joined by a bridge, so that pods on different nodes really cross a network. All nodes see the machine's files.
//!
//! | module | what it holds |
//! |---|---|
//! | [`addresses`] | names and addresses |
//! | [`clock`] | a wrong clock for one process |
//! | [`mod@delay`] | a relay that holds packets |
//! | [`fences`] | NetworkPolicies, enforced on the nodes |
//! | [`impair`] | cables that work badly, a full disk |
//! | [`go_build`] | building the programs from their pinned Go modules |
//! | [`kubectl`] | talking to the API server |
//! | [`network`] | bridge, cables, routes |
//! | [`node`] | a node and what starts on it |
//! | [`pod_process`] | finding and signalling processes of pods |
//! | [`process`] | the cluster's daemons |

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

pub mod addresses;
mod certs;
mod cgroup;
pub mod clock;
mod containerd;
mod control_plane;
pub mod delay;
mod dns;
mod down;
pub mod fences;
pub mod go_build;
pub mod impair;
mod kube_proxy;
pub mod kubectl;
mod kubelet;
mod layout;
mod lock;
pub mod network;
pub mod node;
pub mod pod_process;
pub mod process;
mod sysctl;
mod up;

pub use impair::Impairment;
pub use kubectl::Kubectl;
pub use layout::Layout;
pub use network::LinkBytes;
pub use node::Node;
pub use pod_process::{PodProcess, Signal};

use lock::Lock;

/// The cluster of this checkout, which is running.
#[derive(Clone, Debug)]
pub struct Cluster {
    layout: Layout,
}

impl Cluster {
    /// The cluster that runs already.
    ///
    /// # Errors
    /// No cluster runs.
    pub fn connect() -> Result<Self> {
        let cluster = Self {
            layout: Layout::default(),
        };
        if Node::all()?.is_empty() {
            bail!("no cluster is running: start one with `make cluster-up`");
        }
        Ok(cluster)
    }

    /// A cluster with at least `nodes` nodes: the running one, with nodes added to it, or a new one.
    ///
    /// # Errors
    /// Something does not start; the message names the log to look into. What has started is taken back.
    pub fn up(nodes: u8) -> Result<Self> {
        let _lock = Lock::take()?;
        let cluster = Self {
            layout: Layout::default(),
        };
        if cluster.answers() {
            while Node::all()?.len() < usize::from(nodes) {
                up::add(&cluster.layout, &Node::all()?)?;
            }
            let names: Vec<String> = Node::all()?.iter().map(|node| node.name()).collect();
            up::wait_until_ready(&cluster.layout, &names)?;
            return Ok(cluster);
        }
        // What a crash has left would be in the way.
        down::run(&cluster.layout)?;
        if let Err(error) = up::run(&cluster.layout, nodes) {
            let _ = down::run(&cluster.layout);
            return Err(error);
        }
        Ok(cluster)
    }

    /// Stops the cluster, or what is left of one, and takes back all that it has made.
    ///
    /// # Errors
    /// Something resists; the message says what is left. Calling again goes on.
    pub fn down() -> Result<()> {
        let _lock = Lock::take()?;
        down::run(&Layout::default())
    }

    /// What of a cluster is on the machine. Empty when it is down.
    ///
    /// # Errors
    /// The machine cannot be looked at.
    pub fn leftovers() -> Result<Vec<String>> {
        down::leftovers(&Layout::default())
    }

    fn answers(&self) -> bool {
        Node::all().is_ok_and(|nodes| !nodes.is_empty())
            && self
                .kubectl()
                .run(&["get", "--raw=/readyz", "--request-timeout=3s"])
                .is_ok()
    }

    /// Where the cluster keeps its files.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// `kubectl` as administrator.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        self.layout.kubectl()
    }

    /// The running nodes, in the order of their names' numbers.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        Node::all()
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none; the message names those that are.
    pub fn node(&self, name: &str) -> Result<Node> {
        let nodes = self.nodes()?;
        nodes
            .iter()
            .find(|node| node.name() == name)
            .copied()
            .with_context(|| {
                let names: Vec<String> = nodes.iter().map(|node| node.name()).collect();
                format!("no node `{name}`: there are {}", names.join(", "))
            })
    }

    /// Makes the images of an archive known to all nodes.
    ///
    /// # Errors
    /// The archive is missing or no image archive.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        up::in_parallel(&self.nodes()?, |node| containerd::import(node, archive))?;
        Ok(())
    }

    /// Adds a node and waits until it is Ready. It has the pause image only: import the others again.
    ///
    /// # Errors
    /// The node does not start.
    pub fn add_node(&self) -> Result<Node> {
        let _lock = Lock::take()?;
        up::add(&self.layout, &Node::all()?)
    }

    /// Ends a node as a power cut would, and removes it from the cluster.
    ///
    /// # Errors
    /// There is no such node, or the API server does not answer.
    pub fn remove_node(&self, name: &str) -> Result<()> {
        let _lock = Lock::take()?;
        let node = self.node(name)?;
        let index = node.index();
        let daemons: Vec<_> = process::all()?
            .into_iter()
            .filter(|daemon| node::owns(index, &daemon.part))
            .collect();
        process::end(&daemons, Signal::KILL, Duration::ZERO)?;
        let empty = || Ok(Some(cgroup::remove(name)?));
        crate::poll::until("empty control groups", Duration::from_secs(60), empty)?;
        let others: Vec<_> = Node::all()?
            .iter()
            .map(|node| (node.index(), node.init()))
            .collect();
        network::unroute(index, &others)?;
        // The Service network may have led through this node.
        network::route(&others)?;
        std::fs::remove_dir_all(node::folder(index))?;
        self.kubectl().run(&["delete", "node", name])?;
        Ok(())
    }

    /// Pulls the node's cable.
    ///
    /// # Errors
    /// There is no such node.
    pub fn cut_link(&self, name: &str) -> Result<()> {
        network::set_link(self.node(name)?.index(), false)
    }

    /// Plugs the node's cable in again.
    ///
    /// # Errors
    /// There is no such node.
    pub fn restore_link(&self, name: &str) -> Result<()> {
        network::set_link(self.node(name)?.index(), true)
    }

    /// Makes a node's cable work badly, until [`Self::heal_link`].
    ///
    /// # Errors
    /// There is no such node, or the kernel cannot do it.
    pub fn impair_link(&self, name: &str, impairment: Impairment) -> Result<()> {
        impair::impair(self.node(name)?, impairment)
    }

    /// Takes back what [`Self::impair_link`] did; nothing to do is success.
    ///
    /// # Errors
    /// There is no such node.
    pub fn heal_link(&self, name: &str) -> Result<()> {
        impair::heal(self.node(name)?)
    }

    /// Fills the node's `/run`, of which every node has its own: nothing can start there any more.
    ///
    /// # Errors
    /// There is no such node.
    pub fn fill_run(&self, name: &str) -> Result<()> {
        impair::fill(self.node(name)?)
    }

    /// Makes room in the node's `/run` again.
    ///
    /// # Errors
    /// There is no such node.
    pub fn empty_run(&self, name: &str) -> Result<()> {
        impair::make_room(self.node(name)?)
    }

    /// Enforces the NetworkPolicies as they are now; pods that come later need another call.
    ///
    /// # Errors
    /// They cannot be read or translated, or a node refuses the rules.
    pub fn enforce_policies(&self) -> Result<()> {
        fences::enforce(self, None)
    }

    /// Enforces all but the policies of this name.
    ///
    /// # Errors
    /// As of [`Cluster::enforce_policies`].
    pub fn enforce_policies_without(&self, name: &str) -> Result<()> {
        fences::enforce(self, Some(name))
    }

    /// Enforces no NetworkPolicies any more.
    ///
    /// # Errors
    /// A node refuses.
    pub fn lift_policies(&self) -> Result<()> {
        fences::lift(self)
    }

    /// Traffic over the node's cable since the node was started.
    ///
    /// # Errors
    /// There is no such node.
    pub fn link_bytes(&self, name: &str) -> Result<LinkBytes> {
        network::bytes(self.node(name)?.index())
    }

    /// Processes of the pod's containers, wherever it runs. Works while the API server is stopped.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn pod_processes(&self, namespace: &str, pod: &str) -> Result<Vec<PodProcess>> {
        pod_process::find(&self.nodes()?, namespace, Some(pod))
    }

    /// Processes of all pods of a namespace. Works while the API server is stopped.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn namespace_processes(&self, namespace: &str) -> Result<Vec<PodProcess>> {
        pod_process::find(&self.nodes()?, namespace, None)
    }

    /// Kills etcd and starts it again.
    ///
    /// # Errors
    /// It cannot be ended or started.
    pub fn restart_etcd(&self) -> Result<()> {
        let daemons: Vec<_> = process::find(control_plane::ETCD, control_plane::ETCD)?
            .into_iter()
            .collect();
        process::end(&daemons, Signal::KILL, Duration::ZERO)?;
        control_plane::start_etcd(&self.layout.state())
    }

    /// Stops the API server; everything else goes on.
    ///
    /// # Errors
    /// It cannot be ended.
    pub fn stop_api_server(&self) -> Result<()> {
        control_plane::stop_api_server()
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_api_server(&self) -> Result<()> {
        if process::find(control_plane::API_SERVER, control_plane::API_SERVER)?.is_none() {
            control_plane::start_api_server(&self.layout)?;
        }
        control_plane::wait_for_api_server(&self.kubectl())
    }

    /// Ends the scheduler until the returned value is dropped. The next one reads the whole cluster before it places anything; one that
    /// was only held up would go on with what it had read.
    ///
    /// # Errors
    /// The scheduler does not run, or cannot be ended.
    pub fn stop_scheduler(&self) -> Result<WithoutScheduler> {
        let daemon = process::find(control_plane::SCHEDULER, control_plane::SCHEDULER)?;
        let daemon = daemon.context("the scheduler does not run")?;
        let without = WithoutScheduler(self.layout.kubeconfig_of(control_plane::SCHEDULER));
        process::end(&[daemon], Signal::KILL, Duration::ZERO)?;
        Ok(without)
    }

    /// Gives the node `count` of an extended resource, for example `nvidia.com/gpu`; 0 takes it away.
    ///
    /// # Errors
    /// The API server refuses the name, or does not answer.
    pub fn set_extended(&self, node: &str, resource: &str, count: u32) -> Result<()> {
        let value = (count > 0).then(|| count.to_string());
        let change = json!({resource: value});
        let patch = json!({"status": {"capacity": change, "allocatable": change}}).to_string();
        self.kubectl().run(&[
            "patch",
            "node",
            node,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
        Ok(())
    }
}

/// A cluster that places no pods. A scheduler starts, with this kubeconfig, when this is dropped.
#[derive(Debug)]
#[must_use = "a scheduler starts when this is dropped"]
pub struct WithoutScheduler(PathBuf);

impl Drop for WithoutScheduler {
    fn drop(&mut self) {
        if let Err(error) = control_plane::start_scheduler(&self.0) {
            eprintln!("the cluster is without a scheduler: {error:#}");
        }
    }
}
