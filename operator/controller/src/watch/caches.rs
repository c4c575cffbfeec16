//! The caches the operator decides from.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{Node, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
};
use kube::{Api, Client, Resource, core::NamespaceResourceScope, runtime::watcher::Config};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};

use super::{
    Cache,
    slim::{slim_node, slim_pod},
};
use crate::{
    observe::{Snapshot, writers::keep_writers_of_replicas},
    wake::Wake,
};

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
    /// Network policies with our label.
    pub policies: Cache<NetworkPolicy>,
    /// Kept revisions with our label.
    pub revisions: Cache<ControllerRevision>,
    /// All priority classes.
    pub priority_classes: Cache<PriorityClass>,
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
            deployments: Cache::start(
                scoped(client, namespace),
                all(),
                wake.clone(),
                keep_writers_of_replicas,
            ),
            groups: Cache::start(scoped(client, namespace), all(), wake.clone(), short),
            pods: Cache::start(Api::all(client.clone()), all(), wake.clone(), slim_pod),
            nodes: Cache::start(Api::all(client.clone()), all(), wake.clone(), slim_node),
            services: Cache::start(scoped(client, namespace), ours(), wake.clone(), short),
            budgets: Cache::start(scoped(client, namespace), ours(), wake.clone(), short),
            policies: Cache::start(scoped(client, namespace), ours(), wake.clone(), short),
            revisions: Cache::start(scoped(client, namespace), ours(), wake.clone(), short),
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
        self.policies.synced().await;
        self.revisions.synced().await;
        self.priority_classes.synced().await;
    }

    /// Waits until the caches show what was written, at most for `limit`. False when they do not.
    pub async fn caught_up(&self, limit: Duration) -> bool {
        let (deployments, groups, pods, services, budgets, policies, revisions) = tokio::join!(
            self.deployments.caught_up(limit),
            self.groups.caught_up(limit),
            self.pods.caught_up(limit),
            self.services.caught_up(limit),
            self.budgets.caught_up(limit),
            self.policies.caught_up(limit),
            self.revisions.caught_up(limit),
        );
        deployments && groups && pods && services && budgets && policies && revisions
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
            policies: self.policies.all(),
            revisions: self.revisions.all(),
            priority_classes: self.priority_classes.all(),
            ..Snapshot::default()
        }
    }
}
