//! The thread that answers clients.

use std::net::TcpListener;
use std::thread;

use llamero_engine::runtime::EngineHandle;
use llamero_identity::Serving;
use tokio_util::sync::CancellationToken;

use crate::exit::FAILED;
use crate::inference::{self, Model};

/// A gRPC server on a thread of its own.
#[derive(Debug)]
pub struct Clients {
    stop: CancellationToken,
    thread: thread::JoinHandle<()>,
}

impl Clients {
    /// Answer the clients of `listener`. The process ends when that cannot go on.
    ///
    /// # Errors
    /// The operating system has no threads left.
    pub fn serve(
        listener: TcpListener,
        serving: Serving,
        model: Model,
        engine: EngineHandle,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let closing = stop.clone();
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let thread = thread::Builder::new().name("clients".into()).spawn(move || {
            if let Err(error) = tokio.block_on(inference::serve(listener, serving, model, engine, closing)) {
                tracing::error!("clients can no longer be served: {error:#}");
                std::process::exit(FAILED.into());
            }
            tokio.shutdown_background();
        })?;
        Ok(Self { stop, thread })
    }

    /// Let answers reach their clients, then close.
    pub fn finish(self) {
        self.stop.cancel();
        // It may have ended by itself.
        let _ = self.thread.join();
    }
}
