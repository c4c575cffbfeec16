//! One subscription per peer. A stream that breaks is opened again with backoff; what came last stays known, with its time, so that
//! the decisions can tell fresh from stale.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use llamero_identity::connect::Link;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tracing::debug;

use super::subscribe::Subscribe;
use crate::wake::Wake;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(2);

/// A message and when it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// When it came, by our clock.
    pub at: Timestamp,
    /// When the stream that brought it broke; absent while it is open. Keep-alives break a stream whose peer is silent for six seconds.
    pub broken_at: Option<Timestamp>,
}

/// Subscriptions to a changing set of peers, by a key such as the pod's uid.
pub struct Pool<S: Subscribe> {
    peers: HashMap<String, Peer<S::Message>>,
    changed: Arc<Mutex<HashSet<String>>>,
    wake: Wake,
}

impl<M> Received<M> {
    /// What was noted by a clock that was ahead and is right again counts as of now: else a peer would look alive until then.
    fn not_ahead(&mut self, now: Timestamp) -> &Self {
        self.at = self.at.min(now);
        self.broken_at = self.broken_at.map(|at| at.min(now));
        self
    }
}

type Latest<M> = Arc<Mutex<Option<Received<M>>>>;

struct Peer<M> {
    address: String,
    latest: Latest<M>,
    /// Since when it is listened to, by a clock that may have gone back since.
    since: Mutex<Timestamp>,
    /// Absent while it is not listened to.
    open: Option<Open>,
}

struct Open {
    channel: Channel,
    task: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<S: Subscribe> Pool<S> {
    /// A pool without peers.
    #[must_use]
    pub fn new(wake: Wake) -> Self {
        Self {
            peers: HashMap::new(),
            changed: Arc::default(),
            wake,
        }
    }

    /// Subscribes to exactly these peers: key and `ip:port`. Whether they are others than before.
    pub fn set_peers(&mut self, wanted: impl IntoIterator<Item = (String, String)>, link: &Link) -> bool {
        let wanted: HashMap<String, String> = wanted.into_iter().collect();
        let before = self.peers.len();
        self.peers.retain(|key, _| wanted.contains_key(key));
        let mut others = self.peers.len() != before;
        for (key, address) in wanted {
            others |= self.want(&key, &address, link, None);
        }
        others
    }

    /// Subscribes to a peer, `ip:port`; one whose address changed is a new one. One that was not listened to was last known to be there at
    /// `alive_at`: what it said last stays until it speaks again. Whether it was not listened to before.
    pub fn want(&mut self, key: &str, address: &str, link: &Link, alive_at: Option<Timestamp>) -> bool {
        let known = self.peers.get_mut(key).filter(|peer| peer.address == address);
        if known.as_ref().is_some_and(|peer| peer.open.is_some()) {
            return false;
        }
        let latest = known.map(|peer| Arc::clone(&peer.latest)).unwrap_or_default();
        let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else {
            debug!(%address, "not an address");
            return false;
        };
        if let (Some(last), Some(alive_at)) = (lock(&latest).as_mut(), alive_at) {
            (last.at, last.broken_at) = (Timestamp::now(), Some(alive_at));
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = link.channel(&endpoint);
        let listener = Listener::<S> {
            key: key.to_owned(),
            address: address.to_owned(),
            latest: Arc::clone(&latest),
            changed: Arc::clone(&self.changed),
            wake: self.wake.clone(),
        };
        let task = tokio::spawn(listener.follow(channel.clone()));
        let peer = Peer {
            address: address.to_owned(),
            latest,
            since: Mutex::new(Timestamp::now()),
            open: Some(Open { channel, task }),
        };
        self.peers.insert(key.to_owned(), peer);
        true
    }

    /// Listens to a peer no longer; what it said last stays.
    pub fn pause(&mut self, key: &str) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.open = None;
        }
    }

    /// Forgets a peer.
    pub fn drop_peer(&mut self, key: &str) {
        self.peers.remove(key);
    }

    /// What the peer said last.
    #[must_use]
    pub fn latest(&self, key: &str) -> Option<Received<S::Message>> {
        self.peers.get(key).and_then(|peer| latest(&peer.latest))
    }

    /// Since when a peer is listened to; nothing while it is not.
    #[must_use]
    pub fn tried_since(&self, key: &str) -> Option<Timestamp> {
        let peer = self.peers.get(key)?;
        peer.open.as_ref()?;
        let mut since = lock(&peer.since);
        *since = Timestamp::now().min(*since);
        Some(*since)
    }

    /// What every peer said last.
    #[must_use]
    pub fn all(&self) -> Vec<Option<Received<S::Message>>> {
        self.peers.values().map(|peer| latest(&peer.latest)).collect()
    }

    /// Peers that said something, or whose stream broke, since this was asked last.
    pub fn take_changed(&mut self) -> Vec<String> {
        lock(&self.changed).drain().collect()
    }

    /// The connection to a peer that is listened to, for other calls.
    #[must_use]
    pub fn channel(&self, key: &str) -> Option<Channel> {
        Some(self.peers.get(key)?.open.as_ref()?.channel.clone())
    }

    /// Number of peers that are listened to, and of those whose stream is open.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let wanted = || self.peers.values().filter(|peer| peer.open.is_some());
        let open = wanted().filter(|peer| {
            lock(&peer.latest)
                .as_ref()
                .is_some_and(|last| last.broken_at.is_none())
        });
        (wanted().count(), open.count())
    }
}

fn latest<M: Clone>(of: &Latest<M>) -> Option<Received<M>> {
    let mut latest = lock(of);
    latest
        .as_mut()
        .map(|last| last.not_ahead(Timestamp::now()).clone())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens to one peer.
struct Listener<S: Subscribe> {
    key: String,
    address: String,
    latest: Latest<S::Message>,
    changed: Arc<Mutex<HashSet<String>>>,
    wake: Wake,
}

impl<S: Subscribe> Listener<S> {
    async fn follow(self, channel: Channel) {
        let address = &self.address;
        let mut backoff = FIRST_BACKOFF;
        loop {
            match tokio::time::timeout(SUBSCRIBE_TIMEOUT, S::subscribe(channel.clone())).await {
                Ok(Ok(mut stream)) => loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            backoff = FIRST_BACKOFF;
                            self.heard(message);
                        }
                        Ok(None) => break,
                        Err(status) => {
                            debug!(%address, %status, "stream broke");
                            break;
                        }
                    }
                },
                Ok(Err(status)) => debug!(%address, %status, "cannot subscribe yet"),
                Err(_) => debug!(%address, "no answer to a subscription"),
            }
            self.broke();
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Keeps a message; the loop is woken for one that means something beside the last.
    fn heard(&self, message: S::Message) {
        let mut latest = lock(&self.latest);
        let last = latest.as_ref().filter(|last| last.broken_at.is_none());
        let means = last.is_none_or(|last| S::means(&last.message, &message));
        *latest = Some(Received {
            message,
            at: Timestamp::now(),
            broken_at: None,
        });
        drop(latest);
        self.tell(means);
    }

    fn broke(&self) {
        let broke = lock(&self.latest)
            .as_mut()
            .filter(|last| last.broken_at.is_none())
            .map(|last| last.broken_at = Some(Timestamp::now()));
        if broke.is_some() {
            self.tell(true);
        }
    }

    fn tell(&self, means: bool) {
        lock(&self.changed).insert(self.key.clone());
        if means {
            self.wake.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::Stream;
    use llamero_proto::v1::{self, demand_server};
    use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::links::DemandStream;

    // Hands the stream's sending half to the test.
    struct Gateway(tokio::sync::mpsc::Sender<tokio::sync::mpsc::Sender<Result<v1::DemandSample, Status>>>);

    #[tonic::async_trait]
    impl demand_server::Demand for Gateway {
        type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::DemandSample, Status>> + Send>>;

        async fn watch(&self, _: Request<v1::DemandRequest>) -> Result<Response<Self::WatchStream>, Status> {
            let (sender, receiver) = tokio::sync::mpsc::channel(4);
            self.0
                .send(sender)
                .await
                .map_err(|_| Status::unavailable("test over"))?;
            Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
        }
    }

    fn sample(held: u32) -> v1::DemandSample {
        let model = v1::ModelDemand {
            namespace: "n".into(),
            name: "m".into(),
            held,
            in_flight: 0,
            total: 0,
        };
        v1::DemandSample {
            unix_millis: 0,
            models: vec![model],
        }
    }

    #[test]
    fn what_a_clock_ahead_has_noted_counts_as_of_now() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut received = Received {
            message: (),
            at: at(5),
            broken_at: Some(at(90_000)),
        };
        let told = received.not_ahead(at(10)).clone();
        assert_eq!((told.at, told.broken_at), (at(5), Some(at(10))));
        // It was written down, so that it grows old.
        assert_eq!(received.not_ahead(at(60)).broken_at, Some(at(10)));
    }

    #[tokio::test]
    async fn keeps_the_latest_message_and_reopens_a_broken_stream() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (senders, mut streams) = tokio::sync::mpsc::channel(4);
        let server = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(demand_server::DemandServer::new(Gateway(senders)))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let wake = Wake::default();
        let mut pool = Pool::<DemandStream>::new(wake.clone());
        let peer = address.clone();
        assert!(pool.set_peers([("uid".to_owned(), address)], &Link::Plain));

        let tried = pool.tried_since("uid").unwrap();
        assert!(tried <= Timestamp::now() && pool.latest("uid").is_none());
        let stream = streams.recv().await.unwrap();
        stream.send(Ok(sample(1))).await.unwrap();
        wake.woken().await;
        let first = pool.latest("uid").unwrap();
        assert_eq!((first.message, first.broken_at), (sample(1), None));

        drop(stream);
        wake.woken().await;
        let broken = pool.latest("uid").unwrap();
        assert_eq!(broken.message, sample(1));
        assert!(broken.broken_at.is_some_and(|at| at >= broken.at));

        let stream = streams.recv().await.unwrap();
        stream.send(Ok(sample(2))).await.unwrap();
        wake.woken().await;
        assert_eq!(
            pool.all()
                .into_iter()
                .flatten()
                .map(|received| received.message)
                .collect::<Vec<_>>(),
            [sample(2)]
        );

        // It is not listened to for a while: what it said stays, and is not taken for the present when it is asked again.
        assert_eq!(pool.take_changed(), ["uid"]);
        assert_eq!(
            pool.tried_since("uid"),
            Some(tried),
            "a stream that broke is no new try"
        );
        pool.pause("uid");
        assert_eq!(pool.tried_since("uid"), None);
        assert_eq!(
            (pool.counts(), pool.latest("uid").unwrap().broken_at),
            ((0, 0), None)
        );
        let proof = Timestamp::UNIX_EPOCH;
        assert!(
            pool.want("uid", &peer, &Link::Plain, Some(proof))
                && !pool.want("uid", &peer, &Link::Plain, Some(proof))
        );
        let resumed = pool.latest("uid").unwrap();
        assert_eq!((resumed.message, resumed.broken_at), (sample(2), Some(proof)));
        streams.recv().await.unwrap().send(Ok(sample(3))).await.unwrap();
        wake.woken().await;
        assert_eq!(pool.latest("uid").unwrap().message, sample(3));

        assert!(pool.set_peers([], &Link::Plain));
        assert_eq!(pool.latest("uid"), None);
        server.abort();
    }
}
