//! `llamero-cluster`: builds, starts, disturbs and stops the local cluster.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use llamero_tests::cluster::{Cluster, Layout, PodProcess, Signal, delay, go_build, network, process};

/// A real Kubernetes on this machine, for development and tests. Needs root.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build the programs from their pinned Go modules (the first time takes about ten minutes)
    Build {
        /// Beside them what only benchmarks need: kwok
        parts: Vec<String>,
    },
    /// Start a cluster, or add nodes to the running one
    Up {
        /// How many nodes there should be at least
        #[arg(long, default_value_t = 3)]
        nodes: u8,
    },
    /// Stop the cluster, or what a crash has left, and take everything back
    Down,
    /// Show what runs
    Status,
    /// Print the path of the administrator's kubeconfig
    Kubeconfig,
    /// Make the images of archives known to all nodes
    ImportImage {
        /// Archives as `docker save` writes them
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Add a node
    NodeAdd,
    /// End a node as a power cut would, and delete it from the cluster
    NodeRemove { node: String },
    /// Pull a node's cable
    LinkCut { node: String },
    /// Plug a node's cable in again
    LinkRestore { node: String },
    /// Print the bytes that a node has received and sent over its cable
    LinkBytes { node: String },
    /// Enforce the NetworkPolicies as they are now
    PoliciesEnforce,
    /// Enforce none any more
    PoliciesLift,
    /// List the processes of a pod
    Processes(Target),
    /// Suspend processes of a pod (SIGSTOP)
    Pause(Target),
    /// Let suspended processes go on (SIGCONT)
    Resume(Target),
    /// Kill processes of a pod (SIGKILL)
    Kill(Target),
    /// Hold what leaves a node for so many milliseconds (started by the cluster itself, inside a node)
    #[command(hide = true)]
    Relay { milliseconds: u64 },
    /// Stop the API server
    ApiserverStop,
    /// Start the API server again
    ApiserverStart,
    /// Give a node an extended resource
    SetExtended {
        node: String,
        /// For example nvidia.com/gpu=8; 0 takes the resource away
        #[arg(value_parser = parse_resource)]
        resource: (String, u32),
    },
}

/// Processes of a pod.
#[derive(Args)]
struct Target {
    /// NAMESPACE/POD
    pod: String,
    /// Only this container
    #[arg(long)]
    container: Option<String>,
    /// Only processes whose command line holds this text
    #[arg(long)]
    process: Option<String>,
}

fn main() -> Result<()> {
    let action = Arguments::parse().command;
    if !matches!(action, Action::Build { .. } | Action::Kubeconfig) {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the cluster makes namespaces and links: run this as root"
        );
    }
    run(action)
}

fn run(action: Action) -> Result<()> {
    match action {
        Action::Build { parts } => go_build::build(&parts),
        Action::Up { nodes } => {
            let cluster = Cluster::up(nodes)?;
            show(format_args!(
                "export KUBECONFIG={}",
                cluster.kubeconfig().display()
            ));
            Ok(())
        }
        Action::Down => Cluster::down(),
        Action::Status => status(),
        Action::Kubeconfig => {
            show(Layout::default().kubeconfig().display());
            Ok(())
        }
        Action::ImportImage { archives } => {
            let cluster = Cluster::connect()?;
            archives
                .iter()
                .try_for_each(|archive| cluster.import_image(archive))
        }
        Action::PoliciesEnforce => Cluster::connect()?.enforce_policies(),
        Action::PoliciesLift => Cluster::connect()?.lift_policies(),
        Action::NodeAdd => {
            show(Cluster::connect()?.add_node()?.name());
            Ok(())
        }
        Action::NodeRemove { node } => Cluster::connect()?.remove_node(&node),
        Action::LinkCut { node } => Cluster::connect()?.cut_link(&node),
        Action::LinkRestore { node } => Cluster::connect()?.restore_link(&node),
        Action::LinkBytes { node } => {
            let bytes = Cluster::connect()?.link_bytes(&node)?;
            show(format_args!("received {} sent {}", bytes.received, bytes.sent));
            Ok(())
        }
        Action::Processes(target) => {
            find(&target)?.iter().for_each(print_process);
            Ok(())
        }
        Action::Pause(target) => signal(&target, Signal::STOP),
        Action::Resume(target) => signal(&target, Signal::CONT),
        Action::Kill(target) => signal(&target, Signal::KILL),
        Action::Relay { milliseconds } => delay::relay(Duration::from_millis(milliseconds)),
        Action::ApiserverStop => Cluster::connect()?.stop_api_server(),
        Action::ApiserverStart => Cluster::connect()?.start_api_server(),
        Action::SetExtended {
            node,
            resource: (name, count),
        } => Cluster::connect()?.set_extended(&node, &name, count),
    }
}

fn signal(target: &Target, signal: Signal) -> Result<()> {
    for process in find(target)? {
        process.signal(signal)?;
        print_process(&process);
    }
    Ok(())
}

fn find(target: &Target) -> Result<Vec<PodProcess>> {
    let (namespace, pod) = target
        .pod
        .split_once('/')
        .context("name the pod as NAMESPACE/POD")?;
    let mut found = Cluster::connect()?.pod_processes(namespace, pod)?;
    found.retain(|process| {
        target
            .container
            .as_ref()
            .is_none_or(|name| process.container == *name)
            && target
                .process
                .as_ref()
                .is_none_or(|text| process.command.contains(text))
    });
    if found.is_empty() {
        bail!("no such process: does the pod {} run?", target.pod);
    }
    Ok(found)
}

fn print_process(process: &PodProcess) {
    show(format_args!(
        "{} {} {} {}",
        process.pid, process.node, process.container, process.command
    ));
}

fn status() -> Result<()> {
    let daemons = process::all()?;
    if daemons.is_empty() {
        show("no cluster is running");
        let left = Cluster::leftovers()?;
        ensure!(
            left.is_empty(),
            "a crash has left {}: `make cluster-down` clears it",
            left.join(", ")
        );
        return Ok(());
    }
    let mut parts: Vec<&str> = daemons.iter().map(|daemon| daemon.part.as_str()).collect();
    parts.dedup();
    show(format_args!("running: {}", parts.join(" ")));
    let cluster = Cluster::connect()?;
    for node in cluster.nodes()? {
        let link = if network::is_connected(node.index()) {
            ""
        } else {
            " (cable pulled)"
        };
        show(format_args!("{} {}{link}", node.name(), node.index().address()));
    }
    show(format_args!(
        "export KUBECONFIG={}",
        cluster.kubeconfig().display()
    ));
    let words = ["get", "nodes,pods", "-A", "-o", "wide", "--request-timeout=5s"];
    show(cluster.kubectl().run(&words)?.trim_end());
    Ok(())
}

/// Prints a line. A reader that has gone away, such as `head`, is no error.
fn show(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn parse_resource(text: &str) -> Result<(String, u32)> {
    let (name, count) = text
        .split_once('=')
        .context("write NAME=COUNT, for example nvidia.com/gpu=8")?;
    Ok((
        name.to_owned(),
        count.parse().context("the count is a whole number")?,
    ))
}
