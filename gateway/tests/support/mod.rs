//! A scripted worker and a plain HTTP client for the gateway's tests.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test file uses a part"
)]

pub mod browser;
pub mod client;
pub mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use llamero_gateway::demand::Counts;
use llamero_gateway::discovery::{DeploymentKey, Found};
use llamero_gateway::listener::Tls;
use llamero_gateway::server::{Ending, Listeners, serve};
use llamero_gateway::{Gateway, Settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use client::{Reply, post};
use worker::{Answering, Worker};

/// The model of all tests that need only one.
pub const MODEL: &str = "org/smol";

/// A gateway on loopback ports.
pub struct Served {
    pub gateway: Arc<Gateway>,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub health: SocketAddr,
    pub stop: CancellationToken,
    pub ended: JoinHandle<()>,
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
        grace: Duration::from_secs(60),
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

/// For tests of errors that come before a stream has begun: it does not begin by itself.
pub fn patient() -> Settings {
    Settings {
        first_chunk_wait: Duration::from_secs(60),
        ..Settings::default()
    }
}

/// A gateway that knows one worker, which serves [`MODEL`].
pub async fn with_worker(settings: Settings) -> (Served, Worker) {
    let served = gateway(settings).await;
    let worker = Worker::start();
    served.publish(MODEL, &[worker.address]);
    (served, worker)
}

/// A chat request with these fields besides.
pub fn chat(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    request
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    request
}

/// A chat request, streamed or not.
pub fn streamed(stream: bool) -> Value {
    chat(json!({"stream": stream}))
}

/// Ask and wait for the head of the answer.
pub async fn ask(served: &Served, stream: bool) -> Reply {
    post(served.http, "/v1/chat/completions", streamed(stream)).await
}

/// Ask without waiting.
pub fn asking(served: &Served, stream: bool) -> JoinHandle<Reply> {
    tokio::spawn(post(served.http, "/v1/chat/completions", streamed(stream)))
}

/// A request whose answer has begun with the text `a`, token 1.
pub async fn begun(served: &Served, worker: &mut Worker, stream: bool) -> (JoinHandle<Reply>, Answering) {
    let request = asking(served, stream);
    let mut answering = worker.call().await.accept().await;
    answering.send("a", &[1], None).await;
    (request, answering)
}

/// Wait until so many requests of a deployment are held, in flight, and have come in all.
pub async fn counted(served: &Served, (held, in_flight, total): (u32, u32, u64)) {
    let expected = Counts {
        held,
        in_flight,
        total,
    };
    let mut changes = served.gateway.demand.subscribe();
    soon(async {
        while !served
            .gateway
            .demand
            .counts()
            .into_values()
            .any(|counts| counts == expected)
        {
            changes.changed().await.unwrap();
        }
    })
    .await;
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
        max_context: Some(4096),
        problem: None,
        canary: None,
        adapters: Vec::new(),
        authenticated: std::collections::BTreeMap::new(),
        leaders: leaders
            .iter()
            .map(|address| (address.to_string(), model.to_owned()))
            .collect(),
    }
}

/// Wait for what must come, but not for ever.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("it takes too long")
}
