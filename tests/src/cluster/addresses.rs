//! Names and addresses of the cluster. They carry a prefix, so that nothing of the machine's own is touched.

use std::net::Ipv4Addr;

/// Bridge that joins the nodes; the control plane listens on its address.
pub const BRIDGE: &str = "llamero0";
/// Address of the API server and of the cluster's DNS.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
/// Network of the bridge.
pub const NODE_PREFIX: u8 = 24;
/// All pods of all nodes.
pub const POD_NETWORK: &str = "10.214.0.0/16";
/// Addresses of Services.
pub const SERVICE_NETWORK: &str = "10.215.0.0/16";
/// The Service `kubernetes` gets the first address.
pub const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 215, 0, 1);
/// Port of the API server; not the usual one, which another cluster may hold.
pub const API_PORT: u16 = 16443;
/// Port of etcd, on loopback; its peers' port is the next one.
pub const ETCD_PORT: u16 = 12379;
/// Domain of the cluster's names.
pub const DOMAIN: &str = "cluster.local";
/// Most nodes that the addresses have room for.
pub const MOST_NODES: u8 = 100;

/// One node's place in the address plan: 1 to [`MOST_NODES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(u8);

impl NodeIndex {
    /// `None` outside of 1 to [`MOST_NODES`].
    #[must_use]
    pub fn new(index: u8) -> Option<Self> {
        (1..=MOST_NODES).contains(&index).then_some(Self(index))
    }

    /// The inverse of [`Self::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let index = Self::new(name.strip_prefix("llamero-node-")?.parse().ok()?)?;
        (index.name() == name).then_some(index)
    }

    /// Name of the Kubernetes node.
    #[must_use]
    pub fn name(self) -> String {
        format!("llamero-node-{}", self.0)
    }

    /// Address of the node on the bridge.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, 0, 10 + self.0)
    }

    /// Network of the node's pods.
    #[must_use]
    pub fn pod_network(self) -> String {
        format!("10.214.{}.0/24", self.0)
    }

    /// The machine's end of the node's cable.
    #[must_use]
    pub fn link(self) -> String {
        format!("llamero-v{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for index in [1, 7, MOST_NODES] {
            let node = NodeIndex::new(index).unwrap();
            assert_eq!(NodeIndex::from_name(&node.name()), Some(node));
        }
        for wrong in [
            "llamero-node-0",
            "llamero-node-01",
            "llamero-node-101",
            "node-1",
            "llamero-node-",
        ] {
            assert_eq!(NodeIndex::from_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_longest_link_name_fits_the_kernel() {
        assert!(NodeIndex::new(MOST_NODES).unwrap().link().len() <= 15);
    }
}
