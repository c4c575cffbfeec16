//! Letting requests in: here for keys whose books are here, else by asking.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use axum::http::StatusCode;
use llamero_identity::connect::Link;
use llamero_proto::v1::{AdmitReply, AdmitRequest, Limit, Running, SettleRequest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::peers::{Keeper, Peers};
use crate::error::ApiError;
use crate::keys::{Key, Limits};

/// How often gateways hear of requests that run elsewhere; see the ledger's patience.
const REFRESH: Duration = Duration::from_secs(10);

/// The limits of all keys.
#[derive(Debug)]
pub struct Quotas {
    /// The books of keys that are kept here.
    pub ledger: Ledger,
    /// Longest time that a request waits for the gateway that keeps its key's books.
    patience: Duration,
    /// How other gateways are reached.
    link: Link,
    peers: RwLock<Arc<Peers>>,
    /// Requests that run here, by key.
    running: Mutex<HashMap<String, (Limits, u32)>>,
    sequence: AtomicU64,
}

/// A request that was let in. Dropping it ends the request.
#[derive(Debug)]
pub struct Admission {
    quotas: Arc<Quotas>,
    key: Arc<Key>,
    charged: u64,
    used: u64,
    /// What is left of the limits.
    pub reply: AdmitReply,
}

impl Quotas {
    /// Of a gateway that is alone until it hears of others. A request waits up to `patience` for the one that keeps its
    /// key's books.
    #[must_use]
    pub fn new(patience: Duration, link: Link) -> Arc<Self> {
        Arc::new(Self {
            ledger: Ledger::new(),
            patience,
            link,
            peers: RwLock::default(),
            running: Mutex::default(),
            sequence: AtomicU64::new(1),
        })
    }

    /// The gateways that are ready, `own` among them.
    pub fn set_peers(&self, own: &str, addresses: &[String]) {
        let before = self.peers();
        let after = Peers::new(own, addresses, &before, &self.link);
        if after.same(&before) {
            return;
        }
        let here = |peers: &Peers, key: &str| matches!(peers.keeper(key), Keeper::Here);
        if before.count() > 1 || after.count() > 1 {
            let ours = |key: &str| here(&before, key) && here(&after, key);
            self.ledger.hand_over(ours, Instant::now());
        }
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
    }

    /// Let a request in that is likely to take `tokens`.
    ///
    /// # Errors
    /// 429 with the time after which another try makes sense.
    pub async fn admit(self: &Arc<Self>, key: &Arc<Key>, tokens: u64) -> Result<Admission, ApiError> {
        let charged = tokens.min(key.limits.tokens_per_minute.unwrap_or(u64::MAX));
        let ask = AdmitRequest {
            key: key.name.clone(),
            tokens: charged,
            running: Some(self.change(key, |count| *count += 1)),
        };
        let mut admission = Admission {
            quotas: Arc::clone(self),
            key: Arc::clone(key),
            charged: 0,
            used: 0,
            reply: AdmitReply::default(),
        };
        if key.limits.are_none() {
            return Ok(admission);
        }
        let reply = self.ask(ask, &key.limits).await;
        if reply.refused_by() != Limit::None {
            return Err(refusal(key, reply));
        }
        (admission.charged, admission.used) = (charged, charged);
        admission.reply = reply;
        Ok(admission)
    }

    async fn ask(&self, ask: AdmitRequest, limits: &Limits) -> AdmitReply {
        let peers = self.peers();
        let Keeper::There(mut keeper) = peers.keeper(&ask.key) else {
            return self.ledger.admit(&ask, limits, Instant::now());
        };
        match tokio::time::timeout(self.patience, keeper.admit(ask.clone())).await {
            Ok(Ok(reply)) => reply.into_inner(),
            failed => {
                let why = match failed {
                    Ok(Err(status)) => status.to_string(),
                    _ => "no answer in time".to_owned(),
                };
                tracing::warn!(
                    key = ask.key,
                    why,
                    "the gateway that keeps a key's books cannot be asked; its share of the limits holds here"
                );
                self.ledger
                    .admit(&ask, &share(limits, peers.count()), Instant::now())
            }
        }
    }

    fn settle(&self, key: &Arc<Key>, tokens: i64) {
        let running = self.change(key, |count| *count = count.saturating_sub(1));
        if key.limits.are_none() {
            return;
        }
        self.tell(key.name.clone(), &key.limits, tokens, running);
    }

    /// Tell the keeper of a key, without waiting for it.
    fn tell(&self, key: String, limits: &Limits, tokens: i64, running: Running) {
        let Keeper::There(mut keeper) = self.peers().keeper(&key) else {
            return self.ledger.settle(&key, limits, tokens, running, Instant::now());
        };
        let request = SettleRequest {
            key,
            tokens,
            running: Some(running),
        };
        let patience = self.patience;
        let told = async move {
            let told = tokio::time::timeout(patience, keeper.settle(request)).await;
            if !matches!(told, Ok(Ok(_))) {
                tracing::debug!("the gateway that keeps a key's books was not told of a request's end");
            }
        };
        // At the very end of the process there is nobody left to tell.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(told);
        }
    }

    /// Tell the keepers of all keys now and then what runs here: they may be new, or have missed an end.
    pub async fn refresh(self: Arc<Self>, stop: CancellationToken) {
        let told = async {
            loop {
                tokio::time::sleep(REFRESH).await;
                let keys: Vec<(String, Limits, u32)> = self
                    .lock()
                    .iter()
                    .map(|(key, (limits, count))| (key.clone(), *limits, *count))
                    .collect();
                for (key, limits, count) in keys {
                    let running = self.running(count);
                    self.tell(key, &limits, 0, running);
                }
                // Told once that nothing runs, a keeper need not hear it again.
                self.lock().retain(|_, (_, count)| *count > 0);
            }
        };
        stop.run_until_cancelled(told).await;
    }

    fn change(&self, key: &Key, change: impl FnOnce(&mut u32)) -> Running {
        let mut all = self.lock();
        let (limits, count) = all.entry(key.name.clone()).or_insert((key.limits, 0));
        *limits = key.limits;
        change(count);
        // Within the lock, so that a larger sequence always has the newer count.
        self.running(*count)
    }

    fn running(&self, count: u32) -> Running {
        Running {
            gateway: self.peers().own().to_owned(),
            count,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(crate) fn peers(&self) -> Arc<Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing panics while it holds the lock, and the numbers are valid at every time.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Limits, u32)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// What the request has taken so far.
    pub fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let signed = |tokens: u64| i64::try_from(tokens).unwrap_or(i64::MAX);
        let correction = signed(self.used).saturating_sub(signed(self.charged));
        self.quotas.settle(&self.key, correction);
    }
}

/// What one of several gateways admits by itself. Never nothing: who asks often enough gets through.
fn share(limits: &Limits, gateways: usize) -> Limits {
    let gateways = u64::try_from(gateways).unwrap_or(u64::MAX);
    let concurrency = |most: u32| u32::try_from(u64::from(most) / gateways).unwrap_or(most).max(1);
    Limits {
        requests_per_minute: limits.requests_per_minute.map(|most| (most / gateways).max(1)),
        tokens_per_minute: limits.tokens_per_minute.map(|most| (most / gateways).max(1)),
        concurrency: limits.concurrency.map(concurrency),
    }
}

fn refusal(key: &Key, reply: AdmitReply) -> ApiError {
    let limits = &key.limits;
    let (kind, what) = match reply.refused_by() {
        Limit::Tokens => (
            "tokens",
            format!("{} tokens a minute", limits.tokens_per_minute.unwrap_or(0)),
        ),
        Limit::Concurrency => (
            "concurrency",
            format!("{} requests at once", limits.concurrency.unwrap_or(0)),
        ),
        Limit::Requests | Limit::None => (
            "requests",
            format!("{} requests a minute", limits.requests_per_minute.unwrap_or(0)),
        ),
    };
    let seconds = reply.retry_after_millis.div_ceil(1000).max(1);
    ApiError {
        status: StatusCode::TOO_MANY_REQUESTS,
        kind,
        code: Some("rate_limit_exceeded"),
        retry_after: Some(seconds),
        limits: Some(Box::new(reply)),
        ..ApiError::invalid(
            None,
            format!(
                "The API key '{}' may have {what}; try again in {seconds} s.",
                key.name
            ),
        )
    }
}
