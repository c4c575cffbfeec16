//! How many pods there are, seen by a watch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Config, Event},
    },
};
use llamero_api::labels;

use crate::cluster::{NAMESPACE, REFERENCE};

/// Whose pods are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Reference,
    Llamero,
}

/// Pods by name, and whether each is ready.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<HashMap<String, (Whose, bool)>>>);

fn whose(pod: &Pod) -> Option<Whose> {
    if pod.labels().contains_key(labels::GROUP_NAME) {
        return Some(Whose::Llamero);
    }
    (pod.labels().get("app").map(String::as_str) == Some(REFERENCE)).then_some(Whose::Reference)
}

fn ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|s| &s.conditions).flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

impl Tally {
    pub(crate) fn start(client: &Client) -> Self {
        let tally = Self::default();
        let counted = tally.clone();
        let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
        tokio::spawn(async move {
            let mut events = Box::pin(watcher::watcher(pods, Config::default()).default_backoff());
            while let Some(event) = events.next().await {
                let mut pods = counted.0.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                        if let Some(whose) = whose(&pod) {
                            pods.insert(pod.name_any(), (whose, ready(&pod)));
                        }
                    }
                    Ok(Event::Delete(pod)) => drop(pods.remove(&pod.name_any())),
                    Ok(Event::Init) => pods.clear(),
                    Ok(Event::InitDone) => {}
                    Err(error) => eprintln!("the watch of pods broke: {error}"),
                }
            }
        });
        tally
    }

    /// How many there are, and how many of them are ready.
    pub(crate) fn count(&self, whose: Whose) -> (usize, usize) {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = || pods.values().filter(|(other, _)| *other == whose);
        (of().count(), of().filter(|(_, ready)| *ready).count())
    }
}
