//! Nodes, pods of others, the reference, LlamaDeployments.

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Node, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use llamero_api::LlamaDeployment;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::options::Options;

/// Where everything is.
pub(crate) const NAMESPACE: &str = "bench";
/// Label of the reference's pods.
pub(crate) const REFERENCE: &str = "reference";
/// Requests that are under way at the same time.
const AT_ONCE: usize = 64;
/// Nodes beyond this number have no network of their own: 10.224.0.0/11 is as large.
const MOST_NODES: usize = 8192;

pub(crate) struct Cluster {
    client: Client,
    options: Options,
}

fn of<T: DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    Ok(serde_json::from_value(value)?)
}

fn node(at: usize) -> anyhow::Result<Node> {
    let room = json!({"cpu": "64", "memory": "512Gi", "pods": "200", "ephemeral-storage": "1Ti"});
    of(json!({
        "metadata": {"name": format!("fake-{at}"), "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": format!("fake-{at}"), "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": format!("z{}", at % 3)}},
        "spec": {"podCIDR": format!("10.{}.{}.0/24", 224 + at / 256, at % 256)},
        "status": {"allocatable": room.clone(), "capacity": room},
    }))
}

fn foreign(at: usize, nodes: usize) -> anyhow::Result<Pod> {
    of(json!({
        "metadata": {"name": format!("web-{at}"), "labels": {"app": format!("web-{}", at % 400)}},
        "spec": {"nodeName": format!("fake-{}", at % nodes), "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "web:1", "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}]},
    }))
}

impl Cluster {
    pub(crate) fn new(client: Client, options: &Options) -> Self {
        Self {
            client,
            options: options.clone(),
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Creates what is not there yet.
    async fn create<K>(
        &self,
        api: Api<K>,
        objects: impl Iterator<Item = anyhow::Result<K>>,
    ) -> anyhow::Result<()>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
    {
        futures::stream::iter(objects)
            .map(|object| {
                let api = api.clone();
                async move {
                    match api.create(&PostParams::default(), &object?).await {
                        Ok(_) => Ok(()),
                        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                        Err(error) => Err(anyhow::Error::from(error)),
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Namespace, fake nodes and pods of others.
    pub(crate) async fn prepare(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.options.nodes <= MOST_NODES, "at most {MOST_NODES} nodes");
        let namespace: Namespace = of(json!({"metadata": {"name": NAMESPACE}}))?;
        self.create(Api::all(self.client.clone()), [Ok(namespace)].into_iter())
            .await?;
        self.create(Api::all(self.client.clone()), (0..self.options.nodes).map(node))
            .await?;
        let nodes = self.options.nodes;
        self.create(self.api(), (0..self.options.foreign).map(|at| foreign(at, nodes)))
            .await
    }

    /// Fake nodes that are Ready.
    pub(crate) async fn ready_nodes(&self) -> anyhow::Result<usize> {
        let nodes = Api::<Node>::all(self.client.clone());
        let list = nodes.list(&ListParams::default().labels("type=kwok")).await?;
        let ready = |node: &Node| {
            let mut conditions = node.status.iter().flat_map(|s| &s.conditions).flatten();
            conditions.any(|c| c.type_ == "Ready" && c.status == "True")
        };
        Ok(list.items.iter().filter(|node| ready(node)).count())
    }

    /// A plain Deployment of as many pods.
    pub(crate) async fn create_reference(&self) -> anyhow::Result<()> {
        let deployment = of(json!({
            "metadata": {"name": REFERENCE},
            "spec": {"replicas": self.options.all_pods(), "selector": {"matchLabels": {"app": REFERENCE}},
                "template": {"metadata": {"labels": {"app": REFERENCE}}, "spec": {
                    "nodeSelector": {"type": "kwok"}, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                    "containers": [{"name": "web", "image": "web:1", "resources": {"requests": {"cpu": "1", "memory": "2Gi"}}}]}}},
        }))?;
        self.create(self.api::<Deployment>(), [Ok(deployment)].into_iter())
            .await
    }

    pub(crate) async fn delete_reference(&self) -> anyhow::Result<()> {
        let background = DeleteParams::background();
        self.api::<Deployment>().delete(REFERENCE, &background).await?;
        Ok(())
    }

    /// As many LlamaDeployments as wanted, of so many groups each.
    pub(crate) async fn deploy(&self, groups: usize) -> anyhow::Result<()> {
        let per_group = self.options.per_group;
        let one = |at: usize| {
            of(json!({
                "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
                "metadata": {"name": format!("llama-{at}")},
                "spec": {"model": {"name": format!("m-{at}"), "source": {"hostPath": {"path": "/w"}}, "maxContextLength": 1024},
                    "parallelism": {"tensor": per_group}, "replicas": groups,
                    "placement": {"onePodPerNode": "Required"},
                    "worker": {"nodeSelector": {"type": "kwok"}, "resources": {"requests": {"cpu": "1", "memory": "4Gi"}}}},
            }))
        };
        let all = (0..self.options.deployments).map(one);
        self.create(self.api::<LlamaDeployment>(), all).await
    }

    /// Sets how many groups each of the first `deployments` has.
    pub(crate) async fn scale(&self, deployments: usize, groups: usize) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"spec": {"replicas": groups}}));
        for at in 0..deployments {
            let name = format!("llama-{at}");
            let api = self.api::<LlamaDeployment>();
            api.patch(&name, &PatchParams::default(), &patch).await?;
        }
        Ok(())
    }

    /// Whether every one of the first `deployments` has exactly so many groups, all ready.
    pub(crate) async fn all_ready(&self, deployments: usize, groups: usize) -> anyhow::Result<bool> {
        let list = self.api::<LlamaDeployment>().list(&ListParams::default()).await?;
        let names: Vec<String> = (0..deployments).map(|at| format!("llama-{at}")).collect();
        let groups = i32::try_from(groups)?;
        let ready = |object: &LlamaDeployment| {
            let status = object.status.as_ref();
            status.is_some_and(|s| {
                s.ready_replicas == groups
                    && s.replicas == groups
                    && Some(s.observed_generation) == object.metadata.generation
            })
        };
        let concerned = list
            .items
            .iter()
            .filter(|object| names.contains(&object.name_any()));
        Ok(list.items.len() >= deployments && concerned.into_iter().all(ready))
    }
}
