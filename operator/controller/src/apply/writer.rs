//! Fenced access to the API server.

use std::time::Duration;

use kube::{
    Api, Client, Resource,
    api::{PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use llamero_api::labels::FIELD_MANAGER;

use super::{error::EffectError, proofs::Proofs};
use crate::{lease::Leadership, watch::Caches};

/// No request may take longer; also bounds how long a deposed holder's last request can be under way.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Writes while the lease is ours, and remembers how far the caches must come before the next decision.
pub struct Writer {
    client: Client,
    leadership: Leadership,
    caches: Caches,
    proofs: Proofs,
}

impl Writer {
    /// A writer that has written nothing.
    #[must_use]
    pub fn new(client: Client, leadership: Leadership, caches: Caches) -> Self {
        Self {
            client,
            leadership,
            caches,
            proofs: Proofs::default(),
        }
    }

    /// All objects of a kind in a namespace.
    #[must_use]
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Sends a request if the lease is ours, with a time limit.
    ///
    /// # Errors
    /// When it is not, when there is no answer in time, or when the answer is no.
    pub async fn send<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, EffectError> {
        if !self.leadership.is_held() {
            return Err(EffectError::NotLeading);
        }
        match tokio::time::timeout(TIMEOUT, request).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(EffectError::TimedOut),
        }
    }

    /// Whether the lease is ours.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leadership.is_held()
    }

    /// Which pods are known to exist.
    #[must_use]
    pub const fn proofs(&self) -> &Proofs {
        &self.proofs
    }

    /// Where own writes are noted.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.caches
    }
}

/// Parameters of JSON patches.
#[must_use]
pub fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Parameters of creations and replacements.
#[must_use]
pub fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Parameters of server-side apply. Forced: nobody else has a claim on the fields we set.
#[must_use]
pub fn apply_params() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}
