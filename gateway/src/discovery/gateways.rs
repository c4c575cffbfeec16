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

/// Watch until the gateway stops. While the API server is away the last known gateways stay. From this call on until the first
/// list is there the gateway is not ready: its books of a key would be its own, and another's limit could be used twice.
pub fn watch(client: Client, place: Place, gateway: Arc<Gateway>) -> impl Future<Output = ()> + Send {
    gateway.peers_known.send_replace(false);
    follow(client, place, gateway)
}

async fn follow(client: Client, place: Place, gateway: Arc<Gateway>) {
    let api = Api::<EndpointSlice>::namespaced(client, &place.namespace);
    let config = watcher::Config::default().labels(&format!("{SERVICE}={}", place.service));
    let (slices, mut events) = reflect(api, config);
    let own = place.own.to_string();
    gateway.quotas.set_peers(&own, std::slice::from_ref(&own));
    let mut first_list = std::pin::pin!(slices.wait_until_ready());
    let mut listed = false;
    loop {
        tokio::select! {
            () = gateway.stopping.cancelled() => return,
            // A writer that is gone would be a stream that ended, which `events` tells.
            _ = &mut first_list, if !listed => listed = true,
            event = events.next() => if event.is_none() { return },
        }
        if listed {
            gateway.quotas.set_peers(&own, &ready(&slices.state(), place.own));
            gateway.peers_known.send_replace(true);
        }
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
    use axum::body::Body;
    use axum::extract::{RawQuery, State};
    use axum::response::{IntoResponse as _, Response};
    use axum::routing::get;
    use axum::{Json, Router};
    use tokio::sync::Semaphore;

    use super::*;

    /// Lists one other gateway when it is let, and then keeps silent.
    async fn slices(State(let_on): State<Arc<Semaphore>>, RawQuery(query): RawQuery) -> Response {
        if query.unwrap_or_default().contains("watch=") {
            return Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>())
                .into_response();
        }
        let _let_on = let_on.acquire().await;
        Json(serde_json::json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"},
            "items": [{"metadata": {"name": "s", "namespace": "ns"}, "addressType": "IPv4", "ports": [],
                "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": true}}]}],
        }))
        .into_response()
    }

    #[tokio::test]
    async fn a_gateway_is_ready_when_it_knows_the_others() {
        let let_on = Arc::new(Semaphore::new(0));
        let path = "/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices";
        let server = Router::new()
            .route(path, get(slices))
            .with_state(Arc::clone(&let_on));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, server).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();

        let gateway = Gateway::new(crate::Settings::default());
        gateway.publish(vec![]);
        assert_eq!(gateway.not_ready(), None, "outside of Kubernetes");
        let place = Place {
            namespace: "ns".to_owned(),
            service: "gateways".to_owned(),
            own: "10.0.0.1:7".parse().unwrap(),
        };
        let following = tokio::spawn(watch(client, place, Arc::clone(&gateway)));
        assert!(gateway.not_ready().unwrap().contains("EndpointSlices"));

        let_on.add_permits(1);
        let mut known = gateway.peers_known.subscribe();
        known.wait_for(|known| *known).await.unwrap();
        assert_eq!(gateway.not_ready(), None);
        assert_eq!(gateway.quotas.peers().count(), 2);
        gateway.stopping.cancel();
        following.await.unwrap();
    }

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
