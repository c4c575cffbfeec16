//! One kind of object in the namespaces that are served: one watch over all of them, or one for each where not the whole cluster may be watched.

use std::{collections::BTreeSet, fmt::Debug, hash::Hash, time::Duration};

use futures::future::join_all;
use kube::{Api, Client, Resource, core::NamespaceResourceScope, runtime::watcher::Config};
use serde::de::DeserializeOwned;

use super::{Cache, Change};
use crate::{build::parts::namespace_of, wake::Wake};

/// Where objects are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the whole cluster.
    Cluster,
    /// In these namespaces.
    Namespaces(BTreeSet<String>),
}

impl Scope {
    /// These namespaces, or all.
    #[must_use]
    pub fn of(namespaces: Option<BTreeSet<String>>) -> Self {
        namespaces.map_or(Self::Cluster, Self::Namespaces)
    }

    /// Another namespace too.
    #[must_use]
    pub fn with(mut self, namespace: &str) -> Self {
        if let Self::Namespaces(names) = &mut self {
            names.insert(namespace.to_owned());
        }
        self
    }

    /// Whether objects of the namespace are watched.
    #[must_use]
    pub fn contains(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespaces(names) => names.contains(namespace),
        }
    }

    /// What to ask the API server for.
    #[must_use]
    pub fn apis<K>(&self, client: &Client) -> Vec<(Option<String>, Api<K>)>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::Cluster => vec![(None, Api::all(client.clone()))],
            Self::Namespaces(names) => {
                let api = |name: &String| (Some(name.clone()), Api::namespaced(client.clone(), name));
                names.iter().map(api).collect()
            }
        }
    }
}

/// The caches of a kind. A version of one namespace says nothing about how far the watch of another is, so each waits for its own writes.
pub struct Scoped<K, T = std::sync::Arc<K>>(Vec<(Option<String>, Cache<K, T>)>);

impl<K, T> Clone for Scoped<K, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, T> Scoped<K, T>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
    K::DynamicType: Eq + Hash + Clone + Default,
    T: Clone + PartialEq + Send + 'static,
{
    /// Starts the watches; objects are kept as `project` makes them.
    pub fn start(
        client: &Client,
        scope: &Scope,
        config: &Config,
        wake: &Wake,
        project: impl Fn(K) -> T + Clone + Send + Sync + 'static,
    ) -> Self {
        let watched = scope.apis(client).into_iter().map(|(namespace, api)| {
            let cache = Cache::start(api, config.clone(), wake.clone(), project.clone());
            (namespace, cache)
        });
        Self(watched.collect())
    }

    /// What changed since this was asked last.
    #[must_use]
    pub fn take(&self) -> Vec<Change<T>> {
        self.0.iter().flat_map(|(_, cache)| cache.take()).collect()
    }

    /// Returns when all first lists are in.
    pub async fn synced(&self) {
        join_all(self.0.iter().map(|(_, cache)| cache.synced())).await;
    }

    /// Notes an object as the API server has answered with it.
    pub fn wrote(&self, object: K) {
        if let Some(cache) = self.of(&namespace_of(&object)) {
            cache.wrote(object);
        }
    }

    /// Notes the version that a write has brought an object of the namespace to.
    pub fn note(&self, namespace: &str, version: Option<&str>) {
        if let Some(cache) = self.of(namespace) {
            cache.note(version);
        }
    }

    /// Waits until each cache has seen what we wrote to it, at most for `limit`. False when one has not.
    pub async fn caught_up(&self, limit: Duration) -> bool {
        let waits = self.0.iter().map(|(_, cache)| cache.caught_up(limit));
        join_all(waits).await.into_iter().all(|caught_up| caught_up)
    }

    fn of(&self, namespace: &str) -> Option<&Cache<K, T>> {
        let mut caches = self.0.iter();
        let is_meant = |watched: &Option<String>| watched.as_deref().is_none_or(|name| name == namespace);
        caches
            .find(|(watched, _)| is_meant(watched))
            .map(|(_, cache)| cache)
    }
}
