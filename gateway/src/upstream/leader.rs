//! One leader: its connection, how loaded it is, and whether it failed lately.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::uri::PathAndQuery;
use llamero_identity::connect::Link;
use llamero_proto::v1::{
    CompletionChunk, CompletionRequest, LoadRequest, LoadSample, completion_client::CompletionClient,
    telemetry_client::TelemetryClient,
};
use llamero_settings::limits::MAX_ANSWER_BYTES;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::balance::{Candidate, FULL};
use super::codec::CompletionCodec;
use super::dialler::LeaderPod;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A dead node sends nothing, not even a reset: after this silence a ping is sent, and `PING_TIMEOUT` later the
/// connection counts as broken.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What a leader may send of one answer before it is read. Some hundred tokens: a client that does not read soon stops
/// its own answer.
const STREAM_WINDOW: u32 = 32 << 10;
/// The same for all answers of a leader together. It has room for 2,048 that are not read, more than an engine runs, so
/// that clients that do not read never hold up others.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// A leader that failed is avoided this long, doubled with every failure in a row.
const AVOID_FIRST: Duration = Duration::from_millis(200);
const AVOID_MOST: Duration = Duration::from_secs(5);
/// Pause before the load stream is opened again.
const TELEMETRY_RETRY: Duration = Duration::from_secs(1);
/// A sample older than this says nothing.
const STALE: Duration = Duration::from_secs(5);

/// The leader of a group that serves.
#[derive(Debug)]
pub struct Leader {
    address: String,
    model: String,
    expected: Option<LeaderPod>,
    channel: Channel,
    load: Arc<Mutex<Load>>,
    telemetry: AbortHandle,
}

#[derive(Debug, Default)]
struct Load {
    /// Requests of this gateway.
    own: u32,
    /// Requests of others at the last sample, and when that was.
    others: Option<(u32, Instant)>,
    /// Requests that waited at the last sample.
    waiting: u32,
    /// Thousandths of the KV cache that running requests held at the last sample.
    cache: u32,
    draining: bool,
    /// Names of the adapters that it had at the last sample; none before the first.
    adapters: Option<Vec<String>>,
    failures: u32,
    avoid_until: Option<Instant>,
}

impl Load {
    /// Whether the last sample still says something.
    fn is_fresh(&self, now: Instant) -> bool {
        self.others.is_some_and(|(_, at)| now.duration_since(at) < STALE)
    }

    /// Whether requests wait there, or the next one would have to for want of KV cache, if that is known.
    fn queue(&self, now: Instant) -> bool {
        self.is_fresh(now) && (self.waiting > 0 || self.cache >= FULL)
    }

    /// Thousandths of the KV cache that are held, if that is known.
    fn cache(&self, now: Instant) -> u32 {
        if self.is_fresh(now) { self.cache } else { 0 }
    }
}

impl Leader {
    /// Dial `ip:port` in plain text: see [`Self::dial`].
    ///
    /// # Errors
    /// When the address does not make a URI.
    pub fn connect(address: &str) -> Result<Arc<Self>, tonic::transport::Error> {
        Self::dial(address, "", &Link::Plain, None)
    }

    /// Dial `ip:port`, lazily, and follow its load. One HTTP/2 connection carries everything. `model` is the name that it serves under, `expected` who must
    /// answer, as `link` knows.
    ///
    /// # Errors
    /// When the address does not make a URI.
    pub fn dial(
        address: &str,
        model: &str,
        link: &Link,
        expected: Option<LeaderPod>,
    ) -> Result<Arc<Self>, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = link.channel(&endpoint);
        let load = Arc::new(Mutex::new(Load::default()));
        let telemetry = tokio::spawn(follow(channel.clone(), Arc::clone(&load))).abort_handle();
        Ok(Arc::new(Self {
            address: address.to_owned(),
            model: model.to_owned(),
            expected,
            channel,
            load,
            telemetry,
        }))
    }

    /// `ip:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The name of its model there. A request that says it is refused by whoever has come to the address since.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Whose certificate it must show; none: it is reached in plain text.
    #[must_use]
    pub fn expected(&self) -> Option<&LeaderPod> {
        self.expected.as_ref()
    }

    /// The shared connection.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A client on the shared connection. It takes the longest answer that a worker sends, which is more than gRPC lets in by itself.
    #[must_use]
    pub fn completion(&self) -> CompletionClient<Channel> {
        CompletionClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Ask for an answer. The request is not copied, but encoded from where it is.
    ///
    /// # Errors
    /// As the leader says; UNAVAILABLE when there is no way to it.
    pub async fn complete(
        &self,
        request: tonic::Request<Arc<CompletionRequest>>,
    ) -> Result<tonic::Response<Streaming<CompletionChunk>>, Status> {
        let codec = CompletionCodec::of(request.get_ref());
        let mut client = Grpc::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
        let ready = client.ready().await;
        ready.map_err(|error| Status::unavailable(format!("there is no way to the leader: {error}")))?;
        let path = PathAndQuery::from_static("/llamero.v1.Completion/Complete");
        client.server_streaming(request, path, codec).await
    }

    /// Requests running and waiting there: our own exactly, those of others as of the last sample.
    #[must_use]
    pub fn load(&self, now: Instant) -> u32 {
        let load = lock(&self.load);
        let others = load
            .others
            .filter(|&(_, at)| now.duration_since(at) < STALE)
            .map_or(0, |(others, _)| others);
        load.own.saturating_add(others)
    }

    /// Requests of this gateway that run there.
    #[must_use]
    pub fn own(&self) -> u32 {
        lock(&self.load).own
    }

    /// What a choice among several needs to know.
    #[must_use]
    pub fn candidate(&self, now: Instant) -> Candidate<'_> {
        // The lock is held by one of these at a time: a temporary would hold it to the end of the expression.
        let (queue, cache) = {
            let load = lock(&self.load);
            (load.queue(now), load.cache(now))
        };
        Candidate {
            address: &self.address,
            load: self.load(now),
            queue,
            cache,
            draining: self.draining(),
        }
    }

    /// Whether it takes no new requests, as of its last sample.
    #[must_use]
    pub fn draining(&self) -> bool {
        lock(&self.load).draining
    }

    /// The adapters that requests may ask for there, as of its last sample; none before the first.
    #[must_use]
    pub fn adapters(&self) -> Option<Vec<String>> {
        lock(&self.load).adapters.clone()
    }

    /// Until when it is better left alone.
    #[must_use]
    pub fn avoid_until(&self) -> Option<Instant> {
        lock(&self.load).avoid_until
    }

    /// Count a request until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Running {
        lock(&self.load).own += 1;
        Running {
            leader: Arc::clone(self),
        }
    }

    /// It answered: trust it again.
    pub fn succeeded(&self) {
        let mut load = lock(&self.load);
        load.failures = 0;
        load.avoid_until = None;
    }

    /// It failed: avoid it for a while.
    pub fn failed(&self, now: Instant) {
        let mut load = lock(&self.load);
        let pause = AVOID_FIRST
            .saturating_mul(1 << load.failures.min(10))
            .min(AVOID_MOST);
        load.failures = load.failures.saturating_add(1);
        load.avoid_until = Some(now + pause);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.telemetry.abort();
    }
}

/// A request that runs on a leader.
#[derive(Debug)]
pub struct Running {
    leader: Arc<Leader>,
}

impl Running {
    /// Where it runs.
    #[must_use]
    pub fn leader(&self) -> &Arc<Leader> {
        &self.leader
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut load = lock(&self.leader.load);
        load.own = load.own.saturating_sub(1);
    }
}

/// Follow the load stream for ever. Its failures are not failures of requests: the leader then only counts as unloaded
/// by others.
async fn follow(channel: Channel, load: Arc<Mutex<Load>>) {
    loop {
        let mut client = TelemetryClient::new(channel.clone());
        if let Ok(response) = client.watch(LoadRequest { interval_millis: 500 }).await {
            let mut samples = response.into_inner();
            while let Ok(Some(sample)) = samples.message().await {
                take(&load, &sample);
            }
        }
        tokio::time::sleep(TELEMETRY_RETRY).await;
    }
}

fn take(load: &Mutex<Load>, sample: &LoadSample) {
    let mut load = lock(load);
    let total = sample.running.saturating_add(sample.waiting);
    load.others = Some((total.saturating_sub(load.own), Instant::now()));
    load.waiting = sample.waiting;
    let (used, total) = (
        u64::from(sample.kv_blocks_used),
        u64::from(sample.kv_blocks_total),
    );
    load.cache = u32::try_from((used * 1000).checked_div(total).unwrap_or(0)).unwrap_or(u32::MAX);
    load.draining = sample.draining;
    if load.adapters.as_ref() != Some(&sample.adapters) {
        load.adapters = Some(sample.adapters.clone());
    }
}

/// Nothing panics while it holds the lock, and the numbers are valid at every time.
fn lock(load: &Mutex<Load>) -> MutexGuard<'_, Load> {
    load.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn own_requests_are_not_counted_twice() {
        let leader = Leader::connect("127.0.0.1:9").unwrap();
        let now = Instant::now();
        let first = leader.begin();
        let second = leader.begin();
        take(
            &leader.load,
            &LoadSample {
                running: 4,
                waiting: 1,
                ..LoadSample::default()
            },
        );
        assert_eq!(leader.load(now), 5);
        drop(first);
        assert_eq!(leader.load(now), 4);
        drop(second);
        assert_eq!(leader.load(now), 3);
        assert_eq!(leader.load(now + STALE * 2), 0);
    }

    #[tokio::test]
    async fn a_cache_that_is_nearly_full_counts_as_a_queue_for_a_while() {
        let leader = Leader::connect("127.0.0.1:9").unwrap();
        let told = |used: u32, total: u32| {
            let sample = LoadSample {
                kv_blocks_used: used,
                kv_blocks_total: total,
                ..LoadSample::default()
            };
            take(&leader.load, &sample);
            let now = Instant::now();
            let (fresh, stale) = (leader.candidate(now), leader.candidate(now + STALE));
            assert_eq!((stale.queue, stale.cache), (false, 0));
            (fresh.queue, fresh.cache)
        };
        assert_eq!(told(0, 0), (false, 0));
        assert_eq!(told(94, 100), (false, 940));
        assert_eq!(told(95, 100), (true, 950));
    }

    #[tokio::test]
    async fn pauses_grow_and_end_with_success() {
        let leader = Leader::connect("127.0.0.1:9").unwrap();
        let now = Instant::now();
        leader.failed(now);
        assert_eq!(leader.avoid_until(), Some(now + AVOID_FIRST));
        leader.failed(now);
        assert_eq!(leader.avoid_until(), Some(now + AVOID_FIRST * 2));
        for _ in 0..40 {
            leader.failed(now);
        }
        assert_eq!(leader.avoid_until(), Some(now + AVOID_MOST));
        leader.succeeded();
        assert_eq!(leader.avoid_until(), None);
    }
}
