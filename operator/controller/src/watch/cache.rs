//! One watch, what it shows in short form, our own writes over it, and a barrier that waits until the watch has caught up with them.

use std::{
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt as _,
        utils::{Backoff, ResetTimerBackoff},
        watcher,
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;
use tracing::{info, warn};

use super::entries::{Change, Entries, Held, Listed};
use crate::{build::parts::namespace_of, wake::Wake};

/// A cache of all objects of one kind in the form `T`, in which our own writes stand in for what the watch shows until that has caught up.
///
/// Events of one watch come in the order of their `resourceVersion`, so a cache that has seen version *v* has seen every write up to
/// *v*. Waiting for that before a pass keeps it from deciding on what an earlier one has already changed.
pub struct Cache<K, T = Arc<K>> {
    inner: Arc<Inner<K, T>>,
    seen: channel::Receiver<u64>,
    listed: channel::Receiver<bool>,
}

impl<K, T> Clone for Cache<K, T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            seen: self.seen.clone(),
            listed: self.listed.clone(),
        }
    }
}

struct Inner<K, T> {
    entries: Mutex<Entries<T>>,
    project: Box<dyn Fn(K) -> T + Send + Sync>,
    /// The newest version that we have written.
    written: AtomicU64,
}

/// Watches fail together when the API server restarts; three seconds at most until they are tried again.
#[derive(Clone, Debug)]
struct WatchBackoff(Duration);

impl WatchBackoff {
    const FIRST: Duration = Duration::from_millis(200);
    const LAST: Duration = Duration::from_secs(3);
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LAST);
        Some(pause)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
}

fn backoff() -> impl Backoff {
    ResetTimerBackoff::new(WatchBackoff(WatchBackoff::FIRST), Duration::from_secs(30))
}

impl<K, T> Cache<K, T>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
    T: Clone + PartialEq + Send + 'static,
{
    /// Starts the watch in a task of its own; it runs until the runtime ends. Objects are kept as `project` makes them; what changes
    /// nothing there wakes nobody.
    pub fn start(
        api: Api<K>,
        config: watcher::Config,
        wake: Wake,
        project: impl Fn(K) -> T + Send + Sync + 'static,
    ) -> Self {
        let (cache, follower) = Self::unwatched(project);
        tokio::spawn(follow(api, config, wake, follower));
        cache
    }

    /// A cache of what may not be read: it stays empty.
    #[must_use]
    pub fn absent(project: impl Fn(K) -> T + Send + Sync + 'static) -> Self {
        let (cache, follower) = Self::unwatched(project);
        follower.listed.send_replace(true);
        cache
    }

    /// An empty cache, and who fills it.
    fn unwatched(project: impl Fn(K) -> T + Send + Sync + 'static) -> (Self, Follower<K, T>) {
        let (seen, seen_by) = channel::channel(0);
        let (listed, listed_by) = channel::channel(false);
        let inner = Arc::new(Inner {
            entries: Mutex::new(Entries::default()),
            project: Box::new(project),
            written: AtomicU64::new(0),
        });
        let follower = Follower {
            inner: Arc::clone(&inner),
            seen,
            listed,
            list: None,
        };
        let cache = Self {
            inner,
            seen: seen_by,
            listed: listed_by,
        };
        (cache, follower)
    }

    /// What changed since this was asked last; own writes are there at once.
    #[must_use]
    pub fn take(&self) -> Vec<Change<T>> {
        self.inner.lock().take()
    }

    /// Returns when the first list is in. Never returns if there never is one.
    pub async fn synced(&self) {
        if self.listed.clone().wait_for(|listed| *listed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes an object as the API server has answered with it: it is shown until the watch has caught up.
    pub fn wrote(&self, object: K) {
        let Some(version) = self.note(object.meta().resource_version.as_deref()) else {
            return;
        };
        let name = name_of(&object);
        let value = (self.inner.project)(object);
        let seen = *self.seen.borrow();
        self.inner.lock().wrote(name, Held { version, value }, seen);
    }

    /// Notes the version that a write has brought an object to.
    pub fn note(&self, version: Option<&str>) -> Option<u64> {
        let version = number(version)?;
        self.inner.written.fetch_max(version, Ordering::AcqRel);
        Some(version)
    }

    /// Waits until the cache has seen everything that we wrote, at most for `limit`. False when it has not: then it is stale.
    pub async fn caught_up(&self, limit: Duration) -> bool {
        let written = self.inner.written.load(Ordering::Acquire);
        let mut seen = self.seen.clone();
        let wait = seen.wait_for(|seen| *seen >= written);
        matches!(tokio::time::timeout(limit, wait).await, Ok(Ok(_)))
    }
}

impl<K, T> Inner<K, T> {
    fn lock(&self) -> MutexGuard<'_, Entries<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows a watch for good.
///
/// The first list streams in, so that a large cluster is never held in memory at once. Later ones come in pages: a streamed list may be older
/// than what this process has written, and does not say how old.
async fn follow<K, T>(api: Api<K>, config: watcher::Config, wake: Wake, mut follower: Follower<K, T>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Clone + PartialEq + Send + 'static,
{
    let kind = K::kind(&());
    let mut streams = true;
    loop {
        let how = if streams {
            config.clone().streaming_lists()
        } else {
            config.clone()
        };
        let mut events = Box::pin(watcher(api.clone(), how).backoff(backoff()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) if streams && *follower.listed.borrow() => {
                    streams = false;
                    break;
                }
                Ok(event) => {
                    if follower.follow(event) {
                        wake.wake();
                    }
                }
                Err(error) if streams && refuses_to_stream(&error) => {
                    info!(%kind, "the API server streams no lists; they are read in pages");
                    streams = false;
                    break;
                }
                Err(error) => warn!(%kind, %error, "watch failed; trying again"),
            }
        }
    }
}

/// An API server whose feature gate WatchList is off answers so.
fn refuses_to_stream(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => matches!(status.code, 400 | 422),
        _ => false,
    }
}

/// A version as a number. Versions are decimal numbers that grow (guaranteed since Kubernetes 1.35, true of every etcd-backed server
/// before); one that is no number is not waited for.
fn number(version: Option<&str>) -> Option<u64> {
    version.and_then(|version| version.parse().ok())
}

/// `namespace/name`.
fn name_of(object: &impl Resource) -> Box<str> {
    format!("{}/{}", namespace_of(object), object.name_any()).into()
}

/// Brings the events of a watch into a cache, and tells how far it is.
struct Follower<K, T> {
    inner: Arc<Inner<K, T>>,
    seen: channel::Sender<u64>,
    listed: channel::Sender<bool>,
    /// A list that comes in. The cache shows the old objects until it is complete, so what comes in counts only then.
    list: Option<Listed<T>>,
}

impl<K: Resource<DynamicType = ()>, T: Clone + PartialEq> Follower<K, T> {
    /// Takes in an event; whether what the cache shows has changed.
    fn follow(&mut self, event: Event<K>) -> bool {
        match event {
            // A list that begins now shows all that was written before, or that it is gone.
            Event::Init => {
                self.list = Some(Listed::since(self.inner.written.load(Ordering::Acquire)));
                false
            }
            Event::InitApply(object) => {
                let (name, held) = self.held(object);
                self.list.get_or_insert_with(|| Listed::since(0)).add(name, held);
                false
            }
            Event::InitDone => {
                let list = self.list.take().unwrap_or_else(|| Listed::since(0));
                let version = list.version();
                let changed = self.inner.lock().replace(list);
                self.advance(version);
                self.listed.send_replace(true);
                changed
            }
            Event::Apply(object) => {
                let (name, held) = self.held(object);
                let version = held.version;
                let changed = self.inner.lock().put(name, held);
                self.advance(version);
                changed
            }
            Event::Delete(object) => {
                let version = number(object.meta().resource_version.as_deref()).unwrap_or(0);
                let changed = self.inner.lock().remove(&name_of(&object), version);
                self.advance(version);
                changed
            }
        }
    }

    fn held(&self, object: K) -> (Box<str>, Held<T>) {
        let version = number(object.meta().resource_version.as_deref()).unwrap_or(0);
        let name = name_of(&object);
        let value = (self.inner.project)(object);
        (name, Held { version, value })
    }

    fn advance(&self, version: u64) {
        self.seen.send_if_modified(|seen| {
            let newer = version > *seen;
            *seen = version.max(*seen);
            newer
        });
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: &str) -> ConfigMap {
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": version}}),
        )
        .unwrap()
    }

    type Objects = Cache<ConfigMap, String>;

    /// A cache without a watch: objects are kept as name and version.
    fn cache() -> (Objects, Follower<ConfigMap, String>) {
        Cache::unwatched(|object: ConfigMap| {
            format!("{}@{}", object.name_any(), object.resource_version().unwrap())
        })
    }

    fn shown(cache: &Objects) -> Vec<String> {
        let mut shown: Vec<String> = cache.inner.lock().values().cloned().collect();
        shown.sort();
        shown
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let (cache, mut follower) = cache();
        assert!(!follower.follow(Event::Init));
        assert!(!follower.follow(Event::InitApply(object("a", "12"))));
        assert_eq!((*cache.seen.borrow(), shown(&cache).len()), (0, 0));
        assert!(follower.follow(Event::InitDone));
        assert_eq!((*cache.seen.borrow(), *cache.listed.borrow()), (12, true));
        follower.follow(Event::Apply(object("a", "opaque")));
        follower.follow(Event::Apply(object("a", "7")));
        assert_eq!(*cache.seen.borrow(), 12, "progress only grows");
    }

    #[test]
    fn a_list_that_began_after_a_write_shows_it_even_if_it_is_gone() {
        let (cache, mut follower) = cache();
        follower.follow(Event::Init);
        cache.wrote(object("b", "100"));
        follower.follow(Event::InitApply(object("a", "12")));
        follower.follow(Event::InitDone);
        assert_eq!(
            *cache.seen.borrow(),
            12,
            "this list may have been made before the write"
        );
        assert_eq!(shown(&cache), ["a@12", "b@100"]);
        follower.follow(Event::Init);
        follower.follow(Event::InitDone);
        assert_eq!(*cache.seen.borrow(), 100);
        assert_eq!(shown(&cache), [""; 0]);
    }

    #[test]
    fn own_writes_are_shown_until_the_watch_has_caught_up() {
        let (cache, mut follower) = cache();
        follower.follow(Event::Init);
        follower.follow(Event::InitApply(object("a", "3")));
        follower.follow(Event::InitApply(object("c", "1")));
        follower.follow(Event::InitDone);
        cache.wrote(object("a", "5"));
        cache.wrote(object("b", "6"));
        cache.wrote(object("a", "4"));
        assert_eq!(shown(&cache), ["a@5", "b@6", "c@1"]);
        assert!(
            !follower.follow(Event::Apply(object("a", "4"))),
            "it is behind our write"
        );
        // `a` was deleted after our write, and an earlier `b` before.
        assert!(follower.follow(Event::Delete(object("a", "7"))));
        assert!(!follower.follow(Event::Delete(object("b", "2"))));
        assert_eq!(shown(&cache), ["b@6", "c@1"]);
        // The answer to a write may come after the watch has shown what became of it.
        cache.wrote(object("a", "5"));
        assert_eq!(shown(&cache), ["b@6", "c@1"]);
    }

    #[test]
    fn changes_are_told_once_and_what_came_and_went_not_at_all() {
        let (cache, mut follower) = cache();
        follower.follow(Event::Apply(object("a", "1")));
        follower.follow(Event::Apply(object("b", "2")));
        follower.follow(Event::Delete(object("b", "3")));
        let told = |cache: &Objects| {
            let changes = cache.take();
            let mut told: Vec<_> = changes.into_iter().map(|c| (c.before, c.after)).collect();
            told.sort();
            told
        };
        assert_eq!(told(&cache), [(None, Some("a@1".to_owned()))]);
        follower.follow(Event::Apply(object("a", "4")));
        follower.follow(Event::Apply(object("a", "5")));
        assert_eq!(told(&cache), [(Some("a@1".to_owned()), Some("a@5".to_owned()))]);
        assert_eq!(told(&cache), []);
    }
}
