//! A proxy in front of the API server that cuts off its client after a chosen write.
//!
//! A client that dies right after a write is the same as one whose connections are cut before it reads the answer. The proxy speaks plain HTTP/1.1 on
//! loopback and is the administrator towards the API server.

mod relay;
mod tally;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::cluster::Layout;
use crate::poll;
use tally::Tally;
pub use tally::Write;
use upstream::Upstream;

/// The running proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct WriteCutter {
    address: SocketAddr,
    tally: Arc<Tally>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl WriteCutter {
    /// A proxy before the API server of the cluster, open for everything.
    ///
    /// # Errors
    /// The cluster's certificates cannot be read, or no port is free.
    pub fn start(layout: &Layout) -> Result<Self> {
        Self::start_before(Upstream::api_server(&layout.certificates())?)
    }

    fn start_before(upstream: Upstream) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (cut, is_cut) = watch::channel(false);
        let tally = Arc::new(Tally::new(cut));
        let (end, ended) = oneshot::channel();
        let shared = Arc::clone(&tally);
        let thread = std::thread::Builder::new()
            .name("write-cutter".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = relay::serve(listener, upstream, shared, is_cut) => {}
                        _ = ended => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            tally,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that leads through the proxy to `file`, and returns the path.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_kubeconfig(&self, file: &Path) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cutter", "cluster": {"server": self.url()}}],
            "users": [{"name": "cutter", "user": {}}],
            "contexts": [{"name": "cutter", "context": {"cluster": "cutter", "user": "cutter"}}],
            "current-context": "cutter",
        });
        std::fs::write(file, config.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file.to_owned())
    }

    /// Opens the proxy, counts from nothing, and cuts everything off once write number `last` has reached the API server; its answer is swallowed.
    /// With 0, the first write is refused.
    pub fn cut_after(&self, last: usize) {
        self.tally.reset(Some(last));
    }

    /// Opens the proxy for everything, and counts from nothing.
    pub fn open(&self) {
        self.tally.reset(None);
    }

    /// The writes that have reached the API server since the proxy was last opened, in their order.
    #[must_use]
    pub fn writes(&self) -> Vec<Write> {
        self.tally.writes()
    }

    /// Whether everything is cut off.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.tally.is_cut()
    }

    /// Waits until everything is cut off.
    ///
    /// # Errors
    /// Fewer writes than were to be let through have come within `limit`.
    pub fn wait_for_cut(&self, limit: Duration) -> Result<()> {
        poll::until("the cut", limit, || Ok(self.is_cut().then_some(())))
            .with_context(|| format!("writes until now: {:?}", self.writes()))
    }
}

impl Drop for WriteCutter {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(Err(panic)) = self.thread.take().map(std::thread::JoinHandle::join) {
            // Nothing is left to hand the panic to.
            eprintln!("{:?}", anyhow!("the write cutter has panicked: {panic:?}"));
        }
    }
}

#[cfg(test)]
mod tests;
