//! Clients: each has one connection and asks again when it has its answer. Those at the times of a schedule are in `paced`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::paced::{self, Schedule, Times};
use super::{MODEL, mock, usage};

/// Nothing takes this long when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be measured.
pub(crate) struct Options {
    gateway: SocketAddr,
    /// The mock's HTTP, for what an answer takes without a gateway.
    direct: SocketAddr,
    pid: u32,
    seconds: u64,
    rate: u64,
    streams: usize,
}

impl Options {
    /// `GATEWAY DIRECT PID SECONDS RATE STREAMS`.
    ///
    /// # Errors
    /// One is missing, or is no number.
    pub(crate) fn read(arguments: &[String]) -> anyhow::Result<Self> {
        let [gateway, direct, pid, seconds, rate, streams] = arguments else {
            anyhow::bail!("say GATEWAY DIRECT PID SECONDS RATE STREAMS");
        };
        Ok(Self {
            gateway: gateway.parse()?,
            direct: direct.parse()?,
            pid: pid.parse()?,
            seconds: seconds.parse()?,
            rate: rate.parse()?,
            streams: streams.parse()?,
        })
    }
}

/// All figures.
///
/// # Errors
/// The gateway does not answer.
pub(crate) async fn measure(options: &Options) -> anyhow::Result<Map<String, Value>> {
    let mut figures = Map::new();
    let short = body(1_000, 1, false);
    let long = body(220_000, 1, false);
    let streamed = body(1_000, 64, true);
    // Connections, caches and allocators are warm before anything counts.
    closed(options, &short, 16, Duration::from_secs(1)).await?;
    for (name, body, clients, units) in [
        ("shortPerCpuSecond", &short, 32, 1.0),
        ("longPerCpuSecond", &long, 8, 1.0),
        ("tokensPerCpuSecond", &streamed, 32, 64.0),
    ] {
        let (answers, cpu) = closed(options, body, clients, Duration::from_secs(options.seconds)).await?;
        figures.insert(name.to_owned(), rounded(answers as f64 * units / cpu));
    }
    for (name, body, rate) in [
        ("short", &short, options.rate),
        ("long", &long, options.rate / 30),
    ] {
        let rate = rate.max(1);
        let direct = open(options.direct, body, rate, options.seconds).await?;
        let through = open(options.gateway, body, rate, options.seconds).await?;
        let mut added = Map::new();
        added.insert("rate".to_owned(), rate.into());
        for (percentile, at) in [("p50", 0.5), ("p99", 0.99)] {
            let late = quantile(&through.sent, at).max(quantile(&direct.sent, at));
            let (through, direct) = (quantile(&through.answered, at), quantile(&direct.answered, at));
            added.insert(format!("{percentile}Late"), rounded(late));
            added.insert(format!("{percentile}Through"), rounded(through));
            added.insert(format!("{percentile}Direct"), rounded(direct));
            added.insert(format!("{percentile}Added"), rounded(through - direct));
        }
        figures.insert(format!("{name}Millis"), added.into());
    }
    figures.insert("streams".to_owned(), held(options).await?);
    Ok(figures)
}

fn rounded(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}

/// The least value that so large a part is not above.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get(((last as f64) * part).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

fn body(prompt: usize, tokens: u32, stream: bool) -> Bytes {
    let text = "all work and no play ".repeat(prompt / 21 + 1);
    let body = json!({"model": MODEL, "max_tokens": tokens, "stream": stream,
        "messages": [{"role": "user", "content": &text[..prompt]}]});
    body.to_string().into()
}

pub(crate) struct Client(SendRequest<Full<Bytes>>);

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self(sender))
    }

    pub(crate) async fn ask(&mut self, body: &Bytes) -> anyhow::Result<Incoming> {
        let request = Request::post("/v1/chat/completions")
            .header("host", "gateway")
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))?;
        self.0.ready().await?;
        let response = tokio::time::timeout(PATIENCE, self.0.send_request(request)).await??;
        ensure!(response.status().is_success(), "status {}", response.status());
        Ok(response.into_body())
    }

    /// Ask and read all of the answer.
    async fn whole(&mut self, body: &Bytes) -> anyhow::Result<usize> {
        let answer = self.ask(body).await?;
        let bytes = tokio::time::timeout(PATIENCE, answer.collect())
            .await??
            .to_bytes();
        ensure!(!bytes.is_empty(), "an empty answer");
        Ok(bytes.len())
    }
}

/// So many clients ask one request after the other: answers, and the gateway's processor time in seconds.
async fn closed(
    options: &Options,
    body: &Bytes,
    clients: usize,
    time: Duration,
) -> anyhow::Result<(u64, f64)> {
    let answers = Arc::new(AtomicU64::new(0));
    let before = usage::processor_time(options.pid)?;
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (answers, body, gateway) = (Arc::clone(&answers), body.clone(), options.gateway);
        tasks.spawn(async move {
            let mut client = Client::connect(gateway).await?;
            while Instant::now() < end {
                client.whole(&body).await?;
                answers.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let used = usage::processor_time(options.pid)?.saturating_sub(before);
    Ok((answers.load(Ordering::Relaxed), used.as_secs_f64().max(0.01)))
}

/// Requests at even times.
async fn open(address: SocketAddr, body: &Bytes, rate: u64, seconds: u64) -> anyhow::Result<Times> {
    let schedule = Schedule {
        address,
        body: body.clone(),
        rate,
        seconds,
    };
    tokio::task::spawn_blocking(move || paced::ask(&schedule)).await?
}

/// Memory for streams that are open and wait.
async fn held(options: &Options) -> anyhow::Result<Value> {
    let body = body(1_000, mock::HELD, true);
    let before = usage::resident(options.pid)?;
    let mut open = Vec::new();
    for _ in 0..options.streams {
        let mut client = Client::connect(options.gateway).await?;
        let mut answer = client.ask(&body).await?;
        tokio::time::timeout(PATIENCE, answer.frame())
            .await?
            .context("no piece came")??;
        open.push((client, answer));
    }
    let after = usage::resident(options.pid)?;
    let each = after.saturating_sub(before) / options.streams.max(1) as u64;
    Ok(json!({"count": open.len(), "bytesEach": each, "residentBefore": before, "residentAfter": after}))
}
