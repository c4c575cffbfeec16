//! Starting a cluster from nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::addresses::{MOST_NODES, NodeIndex};
use super::certs::Authority;
use super::containerd::{self, PAUSE_IMAGE};
use super::node::Node;
use super::{Layout, control_plane, dns, go_build, kubectl, network, process, sysctl};
use crate::{paths, poll};

/// Starts a cluster with `count` nodes and waits until pods can be created. Nothing of an earlier one may be there.
pub(super) fn run(layout: &Layout, count: u8) -> Result<()> {
    let start = Instant::now();
    let step = |what: &str| eprintln!("{:5.1} s  {what}", start.elapsed().as_secs_f64());
    go_build::require()?;
    let indices = (1..=count).map(NodeIndex::new).collect::<Option<Vec<_>>>();
    let indices = indices.with_context(|| format!("a cluster has 1 to {MOST_NODES} nodes"))?;

    step("certificates, bridge, etcd, API server");
    process::clear_logs()?;
    std::fs::create_dir_all(layout.state())?;
    sysctl::save(&layout.sysctls())?;
    let authority = prepare_clients(layout)?;
    network::create_bridge()?;
    control_plane::start_etcd(&layout.state())?;
    control_plane::start_api_server(layout)?;

    step("first processes and containerd of the nodes");
    let nodes = in_parallel(&indices, |index| start_node(*index))?;
    let ends: Vec<_> = nodes.iter().map(|node| (node.index(), node.init())).collect();
    network::route(&ends)?;

    control_plane::wait_for_api_server(&layout.kubectl())?;
    step("controller manager, scheduler, DNS, kubelets, proxies");
    control_plane::start_controller_manager(
        &layout.state(),
        &layout.certificates(),
        &layout.kubeconfig_of("kube-controller-manager"),
    )?;
    control_plane::start_scheduler(&layout.kubeconfig_of(control_plane::SCHEDULER))?;
    dns::start(&layout.state(), &layout.kubeconfig())?;
    in_parallel(&nodes, |node| node.join(&authority, layout))?;

    let names: Vec<String> = nodes.iter().map(|node| node.name()).collect();
    wait_until_ready(layout, &names)?;
    step("ready");
    Ok(())
}

/// Starts one more node beside `others`.
pub(super) fn add(layout: &Layout, others: &[Node]) -> Result<Node> {
    let index = (1..=MOST_NODES)
        .filter_map(NodeIndex::new)
        .find(|index| others.iter().all(|node| node.index() != *index))
        .with_context(|| format!("the cluster already has {MOST_NODES} nodes"))?;
    let authority = Authority::open(&layout.certificates())?;
    let node = start_node(index)?;
    let ends: Vec<_> = others
        .iter()
        .chain([&node])
        .map(|node| (node.index(), node.init()))
        .collect();
    network::route(&ends)?;
    node.join(&authority, layout)?;
    wait_until_ready(layout, &[node.name()])?;
    Ok(node)
}

/// Waits until the nodes are Ready and the service account that every pod needs exists.
pub(super) fn wait_until_ready(layout: &Layout, names: &[String]) -> Result<()> {
    let kubectl = layout.kubectl();
    let mut words = vec!["wait", "--for=condition=Ready", "--timeout=5s", "node"];
    words.extend(names.iter().map(String::as_str));
    let ready = || Ok(Some(kubectl.run(&words)?));
    poll::until("all nodes Ready", Duration::from_secs(180), ready).with_context(|| {
        format!(
            "the logs of kubelet and containerd are in {}",
            process::log_folder().display()
        )
    })?;
    poll::until("the default service account", Duration::from_secs(120), || {
        Ok(Some(kubectl.run(&["get", "serviceaccount", "default"])?))
    })?;
    Ok(())
}

fn start_node(index: NodeIndex) -> Result<Node> {
    let node = Node::start(index).with_context(|| format!("cannot start {}", index.name()))?;
    containerd::import(&node, &paths::images().join("pause.tar"))
        .with_context(|| format!("pods need the image {PAUSE_IMAGE}"))?;
    Ok(node)
}

fn prepare_clients(layout: &Layout) -> Result<Authority> {
    let certificates = layout.certificates();
    let authority = Authority::create(&certificates)?;
    authority.api_server("apiserver")?;
    authority.client(
        "kubelet-client",
        "kube-apiserver-kubelet-client",
        Some("system:masters"),
    )?;
    authority.client("admin", "llamero-admin", Some("system:masters"))?;
    kubectl::write_kubeconfig(&layout.kubeconfig(), &certificates, "admin")?;
    for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        authority.client(name, &format!("system:{name}"), None)?;
        kubectl::write_kubeconfig(&layout.kubeconfig_of(name), &certificates, name)?;
    }
    Ok(authority)
}

/// Does `work` for every item at the same time and returns the results in the items' order.
pub(super) fn in_parallel<I: Sync, T: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a thread of the cluster has panicked"))?
            })
            .collect()
    })
}
