//! The caches the operator decides from.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    scheduling::v1::PriorityClass,
    storage::v1::CSIDriver,
};
use kube::{Api, Client, Resource, runtime::watcher::Config};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use llamero_core::observed;

use super::{Cache, Change, Scope, Scoped};
use crate::{
    observe::{
        SeenPod, nodes,
        seen_pod::Projection,
        volumes::{self, SeenClaim, SeenDriver, SeenVolume},
        writers::keep_writers_of_replicas,
    },
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
    /// Claims of the namespaces served, in short form, volumes, and how drivers attach them; none where one of these may not be read.
    pub claims: Scoped<PersistentVolumeClaim, SeenClaim>,
    /// Volumes, in short form.
    pub volumes: Cache<PersistentVolume, Arc<SeenVolume>>,
    /// Drivers of volumes.
    pub drivers: Cache<CSIDriver, SeenDriver>,
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
    /// Claims of the namespaces served, volumes and their drivers may be read.
    pub reads_volumes: bool,
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
    /// Claims.
    pub claims: Vec<Change<SeenClaim>>,
    /// Volumes.
    pub volumes: Vec<Change<Arc<SeenVolume>>>,
    /// Drivers of volumes.
    pub drivers: Vec<Change<SeenDriver>>,
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
        let (volumes, drivers) = match scopes.reads_volumes {
            true => {
                let every = Api::<PersistentVolume>::all(client.clone());
                let volumes = Cache::start(every, all.clone(), wake.clone(), volumes::volume);
                let every = Api::<CSIDriver>::all(client.clone());
                (
                    volumes,
                    Cache::start(every, all.clone(), wake.clone(), volumes::driver),
                )
            }
            false => (Cache::absent(volumes::volume), Cache::absent(volumes::driver)),
        };
        // Of no namespace where volumes may not be read: claims alone say little.
        let nowhere = Scope::Namespaces(BTreeSet::new());
        let claimed = if scopes.reads_volumes { served } else { &nowhere };
        Self {
            claims: Scoped::start(client, claimed, &all, wake, volumes::claim),
            volumes,
            drivers,
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
        self.claims.synced().await;
        self.volumes.synced().await;
        self.drivers.synced().await;
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
            claims: self.claims.take(),
            volumes: self.volumes.take(),
            drivers: self.drivers.take(),
        }
    }
}
