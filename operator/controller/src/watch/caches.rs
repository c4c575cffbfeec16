//! The caches the operator decides from.

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
};
use kube::{Api, Client, Resource, core::NamespaceResourceScope, runtime::watcher::Config};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};

use super::{
    Cache,
    slim::{slim_node, slim_pod},
};
use crate::{observe::Snapshot, wake::Wake};

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
    /// Services with our label.
    pub services: Cache<Service>,
    /// Disruption budgets with our label.
    pub budgets: Cache<PodDisruptionBudget>,
    /// All priority classes.
    pub priority_classes: Cache<PriorityClass>,
}

/// The newest version that was written of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// LlamaDeployments (their status).
    pub deployments: u64,
    /// LlamaGroups (spec and status).
    pub groups: u64,
    /// Pods.
    pub pods: u64,
    /// Services.
    pub services: u64,
    /// Disruption budgets.
    pub budgets: u64,
}

impl Written {
    /// Notes the version of an object that the API server has answered with.
    pub fn note(slot: &mut u64, object: &impl Resource) {
        let version = object
            .meta()
            .resource_version
            .as_deref()
            .and_then(|version| version.parse().ok());
        *slot = (*slot).max(version.unwrap_or(0));
    }
}

impl Caches {
    /// Starts all watches. Pods and nodes are watched in the whole cluster whatever `namespace` is: other namespaces' pods take room.
    #[must_use]
    pub fn start(client: &Client, namespace: Option<&str>, wake: &Wake) -> Self {
        fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
        where
            K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        {
            match namespace {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            }
        }
        fn short(object: &mut impl Resource) {
            object.meta_mut().managed_fields = None;
        }
        let ours =
            || Config::default().labels(&format!("{}={}", labels::APP_MANAGED_BY, labels::FIELD_MANAGER));
        let all = Config::default;
        Self {
            deployments: Cache::start(scoped(client, namespace), all(), wake.clone(), short),
            groups: Cache::start(scoped(client, namespace), all(), wake.clone(), short),
            pods: Cache::start(Api::all(client.clone()), all(), wake.clone(), slim_pod),
            nodes: Cache::start(Api::all(client.clone()), all(), wake.clone(), slim_node),
            services: Cache::start(scoped(client, namespace), ours(), wake.clone(), short),
            budgets: Cache::start(scoped(client, namespace), ours(), wake.clone(), short),
            priority_classes: Cache::start(Api::all(client.clone()), all(), wake.clone(), short),
        }
    }

    /// Returns when all first lists are in.
    pub async fn synced(&self) {
        self.deployments.synced().await;
        self.groups.synced().await;
        self.pods.synced().await;
        self.nodes.synced().await;
        self.services.synced().await;
        self.budgets.synced().await;
        self.priority_classes.synced().await;
    }

    /// Waits until the caches show what was written, at most for `limit`. False when they do not.
    pub async fn caught_up(&self, written: Written, limit: Duration) -> bool {
        let (deployments, groups, pods, services, budgets) = tokio::join!(
            self.deployments.caught_up(written.deployments, limit),
            self.groups.caught_up(written.groups, limit),
            self.pods.caught_up(written.pods, limit),
            self.services.caught_up(written.services, limit),
            self.budgets.caught_up(written.budgets, limit),
        );
        deployments && groups && pods && services && budgets
    }

    /// What the caches hold now; nothing of the streams.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            deployments: self.deployments.all(),
            groups: self.groups.all(),
            pods: self.pods.all(),
            nodes: self.nodes.all(),
            services: self.services.all(),
            budgets: self.budgets.all(),
            priority_classes: self.priority_classes.all(),
            ..Snapshot::default()
        }
    }
}
