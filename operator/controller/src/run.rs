//! Puts the parts together.

use std::{collections::BTreeSet, time::Duration};

use kube::{Client, Config};
use llamero_api::namespaces;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    access,
    health::{self, Health},
    identities::{self, IdentitiesError},
    lease::{self, LeaseConfig, LeaseError},
    metrics::Metrics,
    observe::seen_pod::Projection,
    options::Options,
    reconcile::Reconciler,
    wake::Wake,
    watch::{Caches, Scope, Scopes},
};

/// Why the operator stops.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No way to the API server is configured.
    #[error("no Kubernetes API server is configured: run inside a cluster, or set KUBECONFIG: {0}")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client could not be made.
    #[error("cannot make a client for the Kubernetes API server: {0}")]
    Client(#[source] kube::Error),
    /// The address of the health endpoints cannot be used.
    #[error(
        "cannot listen on {address} for /livez, /readyz and /metrics: {error}. Choose another --http-address"
    )]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// Pods cannot enrol.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// It is to serve more namespaces than it can.
    #[error(transparent)]
    Namespaces(#[from] namespaces::TooMany),
    /// A namespace that was left out at start is there.
    #[error("{0} may be read now: starting again to serve it")]
    Returned(String),
    /// Leadership was lost.
    #[error(transparent)]
    Lease(#[from] LeaseError),
}

/// Runs until `stop`, or until the lease is lost: then the process must end, so that nothing it still does can meet the new holder's work.
///
/// # Errors
/// When it cannot start, or has lost its lease.
pub async fn run(options: Options, stop: CancellationToken) -> Result<(), RunError> {
    let client = client().await?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let health = Health::default();
    let wake = Wake::default();
    let lease = LeaseConfig {
        namespace: options.lease_namespace.clone(),
        name: options.lease_name.clone(),
        identity: options.identity(),
        duration: options.lease_duration(),
    };
    let named = namespaces::served(&options.watch_namespaces)?;
    info!(identity = %lease.identity, namespaces = ?Scope::of(named.clone()), "starting");
    let address = options.http_address;
    let mut health_server = tokio::spawn(health::serve(address, health.clone(), registry, stop.clone()));
    let reading = tokio::select! {
        reading = Reading::of(&client, named) => reading,
        () = stop.cancelled() => return Ok(()),
    };
    let Reading {
        served,
        reads_cluster,
        reads_volumes,
        missing,
    } = reading;
    let pods = Projection::new(options.gateway_namespace(), options.gateway_selector.clone());
    let scopes = Scopes {
        served: served.clone(),
        gateways: options.gateway_namespace().to_owned(),
        reads_cluster,
        reads_volumes,
    };
    let caches = Caches::start(&client, &scopes, pods.serving(served.clone()), &wake);

    // The lease is given back only after the loop has stopped writing.
    let stop_lease = CancellationToken::new();
    let (leadership, lease) = lease::hold(client.clone(), lease, stop_lease.clone());
    let mut lease = tokio::spawn(lease);
    let (identities, mut enrolling) =
        identities::start(&client, (&options, served), &leadership, (&health, &metrics))?;
    let reconciler = Reconciler::new(&client, options, caches, wake, leadership, metrics, health)
        .with_identities(identities)
        .reading_cluster(reads_cluster);
    let mut reconciling = tokio::spawn(reconciler.run(stop.clone()));

    let result = tokio::select! {
        ended = &mut lease => flatten(ended).map_err(RunError::from),
        served = &mut health_server => flatten(served).map_err(|error| RunError::Listen { address, error }),
        ended = &mut reconciling => flatten(ended.map(Ok)),
        served = &mut enrolling => flatten(served).map_err(RunError::from),
        namespace = access::returned(&client, &missing), if !missing.is_empty() => Err(RunError::Returned(namespace)),
    };
    // A task that has ended may have been awaited above, and must not be awaited again.
    reconciling.abort();
    if !reconciling.is_finished() {
        let _ = (&mut reconciling).await;
    }
    stop_lease.cancel();
    if !lease.is_finished() {
        let _ = tokio::time::timeout(Duration::from_secs(3), lease).await;
    }
    result
}

/// What may be read of what is to be served.
struct Reading {
    served: Scope,
    reads_cluster: bool,
    reads_volumes: bool,
    /// Namespaces that are to be served and may not be read.
    missing: BTreeSet<String>,
}

impl Reading {
    /// Who is to serve the whole cluster may read it, but for volumes, which Roles of older charts leave out; of `named` namespaces, the API server is asked.
    async fn of(client: &Client, named: Option<BTreeSet<String>>) -> Self {
        let (served, reads_cluster, missing) = match named {
            None => (Scope::Cluster, true, BTreeSet::new()),
            Some(named) => {
                let readable = access::readable(client, &named).await;
                let missing = &named - &readable;
                (
                    Scope::Namespaces(readable),
                    access::reads_cluster(client).await,
                    missing,
                )
            }
        };
        Self {
            reads_volumes: reads_cluster && access::reads_volumes(client, &served).await,
            served,
            reads_cluster,
            missing,
        }
    }
}

/// A panic in a task is a panic here.
fn flatten<T, E>(joined: Result<Result<T, E>, tokio::task::JoinError>) -> Result<T, E> {
    match joined {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn client() -> Result<Client, RunError> {
    let mut config = Config::infer()
        .await
        .map_err(|error| RunError::Config(error.into()))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Who tries again decides anew first, and only while the lease is held; a client that repeats by itself would do neither.
    config.default_retry = false;
    Client::try_from(config).map_err(RunError::Client)
}
