//! Thousands of streams for minutes, while leaders are killed, clients go away and others read slowly. Every stream that its client stays for must end
//! with the text of an undisturbed one.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use llamero_settings::hash::{GOLDEN, mix};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::load::Client;
use super::{MODEL, mock, usage};

/// Between two tokens of a stream.
pub(crate) const PACE: Duration = Duration::from_millis(100);
const GATEWAY: &str = "127.0.0.1:18120";
const LEADERS: [&str; 3] = ["127.0.0.1:18121", "127.0.0.1:18122", "127.0.0.1:18123"];
/// A leader is killed so often, and is away so long.
const KILLS: Duration = Duration::from_secs(15);
const AWAY: Duration = Duration::from_secs(2);
/// Nothing comes for so long only if a stream is lost.
const PATIENCE: Duration = Duration::from_secs(90);
/// Fewest and most tokens of an answer.
const TOKENS: (u64, u64) = (50, 400);

/// What is to be done.
pub(crate) struct Options {
    seconds: u64,
    streams: u64,
    seed: u64,
}

impl Options {
    /// `SECONDS STREAMS SEED`.
    ///
    /// # Errors
    /// One is missing, or is no number.
    pub(crate) fn read(arguments: &[String]) -> anyhow::Result<Self> {
        let [seconds, streams, seed] = arguments else {
            anyhow::bail!("say SECONDS STREAMS SEED");
        };
        Ok(Self {
            seconds: seconds.parse()?,
            streams: streams.parse()?,
            seed: seed.parse()?,
        })
    }
}

/// A process of this program that ends with its owner.
struct Process(Child);

impl Process {
    fn start(words: &[&str]) -> anyhow::Result<Self> {
        let child = Command::new(std::env::current_exe()?).args(words).spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Numbers that look random, the same for the same seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0) % bound
    }
}

#[derive(Default)]
struct Counts {
    whole: AtomicU64,
    left: AtomicU64,
    slow: AtomicU64,
    kills: AtomicU64,
}

/// Run it and tell what came of it.
///
/// # Errors
/// A stream is lost or has another text, or memory grows.
pub(crate) async fn run(options: &Options) -> anyhow::Result<Value> {
    let leader = |address: &str| Process::start(&["leader", address]);
    let mut leaders: Vec<Process> = LEADERS.into_iter().map(leader).collect::<Result<_, _>>()?;
    let gateway = Process::start(&[&["gateway", GATEWAY][..], &LEADERS].concat())?;
    let address: SocketAddr = GATEWAY.parse()?;
    let end = Instant::now() + Duration::from_secs(options.seconds);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        ensure!(Instant::now() < end, "the gateway does not listen");
        tokio::time::sleep(PACE).await;
    }
    let counts = Arc::new(Counts::default());
    let mut clients = JoinSet::new();
    for number in 0..options.streams {
        let random = Random(options.seed ^ mix(number));
        clients.spawn(client(address, random, Arc::clone(&counts), end));
    }
    let mut random = Random(options.seed);
    let (mut memory, mut next, mut away) = (Vec::new(), Instant::now() + KILLS, None);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = second.tick() => {}
            ended = clients.join_next() => match ended {
                Some(ended) => ended??,
                None => break,
            },
        }
        if Instant::now() < end {
            memory.push(usage::resident(gateway.0.id())?);
        }
        match away {
            None if Instant::now() > next && Instant::now() < end => {
                let chosen = random.below(LEADERS.len() as u64) as usize;
                leaders[chosen].0.kill()?;
                counts.kills.fetch_add(1, Ordering::Relaxed);
                away = Some((chosen, Instant::now() + AWAY));
            }
            Some((chosen, until)) if Instant::now() > until => {
                leaders[chosen] = leader(LEADERS[chosen])?;
                (away, next) = (None, Instant::now() + KILLS);
            }
            _ => {}
        }
    }
    let figures = figures(options, &counts, &memory)?;
    let (early, late) = (&figures["residentEarly"], &figures["residentLate"]);
    let flat = late.as_u64() <= early.as_u64().map(|early| early + early / 10 + (8 << 20));
    ensure!(flat, "memory grows: {figures}");
    Ok(figures)
}

/// The most memory between a third and a half of the time, and in the last sixth of it.
fn figures(options: &Options, counts: &Counts, memory: &[u64]) -> anyhow::Result<Value> {
    let most = |from: usize, to: usize| {
        let part = memory.get(memory.len() * from / 6..memory.len() * to / 6);
        part.and_then(|part| part.iter().max())
            .context("it was too short to tell about memory")
    };
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Ok(
        json!({"seconds": options.seconds, "streams": options.streams, "seed": options.seed, "whole": count(&counts.whole),
        "leftByClients": count(&counts.left), "slowReaders": count(&counts.slow), "killedLeaders": count(&counts.kills),  "residentEarly": most(2, 3)?, "residentLate": most(5, 6)?}),
    )
}

/// Asks again and again until the time is over.
async fn client(
    address: SocketAddr,
    mut random: Random,
    counts: Arc<Counts>,
    end: Instant,
) -> anyhow::Result<()> {
    while Instant::now() < end {
        let tokens = TOKENS.0 + random.below(TOKENS.1 - TOKENS.0);
        let kind = random.below(10);
        let reader = Reader {
            leaves: (kind < 2).then(|| random.below(tokens)),
            is_slow: kind == 2,
        };
        let body = json!({"model": MODEL, "max_tokens": tokens, "stream": true, "seed": 1,
            "messages": [{"role": "user", "content": format!("{tokens} tokens, please.")}]});
        let mut client = Client::connect(address).await?;
        let answer = client.ask(&body.to_string().into()).await?;
        match reader.read(answer).await? {
            Some(text) => {
                let expected: String = (1..=tokens).map(|number| mock::numbered(number as u32)).collect();
                ensure!(text == expected, "a text is {text:?}, not {expected:?}");
                counts.whole.fetch_add(1, Ordering::Relaxed);
                counts.slow.fetch_add(reader.is_slow.into(), Ordering::Relaxed);
            }
            None => drop(counts.left.fetch_add(1, Ordering::Relaxed)),
        }
    }
    Ok(())
}

struct Reader {
    /// Goes away behind so many events.
    leaves: Option<u64>,
    /// Reads nothing for a while now and then.
    is_slow: bool,
}

impl Reader {
    /// The text of a whole answer; none: the client has left it.
    async fn read(&self, mut answer: Incoming) -> anyhow::Result<Option<String>> {
        let (mut held, mut text, mut events) = (Vec::new(), String::new(), 0_u64);
        loop {
            let frame = tokio::time::timeout(PATIENCE, answer.frame()).await;
            let frame = frame
                .context("a stream stands still")?
                .context("a stream ended early")??;
            held.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new()));
            while let Some(length) = held.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = held.drain(..length + 2).collect();
                let data = event.strip_prefix(b"data: ").context("an event is no data")?;
                if data.starts_with(b"[DONE]") {
                    return Ok(Some(text));
                }
                let event: Value = serde_json::from_slice(data)?;
                ensure!(event["error"].is_null(), "a stream ended with {event}");
                text.push_str(
                    event["choices"][0]["delta"]["content"]
                        .as_str()
                        .unwrap_or_default(),
                );
                events += 1;
                if self.leaves.is_some_and(|leaves| events > leaves) {
                    return Ok(None);
                }
                if self.is_slow && events.is_multiple_of(60) {
                    tokio::time::sleep(PACE * 50).await;
                }
            }
        }
    }
}
