//! One reflector, our own writes over it, and a barrier that waits until the watch has caught up with them.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt as _, reflector,
        reflector::Store,
        utils::{Backoff, ResetTimerBackoff},
        watcher,
        watcher::Event,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch as channel;
use tracing::warn;

use crate::wake::Wake;

/// A cache of all objects of one kind, in which our own writes stand in for what the watch shows until that has caught up.
///
/// Events of one watch come in the order of their `resourceVersion`, so a cache that has seen version *v* has seen every write up to
/// *v*. Waiting for that after a pass keeps the next pass from deciding on what the last one has already changed.
#[derive(Clone)]
pub struct Cache<K>
where
    K: Resource<DynamicType = ()> + 'static,
{
    store: Store<K>,
    seen: channel::Receiver<u64>,
    /// The newest version that we have written.
    written: Arc<AtomicU64>,
    overlay: Arc<Mutex<Overlay<K>>>,
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

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
{
    /// Starts the watch in a task of its own; it runs until the runtime ends. `slim` sees every object before it is cached.
    pub fn start(
        api: Api<K>,
        config: watcher::Config,
        wake: Wake,
        slim: impl Fn(&mut K) + Send + Sync + 'static,
    ) -> Self {
        let (store, writer) = reflector::store::<K>();
        let (progress, seen) = channel::channel(0);
        let written = Arc::new(AtomicU64::new(0));
        let mut follower = Progress::new(progress, Arc::clone(&written));
        let stream = watcher(api, config)
            .modify(move |object| slim(object))
            .backoff(backoff());
        let mut stream = Box::pin(reflector(writer, stream));
        tokio::spawn(async move {
            let kind = K::kind(&());
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        if follower.follow(&event) {
                            wake.wake();
                        }
                    }
                    Err(error) => warn!(%kind, %error, "watch failed; trying again"),
                }
            }
        });
        Self {
            store,
            seen,
            written,
            overlay: Arc::default(),
        }
    }

    /// All objects, in no order; own writes are there at once.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        let seen = *self.seen.borrow();
        let mut overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
        overlay.forget(seen);
        overlay.over(self.store.state())
    }

    /// Returns when the first list is in. Never returns if there never is one.
    pub async fn synced(&self) {
        if self.store.wait_until_ready().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes an object as the API server has answered with it: it is shown until the watch has caught up.
    pub fn wrote(&self, object: K) {
        let version = object.resource_version();
        if let Some(version) = self.note(version.as_deref()) {
            let mut overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
            overlay.put(object, version);
        }
    }

    /// Notes the version that a write has brought an object to.
    pub fn note(&self, version: Option<&str>) -> Option<u64> {
        let version = number(version)?;
        self.written.fetch_max(version, Ordering::AcqRel);
        Some(version)
    }

    /// Waits until the cache has seen everything that we wrote, at most for `limit`. False when it has not: then it is stale.
    pub async fn caught_up(&self, limit: Duration) -> bool {
        let written = self.written.load(Ordering::Acquire);
        let mut seen = self.seen.clone();
        let wait = seen.wait_for(|seen| *seen >= written);
        matches!(tokio::time::timeout(limit, wait).await, Ok(Ok(_)))
    }
}

/// A version as a number. Versions are decimal numbers that grow (guaranteed since Kubernetes 1.35, true of every etcd-backed server
/// before); one that is no number is not waited for.
fn number(version: Option<&str>) -> Option<u64> {
    version.and_then(|version| version.parse().ok())
}

/// How far a watch is.
struct Progress {
    seen: channel::Sender<u64>,
    written: Arc<AtomicU64>,
    /// While a list comes in: the newest version that it must contain, and has contained so far. The store shows the old objects until the
    /// list is complete, so what comes in counts only then.
    listed: u64,
}

impl Progress {
    const fn new(seen: channel::Sender<u64>, written: Arc<AtomicU64>) -> Self {
        Self {
            seen,
            written,
            listed: 0,
        }
    }

    /// Takes in an event after the store has; whether what the store shows has changed.
    fn follow<K: Resource>(&mut self, event: &Event<K>) -> bool {
        let version = |object: &K| number(object.meta().resource_version.as_deref()).unwrap_or(0);
        match event {
            // A list that begins now shows all that was written before, or that it is gone.
            Event::Init => self.listed = self.written.load(Ordering::Acquire),
            Event::InitApply(object) => self.listed = self.listed.max(version(object)),
            Event::InitDone => self.advance(self.listed),
            Event::Apply(object) | Event::Delete(object) => self.advance(version(object)),
        }
        !matches!(event, Event::Init | Event::InitApply(_))
    }

    fn advance(&self, version: u64) {
        self.seen.send_if_modified(|seen| {
            let newer = version > *seen;
            *seen = version.max(*seen);
            newer
        });
    }
}

/// Namespace and name.
type Name = (Option<String>, Option<String>);

/// Own writes that the watch may not show yet.
struct Overlay<K>(HashMap<Name, (u64, Arc<K>)>);

impl<K> Default for Overlay<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Resource> Overlay<K> {
    fn put(&mut self, object: K, version: u64) {
        let name = (object.meta().namespace.clone(), object.meta().name.clone());
        let older = self.0.get(&name).is_none_or(|(known, _)| *known < version);
        if older {
            self.0.insert(name, (version, Arc::new(object)));
        }
    }

    /// Drops what the watch has seen: from then on it knows better.
    fn forget(&mut self, seen: u64) {
        self.0.retain(|_, (version, _)| *version > seen);
    }

    fn over(&self, mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
        if self.0.is_empty() {
            return objects;
        }
        let mut missing: HashMap<&Name, &Arc<K>> =
            self.0.iter().map(|(name, (_, object))| (name, object)).collect();
        for shown in &mut objects {
            let name = (shown.meta().namespace.clone(), shown.meta().name.clone());
            if let Some(written) = missing.remove(&name) {
                *shown = Arc::clone(written);
            }
        }
        objects.extend(missing.into_values().cloned());
        objects
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

    fn progress() -> (Progress, channel::Receiver<u64>, Arc<AtomicU64>) {
        let (sender, seen) = channel::channel(0);
        let written = Arc::new(AtomicU64::new(0));
        (Progress::new(sender, Arc::clone(&written)), seen, written)
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let (mut progress, seen, _) = progress();
        assert!(!progress.follow(&Event::<ConfigMap>::Init));
        assert!(!progress.follow(&Event::InitApply(object("a", "12"))));
        assert_eq!(*seen.borrow(), 0, "the store still shows nothing");
        assert!(progress.follow(&Event::<ConfigMap>::InitDone));
        assert_eq!(*seen.borrow(), 12);
        progress.follow(&Event::Apply(object("a", "opaque")));
        progress.follow(&Event::Apply(object("a", "7")));
        assert_eq!(*seen.borrow(), 12, "progress only grows");
    }

    #[test]
    fn a_list_that_began_after_a_write_shows_it_even_if_it_is_gone() {
        let (mut progress, seen, written) = progress();
        progress.follow(&Event::<ConfigMap>::Init);
        written.store(100, Ordering::Release);
        progress.follow(&Event::InitApply(object("a", "12")));
        progress.follow(&Event::<ConfigMap>::InitDone);
        assert_eq!(
            *seen.borrow(),
            12,
            "this list may have been made before the write"
        );
        progress.follow(&Event::<ConfigMap>::Init);
        progress.follow(&Event::<ConfigMap>::InitDone);
        assert_eq!(*seen.borrow(), 100);
    }

    #[test]
    fn own_writes_are_shown_until_the_watch_has_caught_up() {
        let mut overlay = Overlay::default();
        overlay.put(object("a", "5"), 5);
        overlay.put(object("b", "6"), 6);
        overlay.put(object("a", "4"), 4);
        let shown = |overlay: &Overlay<ConfigMap>, store: Vec<ConfigMap>| {
            let mut shown: Vec<String> = overlay
                .over(store.into_iter().map(Arc::new).collect())
                .iter()
                .map(|o| format!("{}@{}", o.name_any(), o.resource_version().unwrap()))
                .collect();
            shown.sort();
            shown
        };
        assert_eq!(
            shown(&overlay, vec![object("a", "3"), object("c", "1")]),
            ["a@5", "b@6", "c@1"]
        );
        // The watch has seen version 5: `a` was deleted by then.
        overlay.forget(5);
        assert_eq!(shown(&overlay, vec![object("c", "1")]), ["b@6", "c@1"]);
    }
}
