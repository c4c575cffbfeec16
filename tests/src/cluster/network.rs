//! The bridge on the machine and one cable from it into each node.

use anyhow::{Context, Result};

use super::addresses::{BRIDGE, HOST, NODE_PREFIX, NodeIndex, SERVICE_NETWORK};
use crate::command::{command, output};

/// Bytes over a node's cable since it was plugged in, seen from the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkBytes {
    /// Into the node.
    pub received: u64,
    /// Out of the node.
    pub sent: u64,
}

/// Makes the bridge, with the control plane's address.
pub(super) fn create_bridge() -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])
        .context("cannot make the bridge: is another cluster running? `make cluster-down` stops it")?;
    ip(&["address", "add", &format!("{HOST}/{NODE_PREFIX}"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    Ok(())
}

/// Removes the bridge, every cable and with them the routes; nothing to do is success.
pub(super) fn remove_all() -> Result<()> {
    for link in links()? {
        // The end inside a node takes its time to go with its namespace: the other end may vanish under our hands.
        if let Err(error) = ip(&["link", "delete", &link])
            && links()?.contains(&link)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Our bridge and cables that exist.
pub(super) fn links() -> Result<Vec<String>> {
    let mut links = Vec::new();
    for entry in std::fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_cable = name
            .strip_prefix("llamero-v")
            .is_some_and(|rest| rest.parse::<u8>().is_ok());
        if name == BRIDGE || is_cable {
            links.push(name);
        }
    }
    Ok(links)
}

/// Routes to the cluster's networks that exist on the machine.
pub(super) fn routes() -> Result<Vec<String>> {
    let ours = ["10.213.", "10.214.", "10.215."];
    let table = ip(&["-4", "route", "show", "table", "all"])?;
    let lines = table.lines().map(str::trim);
    Ok(lines
        .filter(|line| {
            line.split(' ')
                .any(|word| ours.iter().any(|net| word.starts_with(net)))
        })
        .map(str::to_owned)
        .collect())
}

/// Plugs the node, whose first process is `init`, into the bridge and gives it its address.
pub(super) fn plug(node: NodeIndex, init: i32) -> Result<()> {
    let link = node.link();
    let peer = ["peer", "name", "eth0", "netns", &init.to_string()].map(str::to_owned);
    let mut words = vec!["link", "add", &link, "type", "veth"];
    words.extend(peer.iter().map(String::as_str));
    ip(&words)?;
    ip(&["link", "set", &link, "master", BRIDGE, "up"])?;
    inside(
        init,
        &[
            "address",
            "add",
            &format!("{}/{NODE_PREFIX}", node.address()),
            "dev",
            "eth0",
        ],
    )?;
    inside(init, &["link", "set", "eth0", "up"])?;
    inside(init, &["route", "add", "default", "via", &HOST.to_string()])?;
    Ok(())
}

/// Routes between the pods of all nodes (`(node, its first process)`), and from the machine to pods and Services.
pub(super) fn route(nodes: &[(NodeIndex, i32)]) -> Result<()> {
    for (node, _) in nodes {
        let (network, gateway) = (node.pod_network(), node.address().to_string());
        ip(&["route", "replace", &network, "via", &gateway, "dev", BRIDGE])?;
        for (_, init) in nodes.iter().filter(|(other, _)| other != node) {
            inside(*init, &["route", "replace", &network, "via", &gateway])?;
        }
    }
    // Every node translates Service addresses; the machine asks the first one.
    if let Some((first, _)) = nodes.iter().min() {
        ip(&[
            "route",
            "replace",
            SERVICE_NETWORK,
            "via",
            &first.address().to_string(),
            "dev",
            BRIDGE,
        ])?;
    }
    Ok(())
}

/// Takes back the routes to the pods of a node that is gone.
pub(super) fn unroute(node: NodeIndex, others: &[(NodeIndex, i32)]) -> Result<()> {
    ip(&["route", "flush", &node.pod_network()])?;
    for (_, init) in others {
        inside(*init, &["route", "flush", &node.pod_network()])?;
    }
    Ok(())
}

/// Pulls or plugs the node's cable.
pub(super) fn set_link(node: NodeIndex, connected: bool) -> Result<()> {
    ip(&["link", "set", &node.link(), if connected { "up" } else { "down" }])?;
    Ok(())
}

/// Whether the node's cable is plugged in.
pub fn is_connected(node: NodeIndex) -> bool {
    let state = std::fs::read_to_string(format!("/sys/class/net/{}/operstate", node.link()));
    state.is_ok_and(|state| state.trim() == "up")
}

/// Traffic over the node's cable.
pub(super) fn bytes(node: NodeIndex) -> Result<LinkBytes> {
    let link = node.link();
    let read = |name: &str| -> Result<u64> {
        let file = format!("/sys/class/net/{link}/statistics/{name}");
        let text = std::fs::read_to_string(&file).with_context(|| format!("no link of {}", node.name()))?;
        text.trim()
            .parse()
            .with_context(|| format!("{file} does not hold a number"))
    };
    // What the machine's end sends is what the node receives.
    Ok(LinkBytes {
        received: read("tx_bytes")?,
        sent: read("rx_bytes")?,
    })
}

fn ip(words: &[&str]) -> Result<String> {
    output(&mut command("ip", words))
}

fn inside(init: i32, words: &[&str]) -> Result<String> {
    output(command("nsenter", &["--target", &init.to_string(), "--net", "ip"]).args(words))
}
