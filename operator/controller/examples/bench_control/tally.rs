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

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Created,
    /// No gate keeps it from being scheduled.
    Released,
    Bound,
    Ready,
}

/// Pods by name, and how far each has come.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<HashMap<String, (Whose, Stage)>>>);

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

fn stage(pod: &Pod) -> Stage {
    let spec = pod.spec.as_ref();
    if ready(pod) {
        Stage::Ready
    } else if spec.is_some_and(|spec| spec.node_name.is_some()) {
        Stage::Bound
    } else if spec.is_some_and(|spec| spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)) {
        Stage::Released
    } else {
        Stage::Created
    }
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
                            pods.insert(pod.name_any(), (whose, stage(&pod)));
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

    /// How many have come so far.
    pub(crate) fn count(&self, whose: Whose, stage: Stage) -> usize {
        let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let far = pods
            .values()
            .filter(|(other, has)| *other == whose && *has >= stage);
        far.count()
    }
}
