//! A node's kubelet.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::addresses::{DOMAIN, HOST};
use super::node::Node;
use super::process;
use crate::paths;

/// Starts kubelet; its pods live in the control group `group`.
pub(super) fn start(node: &Node, certificates: &Path, kubeconfig: &Path, group: &str) -> Result<()> {
    let disk = node.disk();
    fs::write(disk.join("resolv.conf"), format!("nameserver {HOST}\n"))?;
    fs::write(
        disk.join("kubelet.json"),
        configuration(certificates, group).to_string(),
    )?;
    let mut command = node.command(&paths::program("kubelet"));
    command.args([
        "--config=/run/node/kubelet.json".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        "--root-dir=/run/node/kubelet".to_owned(),
        "--cert-dir=/run/node/kubelet/pki".to_owned(),
        format!("--hostname-override={}", node.name()),
        format!("--node-ip={}", node.index().address()),
    ]);
    process::start(&format!("kubelet/{}", node.name()), &mut command)
}

fn configuration(certificates: &Path, group: &str) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": certificates.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": group,
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [HOST],
        "clusterDomain": DOMAIN,
        "resolvConf": "/run/node/resolv.conf",
        "volumePluginDir": "/run/node/kubelet/volume-plugins",
        // A cut cable must be noticed soon; see the controller manager's grace period.
        "nodeLeaseDurationSeconds": 16,
        "nodeStatusUpdateFrequency": "5s",
        // The machine's disk is shared with everything else: its filling up is not the node's affair until the very end.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        // Images are imported, not pulled: one that was collected would be gone.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
}
