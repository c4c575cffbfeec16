//! A scripted worker and a plain HTTP client for the gateway's tests.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test file uses a part"
)]

pub mod client;
pub mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use llamero_gateway::discovery::{DeploymentKey, Found};
use llamero_gateway::listener::Tls;
use llamero_gateway::server::{Ending, Listeners, serve};
use llamero_gateway::{Gateway, Settings};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A gateway on loopback ports.
pub struct Served {
    pub gateway: Arc<Gateway>,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub health: SocketAddr,
    pub stop: CancellationToken,
    pub ended: tokio::task::JoinHandle<()>,
}

pub async fn gateway(settings: Settings) -> Served {
    gateway_with(settings, None).await
}

pub async fn gateway_with(settings: Settings, tls: Option<Arc<Tls>>) -> Served {
    let gateway = Gateway::new(settings);
    let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = Listeners {
        http: bind().await,
        grpc: bind().await,
        health: bind().await,
    };
    let (http, grpc, health) = (
        listeners.http.local_addr().unwrap(),
        listeners.grpc.local_addr().unwrap(),
        listeners.health.local_addr().unwrap(),
    );
    let stop = CancellationToken::new();
    let ending = Ending {
        delay: Duration::ZERO,
        grace: Duration::from_secs(5),
    };
    let serving = serve(
        gateway.clone(),
        listeners,
        tls,
        ending,
        stop.clone().cancelled_owned(),
    );
    let ended = tokio::spawn(async move { serving.await.unwrap() });
    Served {
        gateway,
        http,
        grpc,
        health,
        stop,
        ended,
    }
}

impl Served {
    /// Make `model` known with these leaders.
    pub fn publish(&self, model: &str, leaders: &[SocketAddr]) {
        self.gateway.publish(vec![found(model, leaders)]);
    }
}

pub fn found(model: &str, leaders: &[SocketAddr]) -> Found {
    Found {
        key: DeploymentKey {
            namespace: "ns".to_owned(),
            name: "smol".to_owned(),
        },
        model: model.to_owned(),
        former: std::collections::BTreeSet::new(),
        created: 7,
        problem: None,
        canary: None,
        leaders: leaders.iter().map(ToString::to_string).collect(),
    }
}

/// Wait for what must come, but not for ever.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it takes too long")
}
