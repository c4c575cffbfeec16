//! Watches which gateways are ready: they keep the limits of API keys together.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};

use super::kubernetes::reflect;
use crate::Gateway;

/// Name of the label with the name of a slice's Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// Where this gateway stands among the others.
#[derive(Debug, Clone)]
pub struct Place {
    /// The namespace of all gateways.
    pub namespace: String,
    /// The Service that selects them.
    pub service: String,
    /// This gateway's gRPC. All others listen on the same port.
    pub own: SocketAddr,
}

/// Watch until the gateway stops. While the API server is away the last known gateways stay.
pub async fn watch(client: Client, place: Place, gateway: Arc<Gateway>) {
    let api = Api::<EndpointSlice>::namespaced(client, &place.namespace);
    let config = watcher::Config::default().labels(&format!("{SERVICE}={}", place.service));
    let (slices, mut events) = reflect(api, config);
    let own = place.own.to_string();
    // It knows its own name at once; that there are others it learns before clients are sent to it.
    gateway.quotas.set_peers(&own, std::slice::from_ref(&own));
    loop {
        tokio::select! {
            () = gateway.stopping.cancelled() => return,
            event = events.next() => if event.is_none() { return },
        }
        gateway.quotas.set_peers(&own, &ready(&slices.state(), place.own));
    }
}

/// Ready gateways of this one's address family: a pod with two addresses is one gateway.
fn ready(slices: &[Arc<EndpointSlice>], own: SocketAddr) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.is_none_or(|conditions| conditions.ready != Some(false))
    });
    let addresses = ready.flat_map(|endpoint| &endpoint.addresses);
    let addresses: BTreeSet<IpAddr> = addresses
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .filter(|address| address.is_ipv4() == own.is_ipv4())
        .collect();
    addresses
        .into_iter()
        .map(|address| SocketAddr::new(address, own.port()).to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_gateways_of_one_family_are_peers() {
        let slice = |kind: &str, endpoints: serde_json::Value| -> Arc<EndpointSlice> {
            let json = serde_json::json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
                "addressType": kind, "endpoints": endpoints, "ports": [],
            });
            Arc::new(serde_json::from_value(json).unwrap())
        };
        let slices = [
            slice(
                "IPv4",
                serde_json::json!([
                    {"addresses": ["10.0.0.2"], "conditions": {"ready": true}},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
                    {"addresses": ["10.0.0.1"]},
                ]),
            ),
            slice("IPv6", serde_json::json!([{"addresses": ["fd00::1"]}])),
        ];
        let found = |own: &str| ready(&slices, own.parse().unwrap());
        assert_eq!(found("10.0.0.9:7"), ["10.0.0.1:7", "10.0.0.2:7"]);
        assert_eq!(found("[fd00::9]:7"), ["[fd00::1]:7"]);
    }
}
