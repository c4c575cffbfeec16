//! Status of deployments and groups: server-side applied where it differs, at most once a second for an object.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use kube::{Resource, ResourceExt as _, api::Patch, core::NamespaceResourceScope};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{EffectError, Writer, error::Remedy, writer::apply_params};
use crate::{build::parts::namespace_of, metrics::Metrics};

/// At most one write of an object's status in this time.
const INTERVAL: Duration = Duration::from_secs(1);

/// When which object's status was written last.
#[derive(Debug, Default)]
pub struct Throttle(HashMap<String, Instant>);

/// What to do about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// It is as it should be.
    Nothing,
    /// Write it now.
    Now,
    /// It was written a moment ago.
    At(Instant),
}

impl Throttle {
    fn due<S: PartialEq>(&self, uid: &str, current: Option<&S>, wanted: &S) -> Due {
        if current == Some(wanted) {
            return Due::Nothing;
        }
        match self.0.get(uid).map(|at| *at + INTERVAL) {
            Some(at) if at > Instant::now() => Due::At(at),
            _ => Due::Now,
        }
    }

    /// Forgets objects whose interval has passed.
    fn forget(&mut self) {
        self.0.retain(|_, at| at.elapsed() < INTERVAL);
    }
}

/// Writes the statuses of one kind.
pub struct Statuses<'a> {
    /// Fenced access to the API server.
    pub writer: &'a Writer,
    /// When which object was written.
    pub throttle: &'a mut Throttle,
    /// Counters.
    pub metrics: &'a Metrics,
}

impl Statuses<'_> {
    /// Writes one object's status if it differs; the instant to come back at, if it was written a moment ago or could not be.
    pub async fn write<K, S>(
        &mut self,
        object: &K,
        current: Option<&S>,
        wanted: &S,
    ) -> Option<(Instant, Option<K>)>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
        S: Serialize + PartialEq,
    {
        let uid = object.uid().unwrap_or_default();
        match self.throttle.due(&uid, current, wanted) {
            Due::Nothing => return None,
            Due::At(at) => return Some((at, None)),
            Due::Now => {}
        }
        self.throttle.forget();
        self.throttle.0.insert(uid, Instant::now());
        let again = Instant::now() + INTERVAL;
        match self.send(object, wanted).await {
            Ok(written) => {
                self.metrics.effect("WriteStatus", "ok");
                Some((again, Some(written)))
            }
            Err(error) => {
                self.metrics.effect("WriteStatus", error.class());
                match error.remedy() {
                    Remedy::Decide => {
                        debug!(kind = %K::kind(&()), name = object.name_any(), %error, "status dropped")
                    }
                    _ => {
                        warn!(kind = %K::kind(&()), name = object.name_any(), %error, "cannot write a status; trying again")
                    }
                }
                Some((again, None))
            }
        }
    }

    async fn send<K, S>(&self, object: &K, wanted: &S) -> Result<K, EffectError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
        S: Serialize,
    {
        let api = self.writer.api::<K>(&namespace_of(object));
        let patch = Patch::Apply(status_patch(object, wanted));
        self.writer
            .send(api.patch_status(&object.name_any(), &apply_params(), &patch))
            .await
    }
}

/// With the UID, so that an object of the same name made meanwhile is left alone.
fn status_patch<K: Resource<DynamicType = ()>>(object: &K, status: &impl Serialize) -> Value {
    json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": object.name_any(), "uid": object.uid()},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn at_most_once_a_second_and_only_where_it_differs() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.due("u", Some(&1), &1), Due::Nothing);
        assert_eq!(throttle.due("u", None, &1), Due::Now);
        throttle.0.insert("u".to_owned(), Instant::now());
        let written = Instant::now();
        assert_eq!(throttle.due("u", Some(&1), &2), Due::At(written + INTERVAL));
        assert_eq!(throttle.due("other", Some(&1), &2), Due::Now);
        tokio::time::advance(INTERVAL).await;
        assert_eq!(throttle.due("u", Some(&1), &2), Due::Now);
        throttle.forget();
        assert!(throttle.0.is_empty());
    }
}
