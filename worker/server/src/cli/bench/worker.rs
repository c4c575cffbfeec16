//! A worker of this program, started to measure how fast it answers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::telemetry_client::TelemetryClient;
use llamero_proto::v1::{CompletionRequest, LoadRequest, LoadSample};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

/// How long a worker may take to serve.
const STARTED: Duration = Duration::from_secs(300);
/// Numbers the workers of this process.
static STARTED_SO_FAR: AtomicU32 = AtomicU32::new(0);

/// A worker, which ends with this value.
pub(super) struct Worker {
    channel: Channel,
    ports_file: PathBuf,
    _child: Child,
}

#[derive(Deserialize)]
struct Ports {
    inference: Option<u16>,
}

impl Worker {
    /// One that has answered `warm_up` once.
    ///
    /// # Errors
    /// It does not serve.
    pub(super) async fn start(
        dir: &Path,
        threads: u32,
        context: u32,
        more: &[&str],
        warm_up: CompletionRequest,
    ) -> anyhow::Result<Self> {
        let number = STARTED_SO_FAR.fetch_add(1, Ordering::Relaxed);
        let name = format!("llamero-bench-{}-{number}.json", std::process::id());
        let ports_file = std::env::temp_dir().join(name);
        let (context, threads) = (context.to_string(), threads.to_string());
        let fixed = [
            "serve",
            "--listen",
            "127.0.0.1",
            "--model-name",
            "bench",
            "--tensor",
            "1",
        ];
        let ports = ["--inference-port", "--control-port", "--http-port", "--rank-port"];
        let mut child = Command::new(std::env::current_exe()?)
            .args(fixed)
            .args(ports.iter().flat_map(|port| [*port, "0"]))
            .args(["--max-context-length", &context, "--threads", &threads])
            .args(more)
            .args([OsStr::new("--model-dir"), dir.as_os_str()])
            .args([OsStr::new("--ports-file"), ports_file.as_os_str()])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the worker cannot be started")?;
        let deadline = Instant::now() + STARTED;
        let port = loop {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("the worker ended: {status}; its log says why");
            }
            let written = std::fs::read(&ports_file).ok();
            if let Some(ports) = written.and_then(|json| serde_json::from_slice::<Ports>(&json).ok()) {
                break ports.inference.context("the worker does not lead")?;
            }
            ensure!(Instant::now() < deadline, "the worker opens no port");
            sleep(Duration::from_millis(50)).await;
        };
        let worker = Self {
            channel: Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect_lazy(),
            ports_file,
            _child: child,
        };
        while let Err(error) = worker.answer(warm_up.clone()).await {
            ensure!(Instant::now() < deadline, "the worker does not serve: {error:#}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(worker)
    }

    /// Tokens per second of these answers at once: those that come while all of them run, from the last first token to the first
    /// last one.
    ///
    /// # Errors
    /// They are not answered as asked.
    pub(super) async fn decode(
        &self,
        requests: impl Iterator<Item = CompletionRequest>,
    ) -> anyhow::Result<f64> {
        let answers = try_join_all(requests.map(|request| self.answer(request))).await?;
        let firsts = answers.iter().filter_map(|answer| answer.first());
        let lasts = answers.iter().filter_map(|answer| answer.last());
        let begin = firsts.map(|(at, _)| *at).max().context("no stream")?;
        let end = lasts.map(|(at, _)| *at).min().context("no stream")?;
        ensure!(begin < end, "the answers do not run together; take longer ones");
        let meanwhile = answers
            .iter()
            .flatten()
            .filter(|(at, _)| begin < *at && *at <= end);
        let counted: usize = meanwhile.map(|(_, tokens)| tokens).sum();
        Ok(counted as f64 / (end - begin).as_secs_f64())
    }

    /// When tokens of an answer came, and how many.
    async fn answer(&self, request: CompletionRequest) -> anyhow::Result<Vec<(Instant, usize)>> {
        let asked = request.max_tokens.unwrap_or_default();
        let mut client = CompletionClient::new(self.channel.clone());
        let mut chunks = client.complete(request).await?.into_inner();
        let mut came = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            if !chunk.token_ids.is_empty() {
                came.push((Instant::now(), chunk.token_ids.len()));
            }
        }
        let got: usize = came.iter().map(|(_, tokens)| tokens).sum();
        ensure!(
            got == asked as usize,
            "an answer has {got} tokens instead of {asked}"
        );
        Ok(came)
    }

    /// What it counts.
    ///
    /// # Errors
    /// It does not tell.
    pub(super) async fn load(&self) -> anyhow::Result<LoadSample> {
        let mut client = TelemetryClient::new(self.channel.clone());
        let request = LoadRequest { interval_millis: 100 };
        let mut samples = client.watch(request).await?.into_inner();
        samples.message().await?.context("the worker tells no load")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nobody misses it when it is gone already.
        let _ = std::fs::remove_file(&self.ports_file);
    }
}

/// The value in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
