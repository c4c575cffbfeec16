//! The listening sockets and an orderly end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use llamero_identity::Serving;
use llamero_proto::v1::demand_server::DemandServer;
use llamero_proto::v1::quota_server::QuotaServer;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::Gateway;
use crate::demand::DemandService;
use crate::listener::{self, Tls};
use crate::quota::service::QuotaService;
use crate::upstream::dialler::Dialler;
use crate::{health, routes};

/// The three sockets.
#[derive(Debug)]
pub struct Listeners {
    /// Clients.
    pub http: TcpListener,
    /// The operator and other gateways: `llamero.v1.Demand`, `llamero.v1.Quota`, health, reflection.
    pub grpc: TcpListener,
    /// Probes and metrics.
    pub health: TcpListener,
}

/// Times of an orderly end.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    /// Between not being ready any more and refusing connections, so that Services learn of it.
    pub delay: Duration,
    /// For answers that still run.
    pub grace: Duration,
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The gRPC server failed.
    #[error("the gRPC server failed: {0}")]
    Grpc(#[from] tonic::transport::Error),
    /// The descriptors for reflection are broken.
    #[error("gRPC reflection cannot be offered: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serve until `stop`, clients over TLS if `tls` is there, then end in order: not ready, pause, no new connections, running answers finish.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    gateway: Arc<Gateway>,
    listeners: Listeners,
    tls: Option<Arc<Tls>>,
    ending: Ending,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let stopping = gateway.stopping.clone();
    let signal = {
        let stopping = stopping.clone();
        tokio::spawn(async move {
            stop.await;
            tracing::info!("stopping: no new requests, running answers finish");
            stopping.cancel();
        })
    };
    // Probes and metrics stay up to the very end.
    let probes = axum::serve(listeners.health, health::router(Arc::clone(&gateway)));
    let probes = tokio::spawn(probes.into_future());

    let certificates = tls.clone().map(|tls| tokio::spawn(tls.follow()));
    let keys = gateway.settings.keys.clone().map(|keys| {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(keys.follow(move |keys| gateway.keys_changed(keys)))
    });
    tokio::spawn(Arc::clone(&gateway.quotas).refresh(stopping.clone()));
    let paused = {
        let stopping = stopping.clone();
        async move {
            stopping.cancelled().await;
            tokio::time::sleep(ending.delay).await;
        }
    };
    let router = routes::router(Arc::clone(&gateway));
    let http = listener::serve(listeners.http, router, &gateway, tls, paused);
    let serving = gateway
        .settings
        .dialler
        .as_ref()
        .map_or_else(Serving::plain, Dialler::serving);
    let services = serving.guard(internal_services(&gateway).await?);
    let grpc = Server::builder()
        .add_routes(services)
        .serve_with_incoming_shutdown(
            serving.incoming(listeners.grpc),
            stopping.clone().cancelled_owned(),
        );

    let served = async {
        let ((), grpc) = tokio::join!(http, grpc);
        grpc.map_err(ServeError::from)
    };
    let overdue = async {
        stopping.cancelled().await;
        tokio::time::sleep(ending.delay + ending.grace).await;
    };
    let result = tokio::select! {
        result = served => result,
        () = overdue => {
            tracing::warn!("some answers did not finish in time and are cut off");
            Ok(())
        }
    };
    signal.abort();
    probes.abort();
    for follower in [certificates, keys].into_iter().flatten() {
        follower.abort();
    }
    result
}

/// What the operator and other gateways call.
async fn internal_services(gateway: &Arc<Gateway>) -> Result<Routes, ServeError> {
    let (health_reporter, health_service) = tonic_health::server::health_reporter();
    health_reporter.set_serving::<DemandServer<DemandService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(llamero_proto::LLAMERO_DESCRIPTORS)
        .build_v1()?;
    let demand = DemandService::new(gateway.demand.clone(), gateway.stopping.clone());
    Ok(Routes::new(health_service)
        .add_service(reflection)
        .add_service(DemandServer::new(demand))
        .add_service(QuotaServer::new(QuotaService::new(Arc::clone(gateway)))))
}
