//! A node's containerd and its pod network.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::node::Node;
use super::process;
use crate::command::output;
use crate::{paths, poll};

/// Reference of the image that holds a pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "llamero.dev/pause:1";
/// Debian's folder of the network plugins.
const NETWORK_PLUGINS: &str = "/usr/lib/cni";
const SOCKET: &str = "/run/containerd/containerd.sock";

pub(super) fn start(node: &Node) -> Result<()> {
    let disk = node.disk();
    fs::create_dir_all(disk.join("cni"))?;
    fs::write(disk.join("cni/llamero.conflist"), network(node).to_string())?;
    let file = disk.join("containerd.toml");
    fs::write(&file, configuration())?;
    let mut command = node.command(&paths::program("containerd"));
    command.arg("--config").arg("/run/node/containerd.toml");
    process::start(&format!("containerd/{}", node.name()), &mut command)
}

pub(super) fn wait(node: &Node) -> Result<()> {
    let part = format!("containerd/{}", node.name());
    let serves = || {
        process::find(&part, "containerd")?.context("containerd has ended")?;
        Ok(Some(ctr(node, &["version"])?))
    };
    poll::until("containerd answers", Duration::from_secs(120), serves)
        .with_context(|| format!("its log is {}", process::log_file(&part).display()))?;
    Ok(())
}

/// Makes the images of an archive (`docker save`, or an OCI layout in a tar file) known to the node.
pub(super) fn import(node: &Node, archive: &Path) -> Result<()> {
    if !archive.is_file() {
        bail!(
            "there is no image archive {}: run `make images`",
            archive.display()
        );
    }
    let archive = archive.canonicalize()?;
    output(ctr_command(node, &["image", "import", "--local"]).arg(archive))
        .with_context(|| format!("cannot import an image into {}", node.name()))?;
    Ok(())
}

fn ctr(node: &Node, words: &[&str]) -> Result<String> {
    output(&mut ctr_command(node, words))
}

fn ctr_command(node: &Node, words: &[&str]) -> std::process::Command {
    let mut command = node.command(&paths::program("ctr"));
    command
        .args(["--address", SOCKET, "--namespace", "k8s.io"])
        .args(words);
    command
}

fn configuration() -> String {
    format!(
        r#"version = 3
root = "/run/node/containerd"
state = "/run/containerd"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
# Lowering a process's OOM score takes a capability that a container or a restricted machine may withhold.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{NETWORK_PLUGINS}"]
conf_dir = "/run/node/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
snapshotter = "{}"

[plugins."io.containerd.internal.v1.opt"]
path = "/run/node/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true
"#,
        snapshotter()
    )
}

/// overlayfs cannot keep its layers on overlayfs, which is what the checkout lies on inside a container.
fn snapshotter() -> &'static str {
    const OVERLAYFS: u64 = 0x794c_7630;
    match rustix::fs::statfs(paths::local()) {
        Ok(system) if u64::try_from(system.f_type).is_ok_and(|kind| kind == OVERLAYFS) => "native",
        _ => "overlayfs",
    }
}

/// Pods of one node share a bridge inside the node's namespace.
fn network(node: &Node) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "llamero",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/node/addresses",
                    "ranges": [[{"subnet": node.index().pod_network()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}
