//! One subscription per peer. A stream that breaks is opened again with backoff; what came last stays known, with its time, so that
//! the decisions can tell fresh from stale.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
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

impl<M> Received<M> {
    /// When the peer was last known to be there: now, while the stream is open.
    #[must_use]
    pub fn alive_at(&self, now: Timestamp) -> Timestamp {
        self.broken_at.unwrap_or(now)
    }
}

/// Subscriptions to a changing set of peers, by a key such as the pod's uid.
pub struct Pool<S: Subscribe> {
    peers: HashMap<String, Peer<S::Message>>,
    wake: Wake,
}

struct Peer<M> {
    address: String,
    channel: Channel,
    latest: Arc<Mutex<Option<Received<M>>>>,
    task: JoinHandle<()>,
}

impl<M> Drop for Peer<M> {
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
            wake,
        }
    }

    /// Subscribes to exactly these peers: key and `ip:port`. A peer whose address changed is a new one.
    pub fn set_peers(&mut self, wanted: impl IntoIterator<Item = (String, String)>) {
        let wanted: HashMap<String, String> = wanted.into_iter().collect();
        self.peers
            .retain(|key, peer| wanted.get(key) == Some(&peer.address));
        for (key, address) in wanted {
            if self.peers.contains_key(&key) {
                continue;
            }
            let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else {
                debug!(%address, "not an address");
                continue;
            };
            let channel = endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .connect_lazy();
            let latest = Arc::new(Mutex::new(None));
            let task = tokio::spawn(follow::<S>(
                channel.clone(),
                Arc::clone(&latest),
                self.wake.clone(),
                address.clone(),
            ));
            self.peers.insert(
                key,
                Peer {
                    address,
                    channel,
                    latest,
                    task,
                },
            );
        }
    }

    /// What the peer said last.
    #[must_use]
    pub fn latest(&self, key: &str) -> Option<Received<S::Message>> {
        self.peers.get(key).and_then(|peer| lock(&peer.latest).clone())
    }

    /// What every peer said last, those without a message left out.
    pub fn all(&self) -> impl Iterator<Item = Received<S::Message>> + '_ {
        self.peers.values().filter_map(|peer| lock(&peer.latest).clone())
    }

    /// Whether there is a subscription to this peer.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.peers.contains_key(key)
    }

    /// Connections to all peers by key, for other calls.
    pub fn channels(&self) -> impl Iterator<Item = (String, Channel)> + '_ {
        self.peers
            .iter()
            .map(|(key, peer)| (key.clone(), peer.channel.clone()))
    }

    /// Number of peers, and of those whose stream is open.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (
            self.peers.len(),
            self.all().filter(|received| received.broken_at.is_none()).count(),
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow<S: Subscribe>(
    channel: Channel,
    latest: Arc<Mutex<Option<Received<S::Message>>>>,
    wake: Wake,
    address: String,
) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        match tokio::time::timeout(SUBSCRIBE_TIMEOUT, S::subscribe(channel.clone())).await {
            Ok(Ok(mut stream)) => loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        backoff = FIRST_BACKOFF;
                        *lock(&latest) = Some(Received {
                            message,
                            at: Timestamp::now(),
                            broken_at: None,
                        });
                        wake.wake();
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
        let broke = lock(&latest)
            .as_mut()
            .filter(|last| last.broken_at.is_none())
            .map(|last| last.broken_at = Some(Timestamp::now()));
        if broke.is_some() {
            wake.wake();
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
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
        pool.set_peers([("uid".to_owned(), address)]);

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

        streams.recv().await.unwrap().send(Ok(sample(2))).await.unwrap();
        wake.woken().await;
        assert_eq!(
            pool.all().map(|received| received.message).collect::<Vec<_>>(),
            [sample(2)]
        );

        pool.set_peers([]);
        assert_eq!(pool.latest("uid"), None);
        server.abort();
    }
}
