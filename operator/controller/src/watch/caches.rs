//! The caches the operator decides from.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{Node, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
};
use kube::{Api, Client, Resource, runtime::watcher::Config};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use llamero_core::observed;

use super::{Cache, Change, Scope, Scoped};
use crate::{
    observe::{SeenPod, nodes, seen_pod::Projection, writers::keep_writers_of_replicas},
    wake::Wake,
};

/// Everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// LlamaDeployments of the namespaces served.
    pub deployments: Scoped<LlamaDeployment>,
    /// LlamaGroups of the namespaces served.
    pub groups: Scoped<LlamaGroup>,
    /// All pods of the cluster, in short form; where these may not be read, those of the namespaces served, and gateways.
    pub pods: Scoped<Pod, SeenPod>,
    /// All nodes, in short form; none where they may not be read.
    pub nodes: Cache<Node, Arc<observed::Node>>,
    /// Services with our label.
    pub services: Scoped<Service>,
    /// Disruption budgets with our label.
    pub budgets: Scoped<PodDisruptionBudget>,
    /// Network policies with our label.
    pub policies: Scoped<NetworkPolicy>,
    /// Kept revisions with our label.
    pub revisions: Scoped<ControllerRevision>,
    /// All priority classes; none where they may not be read.
    pub priority_classes: Cache<PriorityClass>,
}

/// What is watched, and where.
#[derive(Clone, Debug)]
pub struct Scopes {
    /// The namespaces served.
    pub served: Scope,
    /// Where the gateways are.
    pub gateways: String,
    /// Nodes, priority classes and pods of all namespaces may be read: other namespaces' pods take room.
    pub reads_cluster: bool,
}

impl Scopes {
    fn pods(&self) -> Scope {
        match self.reads_cluster {
            true => Scope::Cluster,
            false => self.served.clone().with(&self.gateways),
        }
    }
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
    /// Starts all watches.
    #[must_use]
    pub fn start(client: &Client, scopes: &Scopes, pods: Projection, wake: &Wake) -> Self {
        let label = format!("{}={}", labels::APP_MANAGED_BY, labels::FIELD_MANAGER);
        let (all, ours) = (Config::default(), Config::default().labels(&label));
        let deployment = |mut object: LlamaDeployment| {
            keep_writers_of_replicas(&mut object);
            Arc::new(object)
        };
        let pods = Arc::new(pods);
        let pod = move |pod: Pod| pods.pod(&pod);
        let node = |node: Node| Arc::new(nodes::node(node));
        let (nodes, priority_classes) = match scopes.reads_cluster {
            true => {
                let whole = Api::<Node>::all(client.clone());
                let nodes = Cache::start(whole, all.clone(), wake.clone(), node);
                let every = Api::<PriorityClass>::all(client.clone());
                let classes = Cache::start(every, all.clone(), wake.clone(), short);
                (nodes, classes)
            }
            false => (Cache::absent(node), Cache::absent(short)),
        };
        let served = &scopes.served;
        Self {
            deployments: Scoped::start(client, served, &all, wake, deployment),
            groups: Scoped::start(client, served, &all, wake, short),
            pods: Scoped::start(client, &scopes.pods(), &all, wake, pod),
            nodes,
            services: Scoped::start(client, served, &ours, wake, short),
            budgets: Scoped::start(client, served, &ours, wake, short),
            policies: Scoped::start(client, served, &ours, wake, short),
            revisions: Scoped::start(client, served, &ours, wake, short),
            priority_classes,
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
