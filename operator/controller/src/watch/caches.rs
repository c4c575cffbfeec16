//! The caches the operator decides from.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{Node, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
};
use kube::{Api, Client, Resource, core::NamespaceResourceScope, runtime::watcher::Config};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use llamero_core::observed;

use super::{Cache, Change};
use crate::{
    observe::{SeenPod, nodes, seen_pod::Projection, writers::keep_writers_of_replicas},
    wake::Wake,
};

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// LlamaDeployments of the namespaces served.
    pub deployments: Cache<LlamaDeployment>,
    /// LlamaGroups of the namespaces served.
    pub groups: Cache<LlamaGroup>,
    /// All pods of the cluster, in short form.
    pub pods: Cache<Pod, SeenPod>,
    /// All nodes, in short form.
    pub nodes: Cache<Node, Arc<observed::Node>>,
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

/// What changed in all caches.
#[derive(Debug, Default)]
pub struct Changes {
    /// LlamaDeployments.
    pub deployments: Vec<Change<Arc<LlamaDeployment>>>,
    /// LlamaGroups.
    pub groups: Vec<Change<Arc<LlamaGroup>>>,
    /// Pods.
    pub pods: Vec<Change<SeenPod>>,
    /// Nodes.
    pub nodes: Vec<Change<Arc<observed::Node>>>,
    /// Services.
    pub services: Vec<Change<Arc<Service>>>,
    /// Disruption budgets.
    pub budgets: Vec<Change<Arc<PodDisruptionBudget>>>,
    /// Network policies.
    pub policies: Vec<Change<Arc<NetworkPolicy>>>,
    /// Kept revisions.
    pub revisions: Vec<Change<Arc<ControllerRevision>>>,
    /// Priority classes.
    pub priority_classes: Vec<Change<Arc<PriorityClass>>>,
}

/// Nearly whole.
fn short<K: Resource>(mut object: K) -> Arc<K> {
    object.meta_mut().managed_fields = None;
    Arc::new(object)
}

impl Caches {
    /// Starts all watches. Pods and nodes are watched in the whole cluster whatever `namespace` is: other namespaces' pods take room.
    #[must_use]
    pub fn start(client: &Client, namespace: Option<&str>, pods: Projection, wake: &Wake) -> Self {
        fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
        where
            K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        {
            match namespace {
                Some(namespace) => Api::namespaced(client.clone(), namespace),
                None => Api::all(client.clone()),
            }
        }
        let ours =
            || Config::default().labels(&format!("{}={}", labels::APP_MANAGED_BY, labels::FIELD_MANAGER));
        let all = Config::default;
        let deployment = |mut object: LlamaDeployment| {
            keep_writers_of_replicas(&mut object);
            Arc::new(object)
        };
        let pod = move |pod: Pod| pods.pod(&pod);
        let node = |node: Node| Arc::new(nodes::node(node));
        Self {
            deployments: Cache::start(scoped(client, namespace), all(), wake.clone(), deployment),
            groups: Cache::start(scoped(client, namespace), all(), wake.clone(), short),
            pods: Cache::start(Api::all(client.clone()), all(), wake.clone(), pod),
            nodes: Cache::start(Api::all(client.clone()), all(), wake.clone(), node),
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

    /// What changed since this was asked last.
    #[must_use]
    pub fn take(&self) -> Changes {
        Changes {
            deployments: self.deployments.take(),
            groups: self.groups.take(),
            pods: self.pods.take(),
            nodes: self.nodes.take(),
            services: self.services.take(),
            budgets: self.budgets.take(),
            policies: self.policies.take(),
            revisions: self.revisions.take(),
            priority_classes: self.priority_classes.take(),
        }
    }
}
