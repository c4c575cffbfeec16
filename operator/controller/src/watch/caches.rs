//! The four caches the operator decides from.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, Resource};
use llamero_api::{LlamaDeployment, LlamaGroup};

use super::{
    Cache,
    slim::{slim_node, slim_pod},
};
use crate::wake::Wake;

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// LlamaDeployments of the namespaces served.
    pub deployments: Cache<LlamaDeployment>,
    /// LlamaGroups of the namespaces served.
    pub groups: Cache<LlamaGroup>,
    /// All pods of the cluster; those that are not ours in short form.
    pub pods: Cache<Pod>,
    /// All nodes.
    pub nodes: Cache<Node>,
}

/// The newest version that a pass has written of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// LlamaDeployments (their status).
    pub deployments: u64,
    /// LlamaGroups (spec and status).
    pub groups: u64,
    /// Pods.
    pub pods: u64,
}

impl Written {
    /// Notes the version of an object that the API server has answered with.
    pub fn note(slot: &mut u64, object: &impl Resource) {
        let version = object.meta().resource_version.as_deref().and_then(|version| version.parse().ok());
        *slot = (*slot).max(version.unwrap_or(0));
    }
}

impl Caches {
    /// Starts all watches. Pods and nodes are watched in the whole cluster whatever `namespace` is: other namespaces' pods take room.
    #[must_use]
    pub fn start(client: &Client, namespace: Option<&str>, wake: &Wake) -> Self {
        fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
        where
            K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
        {
            match namespace {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            }
        }
        Self {
            deployments: Cache::start(
                scoped(client, namespace),
                wake.clone(),
                |object: &mut LlamaDeployment| object.metadata.managed_fields = None,
                |_| true,
            ),
            groups: Cache::start(
                scoped(client, namespace),
                wake.clone(),
                |object: &mut LlamaGroup| object.metadata.managed_fields = None,
                |_| true,
            ),
            pods: Cache::start(Api::all(client.clone()), wake.clone(), slim_pod, |_| true),
            nodes: Cache::start(Api::all(client.clone()), wake.clone(), slim_node, |_| true),
        }
    }

    /// Returns when all first lists are in.
    pub async fn synced(&self) {
        self.deployments.synced().await;
        self.groups.synced().await;
        self.pods.synced().await;
        self.nodes.synced().await;
    }

    /// Waits until the caches show what was written, at most for `limit`. False when they do not.
    pub async fn caught_up(&self, written: Written, limit: Duration) -> bool {
        let (deployments, groups, pods) = tokio::join!(
            self.deployments.caught_up(written.deployments, limit),
            self.groups.caught_up(written.groups, limit),
            self.pods.caught_up(written.pods, limit),
        );
        deployments && groups && pods
    }
}
