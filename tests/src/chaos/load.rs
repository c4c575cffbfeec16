//! 64 streams, each followed by the next at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::answer::Answer;
use super::client;
use super::request::{STREAMS, request};
use super::table::{Death, Ended, Ending};

/// Between two looks for a gateway.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// What the suite asks for when nothing disturbs it must be answered within this, times what a loaded machine needs.
const UNDISTURBED: Duration = Duration::from_secs(600);

/// What everything of a run shares.
#[derive(Debug)]
pub(super) struct Shared {
    /// The start of the run.
    pub(super) start: Instant,
    /// Pods and addresses of gateways, as last seen.
    pub(super) gateways: watch::Sender<BTreeMap<String, SocketAddr>>,
    /// Ends of gateways.
    pub(super) deaths: watch::Sender<Vec<Death>>,
    /// Tokens that have come, over all streams.
    pub(super) tokens: AtomicU64,
    stop: AtomicBool,
    ended: Mutex<Vec<Ended>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            gateways: watch::Sender::new(BTreeMap::new()),
            deaths: watch::Sender::new(Vec::new()),
            tokens: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            ended: Mutex::new(Vec::new()),
        }
    }

    /// A stream that ends now is the last one of its kind.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Takes the streams that have ended.
    pub(super) fn take_ended(&self) -> Vec<Ended> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn add(&self, ended: Ended) {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(ended);
    }
}

/// What is asked of which model.
#[derive(Clone, Debug)]
pub(super) struct Questions {
    pub(super) model: String,
    /// Tokens of each answer.
    pub(super) tokens: u32,
}

impl Questions {
    fn of(&self, stream: usize) -> Value {
        request(&self.model, stream, self.tokens)
    }
}

/// Runs until [`Shared::stop`] and the end of what runs then.
pub(super) async fn load(shared: Arc<Shared>, questions: Questions) {
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS {
        let (shared, body) = (Arc::clone(&shared), questions.of(stream));
        streams.spawn(async move {
            while !shared.stops() {
                if let Some(ended) = once(&shared, stream, &body).await {
                    shared.add(ended);
                }
            }
        });
    }
    streams.join_all().await;
}

/// Every stream once, at the same time: what they answer.
///
/// # Errors
/// One of them is not whole.
pub(super) async fn all_once(shared: Arc<Shared>, questions: &Questions) -> Result<Vec<Answer>> {
    let mut streams = JoinSet::new();
    for stream in 0..STREAMS {
        let (shared, body) = (Arc::clone(&shared), questions.of(stream));
        streams.spawn(async move {
            let begin = Instant::now();
            loop {
                let ended = once(&shared, stream, &body).await;
                if ended.is_some() || begin.elapsed() > UNDISTURBED {
                    return (stream, ended);
                }
            }
        });
    }
    let mut all = vec![Answer::default(); STREAMS];
    while let Some(joined) = streams.join_next().await {
        let (stream, ended) = joined?;
        let Some(ended) = ended else {
            anyhow::bail!("no gateway takes stream {stream}");
        };
        let answer = ended.answer;
        ensure!(
            ended.ending == Ending::Closed && answer.done && answer.count == u64::from(questions.tokens),
            "undisturbed stream {stream} ended with {:?} after {answer:?}",
            ended.ending
        );
        ensure!(answer.breach.is_none(), "undisturbed stream {stream}: {answer:?}");
        if let Some(place) = all.get_mut(stream) {
            *place = answer;
        }
    }
    Ok(all)
}

/// One stream from a ready gateway; `None` when there is none, or it takes no connection.
async fn once(shared: &Shared, stream: usize, body: &Value) -> Option<Ended> {
    let gateways: Vec<SocketAddr> = shared.gateways.borrow().values().copied().collect();
    let gateway = gateways.get(stream % gateways.len().max(1)).copied();
    let ready = match gateway {
        Some(gateway) => client::is_ready(gateway).await.then_some(gateway),
        None => None,
    };
    let Some(gateway) = ready else {
        tokio::time::sleep(LOOK_AGAIN).await;
        return None;
    };
    let began = shared.start.elapsed();
    let (ending, answer) = client::stream(gateway, body, &shared.tokens, shared.deaths.subscribe()).await?;
    let ended = shared.start.elapsed();
    Some(Ended {
        stream,
        gateway,
        began,
        ended,
        ending,
        answer,
    })
}
