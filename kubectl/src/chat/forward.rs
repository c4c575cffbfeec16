//! A port of the gateway's pod, through the API server: no Ingress and no node port is needed, only the right to forward ports.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    cluster::{Cluster, say},
    options::ServiceName,
};

/// Connections at a time: a chat needs one, and one more that is being closed.
const MOST_CONNECTIONS: usize = 8;

/// A port of this machine that leads to the gateway while the program runs.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The port, on the loopback interface.
    pub address: SocketAddr,
    /// Name of the Service in the cluster.
    pub host: String,
    /// The gateway speaks TLS.
    pub tls: bool,
}

impl Forward {
    /// Opens it.
    ///
    /// # Errors
    /// There is no such gateway, none of its pods is ready, or ports may not be forwarded.
    pub async fn open(cluster: &Cluster, gateway: &ServiceName) -> Result<Self> {
        let ServiceName { namespace, name } = gateway;
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
        let service = services.get(name).await.map_err(|error| {
            say::refused(error, "get", "service").context(format!(
                "no gateway at {namespace}/{name}: --gateway names another Service, --url an address"
            ))
        })?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let selector = selector(&service)?;
        let found = pods.list(&ListParams::default().labels(&selector)).await;
        let found = found.map_err(|error| say::refused(error, "list", "pods"))?;
        let pod = found.items.into_iter().find(is_ready);
        let pod = pod.with_context(|| format!("no pod of the gateway {namespace}/{name} is ready"))?;
        let port = port(&service)?;
        let target = target(port, &pod)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        // One try at once, so that a missing right is said before anybody asks anything.
        let first = pods.portforward(&pod.name_any(), &[target]).await;
        first
            .map_err(|error| say::refused(error, "create", "pods/portforward"))?
            .abort();
        tokio::spawn(serve(listener, pods, pod.name_any(), target));
        Ok(Self {
            address,
            host: format!("{name}.{namespace}.svc"),
            tls: port.app_protocol.as_deref() == Some("https"),
        })
    }
}

fn selector(service: &Service) -> Result<String> {
    let labels = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = labels.filter(|labels| !labels.is_empty());
    let labels = labels.ok_or_else(|| anyhow!("the Service {} selects no pods", service.name_any()))?;
    let pairs: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    Ok(pairs.join(","))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn port(service: &Service) -> Result<&ServicePort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let ports = ports.map(Vec::as_slice).unwrap_or_default();
    ports
        .iter()
        .find(|port| port.name.as_deref() == Some("http"))
        .or(ports.first())
        .ok_or_else(|| anyhow!("the Service {} has no port", service.name_any()))
}

/// The container's port behind a port of the Service.
fn target(port: &ServicePort, pod: &Pod) -> Result<u16> {
    let number = match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.container_port)
        }
    };
    match number.and_then(|number| u16::try_from(number).ok()) {
        Some(number) => Ok(number),
        None => bail!("the pod {} has no port that the Service leads to", pod.name_any()),
    }
}

/// Takes connections until the program ends.
async fn serve(listener: TcpListener, pods: Api<Pod>, pod: String, port: u16) {
    let mut open = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        while open.len() >= MOST_CONNECTIONS {
            open.join_next().await;
        }
        let (pods, pod) = (pods.clone(), pod.clone());
        open.spawn(async move {
            // Whoever waits for an answer sees its connection end, and says so.
            let _ = forward(connection, &pods, &pod, port).await;
        });
    }
}

async fn forward(mut here: TcpStream, pods: &Api<Pod>, pod: &str, port: u16) -> Result<()> {
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let mut there = forwarder
        .take_stream(port)
        .context("the port was not forwarded")?;
    copy_bidirectional(&mut here, &mut there).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_found_by_number_or_by_name() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "gateway", "ports": [{"name": "http", "containerPort": 8000}]}]}}))
        .unwrap();
        let port = |target: serde_json::Value| -> ServicePort {
            serde_json::from_value(json!({"port": 80, "targetPort": target})).unwrap()
        };
        assert_eq!(target(&port(json!("http")), &pod).unwrap(), 8000);
        assert_eq!(target(&port(json!(8001)), &pod).unwrap(), 8001);
        assert_eq!(target(&port(json!(null)), &pod).unwrap(), 80);
        assert!(target(&port(json!("grpc")), &pod).is_err());
    }
}
