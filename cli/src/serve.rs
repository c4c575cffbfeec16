//! The OpenAI API in this process: the gateway's routes and its listener, before the one leader that is here.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use llamero_gateway::discovery::Found;
use llamero_gateway::discovery::fixed::FixedModel;
use llamero_gateway::keys::KeyStore;
use llamero_gateway::{Gateway, Settings, health, listener, routes};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// For answers that still run after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// What is served.
#[derive(Debug)]
pub struct Served {
    /// The name that clients ask for.
    pub model: String,
    /// Longest prompt and answer together in tokens, if it is known.
    pub max_context: Option<u32>,
    /// Who answers.
    pub leader: SocketAddr,
}

/// Serve a model until SIGTERM or SIGINT; a second one ends it at once.
///
/// # Errors
/// The socket cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    served: Served,
    keys: Option<Arc<KeyStore>>,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    let gateway = Gateway::new(Settings {
        keys: keys.clone(),
        ..Settings::default()
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Served {
        model,
        max_context,
        leader,
    } = served;
    let fixed = FixedModel {
        model: model.clone(),
        leaders: vec![leader],
    };
    gateway.publish(vec![Found {
        created: i64::try_from(now.as_secs()).unwrap_or(0),
        max_context,
        ..fixed.found()
    }]);
    let router = routes::router(gateway.clone()).merge(health::router(gateway.clone()));
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    eprintln!("serving {model} at http://{address}/v1, a chat page at http://{address}/");
    if let Some(keys) = keys {
        let gateway = gateway.clone();
        tokio::spawn(keys.follow(move |keys| gateway.keys_changed(keys)));
    } else if !address.ip().is_loopback() {
        eprintln!("whoever reaches {address} may use the model; --api-keys closes it");
    }
    let stopping = gateway.stopping.clone();
    let stopped = stopping.clone().cancelled_owned();
    let served = listener::serve(listener, router, &gateway, None, stopped);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        () = &mut served => return Ok(()),
        () = told(&mut terminate, &mut interrupt) => {}
    }
    eprintln!("stopping: running answers finish");
    stopping.cancel();
    tokio::select! {
        () = served => {}
        () = told(&mut terminate, &mut interrupt) => eprintln!("some answers are cut off"),
        () = tokio::time::sleep(GRACE) => eprintln!("some answers did not finish in time and are cut off"),
    }
    Ok(())
}

/// Read a file of API keys.
///
/// # Errors
/// It cannot be read, or is not as expected.
pub fn keys(path: &Path) -> anyhow::Result<Arc<KeyStore>> {
    let keys = KeyStore::load(path).with_context(|| format!("cannot use {}", path.display()))?;
    Ok(Arc::new(keys))
}

async fn told(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
