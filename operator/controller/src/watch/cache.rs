//! One reflector, and a barrier that waits until it has caught up with our own writes.

use std::{fmt::Debug, hash::Hash, sync::Arc, time::Duration};

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

/// A cache of all objects of one kind.
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
        let stream = watcher(api, config)
            .modify(move |object| slim(object))
            .backoff(backoff());
        let mut stream = Box::pin(reflector(writer, stream));
        tokio::spawn(async move {
            let kind = K::kind(&());
            while let Some(event) = stream.next().await {
                match event {
                    Ok(event) => {
                        if let Event::Apply(object) | Event::Delete(object) | Event::InitApply(object) =
                            &event
                        {
                            advance(&progress, object.resource_version());
                        }
                        match &event {
                            Event::Init | Event::InitApply(_) => {}
                            Event::Apply(_) | Event::Delete(_) | Event::InitDone => wake.wake(),
                        }
                    }
                    Err(error) => warn!(%kind, %error, "watch failed; trying again"),
                }
            }
        });
        Self { store, seen }
    }

    /// All objects, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// Returns when the first list is in. Never returns if there never is one.
    pub async fn synced(&self) {
        if self.store.wait_until_ready().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the cache has seen the object version `resource_version` or later, at most for `limit`. False when it has not.
    pub async fn caught_up(&self, resource_version: u64, limit: Duration) -> bool {
        let mut seen = self.seen.clone();
        let wait = seen.wait_for(|seen| *seen >= resource_version);
        matches!(tokio::time::timeout(limit, wait).await, Ok(Ok(_)))
    }
}

/// Records a version seen. Versions are decimal numbers that grow (guaranteed since Kubernetes 1.35, true of every etcd-backed server
/// before); one that is no number leaves the barrier to its time limit.
fn advance(progress: &channel::Sender<u64>, version: Option<String>) {
    if let Some(version) = version.and_then(|version| version.parse().ok()) {
        progress.send_if_modified(|seen| {
            let newer = version > *seen;
            if newer {
                *seen = version;
            }
            newer
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_only_grows() {
        let (progress, seen) = channel::channel(0);
        advance(&progress, Some("12".to_owned()));
        advance(&progress, Some("7".to_owned()));
        advance(&progress, Some("opaque".to_owned()));
        advance(&progress, None);
        assert_eq!(*seen.borrow(), 12);
    }
}
