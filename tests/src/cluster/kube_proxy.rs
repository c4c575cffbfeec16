//! A node's kube-proxy: Service addresses work on the node and in its pods.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::addresses::POD_NETWORK;
use super::node::Node;
use super::process;
use crate::paths;

pub(super) fn start(node: &Node, kubeconfig: &Path) -> Result<()> {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig},
        "mode": "nftables",
        // What comes from elsewhere, for example from the machine, is masqueraded, so that answers pass here again.
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": node.name(),
        // The settings of connection tracking belong to the whole machine.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    fs::write(node.disk().join("kube-proxy.json"), configuration.to_string())?;
    let mut command = node.command(&paths::program("kube-proxy"));
    command.arg("--config=/run/node/kube-proxy.json");
    process::start(&format!("kube-proxy/{}", node.name()), &mut command)
}
