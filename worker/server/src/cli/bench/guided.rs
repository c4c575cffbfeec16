//! What a form costs: the speed at which answers are decoded under a JSON schema, beside that of free ones.
//!
//! A whole worker is started, since the masks of a form are made beside the steps that it computes: what counts is what they add to these.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::{CompletionRequest, Structure, structure::Form};
use serde::Deserialize;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

/// Streams at once, one measurement each.
const STREAMS: [usize; 2] = [1, 16];
/// Measurements of each kind, in turn; the medians are told, since machines are noisy.
const ROUNDS: usize = 3;
/// How long a worker may take to serve.
const STARTED: Duration = Duration::from_secs(300);
/// A list that no answer reaches the end of, of objects as clients ask for them.
const SCHEMA: &str = r#"{"type": "array", "minItems": 1000, "items": {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 24}, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "kind": {"enum": ["llama", "alpaca", "vicuna"]}},
    "required": ["name", "age", "kind"], "additionalProperties": false}}"#;

/// Tokens per second over all streams.
#[derive(Debug)]
pub(super) struct Speed {
    streams: usize,
    free: f64,
    guided: f64,
}

/// The speeds for each number of streams.
#[derive(Debug)]
pub(super) struct Guided(Vec<Speed>);

impl Guided {
    /// Measure with a worker of `threads` threads that decodes answers of `tokens` tokens.
    ///
    /// # Errors
    /// The worker does not serve, or does not answer as asked.
    pub(super) fn measure(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(measure(dir, threads, tokens))
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let speed = |speed: &Speed| {
            serde_json::json!({"streams": speed.streams, "freeTokensPerSecond": speed.free,
                "guidedTokensPerSecond": speed.guided, "ratio": speed.guided / speed.free})
        };
        self.0.iter().map(speed).collect()
    }
}

impl fmt::Display for Guided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Speed {
            streams,
            free,
            guided,
        } in &self.0
        {
            let ratio = guided / free;
            writeln!(
                f,
                "guided    {guided:.1} tokens/s in {streams} streams, {ratio:.3} of {free:.1} free"
            )?;
        }
        Ok(())
    }
}

async fn measure(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Guided> {
    let worker = Worker::start(dir, threads, tokens).await?;
    let mut all = Vec::new();
    for streams in STREAMS {
        let (mut free, mut guided) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            free.push(worker.decode(streams, tokens, None, round).await?);
            guided.push(worker.decode(streams, tokens, Some(SCHEMA), round).await?);
        }
        all.push(Speed {
            streams,
            free: median(free),
            guided: median(guided),
        });
    }
    Ok(Guided(all))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A worker of this program, which ends with this value.
struct Worker {
    channel: Channel,
    ports_file: PathBuf,
    _child: Child,
}

#[derive(Deserialize)]
struct Ports {
    inference: Option<u16>,
}

impl Worker {
    async fn start(dir: &Path, threads: u32, tokens: u32) -> anyhow::Result<Self> {
        let ports_file = std::env::temp_dir().join(format!("llamero-bench-{}.json", std::process::id()));
        let context = tokens.saturating_add(64).to_string();
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "serve",
                "--listen",
                "127.0.0.1",
                "--model-name",
                "bench",
                "--tensor",
                "1",
            ])
            .args([
                "--inference-port",
                "0",
                "--control-port",
                "0",
                "--http-port",
                "0",
                "--rank-port",
                "0",
            ])
            .args([
                "--max-context-length",
                &context,
                "--threads",
                &threads.to_string(),
            ])
            .arg("--model-dir")
            .arg(dir)
            .arg("--ports-file")
            .arg(&ports_file)
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
        let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.connect_lazy();
        let worker = Self {
            channel,
            ports_file,
            _child: child,
        };
        // The first answers warm everything up, the compiled form too.
        while let Err(error) = worker.decode(1, 4, Some(SCHEMA), ROUNDS).await {
            ensure!(Instant::now() < deadline, "the worker does not serve: {error:#}");
            sleep(Duration::from_millis(200)).await;
        }
        Ok(worker)
    }

    /// Tokens per second of so many answers at once: those that come while all of them run, from the last first token to the first last one.
    async fn decode(
        &self,
        streams: usize,
        tokens: u32,
        schema: Option<&str>,
        round: usize,
    ) -> anyhow::Result<f64> {
        let answers = try_join_all(
            (0..streams).map(|stream| self.answer(tokens, schema, (round * 100 + stream) as u64)),
        )
        .await?;
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
    async fn answer(
        &self,
        tokens: u32,
        schema: Option<&str>,
        seed: u64,
    ) -> anyhow::Result<Vec<(Instant, usize)>> {
        let request = CompletionRequest {
            prompt: Some(Prompt::Text(
                "A list of the animals of the herd, as JSON:\n".to_owned(),
            )),
            max_tokens: Some(tokens),
            temperature: Some(1.0),
            seed: Some(seed),
            // A form must be able to end; the list is longer than any answer.
            ignore_eos: schema.is_none(),
            structure: schema.map(|schema| Structure {
                parameter: "schema".to_owned(),
                form: Some(Form::JsonSchema(schema.to_owned())),
            }),
            ..CompletionRequest::default()
        };
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
            got == tokens as usize,
            "an answer has {got} tokens instead of {tokens}"
        );
        Ok(came)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Nobody misses it when it is gone already.
        let _ = std::fs::remove_file(&self.ports_file);
    }
}
