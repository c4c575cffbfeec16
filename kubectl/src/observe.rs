//! Objects of the API as the decisions take them. What supervisors tell the operator is not in the API; what it wrote down of that, is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use k8s_openapi::api::{
    apps::v1::ControllerRevision,
    core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod},
    scheduling::v1::PriorityClass,
    storage::v1::CSIDriver,
};
use kube::{Api, Resource, ResourceExt as _};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use llamero_core::{
    Observed,
    observed::{self, PodPhase, Priority},
    resources::{self, Resources},
    time::Millis,
    volumes::{Claims, Volume},
};

use crate::cluster::{Cluster, list};

/// What is listed for a plan.
#[derive(Debug, Default)]
pub struct Listed {
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Pods of groups.
    pub pods: Vec<Pod>,
    /// By node and priority: what pods take.
    pub used: BTreeMap<String, BTreeMap<i32, Resources>>,
    /// LlamaDeployments.
    pub deployments: Vec<LlamaDeployment>,
    /// LlamaGroups.
    pub groups: Vec<LlamaGroup>,
    /// Kept revisions.
    pub revisions: Vec<ControllerRevision>,
    /// Priority classes.
    pub priority_classes: Vec<PriorityClass>,
    /// Claims, volumes and drivers of these; none where the user may not list them.
    pub claims: Vec<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Vec<PersistentVolume>,
    /// Drivers of volumes.
    pub drivers: Vec<CSIDriver>,
}

impl Listed {
    /// Lists the whole cluster: a placement depends on all of it.
    ///
    /// # Errors
    /// What the user may not list.
    pub async fn from(cluster: &Cluster) -> Result<Self> {
        let client = || cluster.client.clone();
        let mut listed = Self {
            nodes: list::all(&Api::all(client()), "nodes").await?,
            deployments: list::all(&Api::all(client()), "llamadeployments.llamero.dev").await?,
            groups: list::all(&Api::all(client()), "llamagroups.llamero.dev").await?,
            priority_classes: list::all(&Api::all(client()), "priorityclasses.scheduling.k8s.io").await?,
            revisions: list::all(&Api::all(client()), "controllerrevisions.apps").await?,
            ..Self::default()
        };
        if let Err(error) = listed.list_volumes(cluster).await {
            eprintln!("note: where volumes can be mounted is left out of account: {error:#}");
        }
        list::each(&Api::all(client()), "pods", |pod| listed.add(pod)).await?;
        Ok(listed)
    }

    async fn list_volumes(&mut self, cluster: &Cluster) -> Result<()> {
        let client = || cluster.client.clone();
        self.volumes = list::all(&Api::all(client()), "persistentvolumes").await?;
        self.drivers = list::all(&Api::all(client()), "csidrivers.storage.k8s.io").await?;
        self.claims = list::all(&Api::all(client()), "persistentvolumeclaims").await?;
        Ok(())
    }

    /// Claims of a namespace, as far as they are bound.
    fn claims_of(&self, namespace: Option<&str>) -> Claims {
        let volumes = self.volumes.iter();
        let volumes: BTreeMap<String, Volume> = volumes
            .map(|volume| {
                let spec = volume.spec.clone().unwrap_or_default();
                (volume.name_any(), Volume::of(&spec))
            })
            .collect();
        let direct = self.drivers.iter();
        let direct = direct.filter(|driver| driver.spec.attach_required == Some(false));
        let direct: BTreeSet<String> = direct.map(|driver| driver.name_any()).collect();
        let claims = self.claims.iter();
        let claims = claims.filter(|claim| claim.namespace().as_deref() == namespace);
        claims
            .filter_map(|claim| {
                let volume = claim.spec.as_ref()?.volume_name.as_ref()?;
                Some((claim.name_any(), volumes.get(volume)?.claim(&direct)))
            })
            .collect()
    }

    /// Counts what a pod takes, and keeps it if it is of a group.
    pub fn add(&mut self, pod: Pod) {
        if let (Some(node), Some(spec)) = (taken_node(&pod), &pod.spec) {
            let priorities = self.used.entry(node.to_owned()).or_default();
            let used = priorities.entry(spec.priority.unwrap_or(0)).or_default();
            used.add(&resources::of_pod(spec));
        }
        if [labels::GROUP_NAME, labels::PLACEHOLDER_OF]
            .iter()
            .any(|label| pod.labels().contains_key(*label))
        {
            self.pods.push(pod);
        }
    }

    /// Everything as one value.
    #[must_use]
    pub fn observed(&self, now: Millis) -> Observed {
        let classes = &self.priority_classes;
        let default = classes.iter().find(|class| class.global_default == Some(true));
        let nodes = self.nodes.iter().map(|node| {
            let used = self.used.get(&node.name_any()).cloned().unwrap_or_default();
            self::node(node, used)
        });
        Observed {
            nodes: nodes.collect(),
            priority_classes: classes
                .iter()
                .map(|class| (class.name_any(), priority(class)))
                .collect(),
            default_priority: default.map(priority).unwrap_or_default(),
            deployments: self.deployments.iter().map(|d| self.deployment(d, now)).collect(),
            ..Observed::default()
        }
    }

    /// A deployment with what belongs to it.
    #[must_use]
    pub fn deployment(&self, object: &LlamaDeployment, now: Millis) -> observed::Deployment {
        let groups: Vec<&LlamaGroup> = self.groups.iter().filter(|group| owned(*group, object)).collect();
        let foreign = self
            .groups
            .iter()
            .filter(|group| group.namespace() == object.namespace() && !owned(*group, object));
        observed::Deployment {
            names_in_use: foreign
                .map(|group| group.name_any())
                .collect::<BTreeSet<_>>()
                .into(),
            claims: self.claims_of(object.namespace().as_deref()).into(),
            groups: groups.into_iter().map(|group| self.group(group, now)).collect(),
            inspect: Vec::new(),
            service: None,
            network_policy: None,
            revisions: self
                .revisions
                .iter()
                .filter(|revision| owned(*revision, object))
                .map(revision)
                .collect(),
            replicas_manager: None,
            refusals: Vec::new(),
            demand: None,
            object: Arc::new(object.clone()),
        }
    }

    fn group(&self, object: &LlamaGroup, now: Millis) -> observed::Group {
        let pods = self.pods.iter().filter(|pod| owned(*pod, object));
        observed::Group {
            writing: None,
            pods: pods.filter_map(|pod| self::pod(pod, object, now)).collect(),
            placeholders: self
                .pods
                .iter()
                .filter(|pod| owned(*pod, object))
                .filter_map(placeholder)
                .collect(),
            budget: None,
            refusals: Vec::new(),
            load: None,
            object: Arc::new(object.clone()),
        }
    }
}

/// Whether `owner` controls `object`: by its UID, never by name or label alone.
#[must_use]
pub fn owned<K: Resource, O: Resource>(object: &K, owner: &O) -> bool {
    let Some(uid) = owner.meta().uid.as_deref() else {
        return false;
    };
    let references = object.meta().owner_references.iter().flatten();
    references
        .into_iter()
        .any(|reference| reference.controller == Some(true) && reference.uid == uid)
}

/// The node on which a pod takes room: where it is bound until it has ended, or where it was nominated to. Members of groups that are not
/// bound yet are reserved in the groups.
fn taken_node(pod: &Pod) -> Option<&str> {
    if phase(pod).ended() {
        return None;
    }
    let named = |name: &&str| !name.is_empty();
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let status = pod.status.as_ref();
    let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
    bound
        .filter(named)
        .or_else(|| nominated.filter(|name| named(name) && !pod.labels().contains_key(labels::GROUP_NAME)))
}

fn phase(pod: &Pod) -> PodPhase {
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        _ => PodPhase::Pending,
    }
}

fn priority(class: &PriorityClass) -> Priority {
    Priority {
        value: class.value,
        preempts: class.preemption_policy.as_deref() != Some("Never"),
    }
}

fn node(node: &Node, used: BTreeMap<i32, Resources>) -> observed::Node {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let spec = node.spec.as_ref();
    observed::Node {
        name: node.name_any(),
        labels: node.labels().clone(),
        taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
        ready: conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        allocatable: status
            .and_then(|status| status.allocatable.as_ref())
            .map(Resources::from_quantities)
            .unwrap_or_default(),
        used,
    }
}

fn placeholder(pod: &Pod) -> Option<observed::Placeholder> {
    Some(observed::Placeholder {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        index: pod.labels().get(labels::PLACEHOLDER)?.parse().ok()?,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ended: phase(pod).ended(),
    })
}

fn pod(pod: &Pod, group: &LlamaGroup, now: Millis) -> Option<observed::Pod> {
    let number = |label: &str| pod.labels().get(label).and_then(|value| value.parse().ok());
    let status = pod.status.as_ref();
    let spec = pod.spec.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    let gates = spec.and_then(|spec| spec.scheduling_gates.as_ref());
    let phase = phase(pod);
    Some(observed::Pod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        index: number(labels::MEMBER)?,
        attempt: number(labels::ATTEMPT)?,
        node: spec.and_then(|spec| spec.node_name.clone()),
        gated: gates
            .into_iter()
            .flatten()
            .any(|gate| gate.name == labels::PLACEMENT_GATE),
        phase,
        deletion: pod
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|_| pod.metadata.deletion_grace_period_seconds.unwrap_or(0)),
        ready: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        ip: status.and_then(|status| status.pod_ip.clone()),
        report: report(group, &pod.name_any(), now).filter(|_| phase == PodPhase::Running),
        ..observed::Pod::default()
    })
}

/// What the pod's supervisor told, as far as the operator wrote it into the group's status.
fn report(group: &LlamaGroup, pod: &str, now: Millis) -> Option<observed::Report> {
    let status = group.status.as_ref()?;
    let ranks: Vec<observed::Rank> = status
        .ranks
        .iter()
        .filter(|rank| rank.pod == pod)
        .map(|rank| observed::Rank {
            rank: rank.rank,
            phase: rank.phase,
            loaded_bytes: rank.loaded_bytes,
            total_bytes: rank.total_bytes,
            entered: rank.entered,
            completed: rank.completed,
            pid: rank.pid,
            content_identity: status.content_identity.clone().unwrap_or_default(),
            numerics: status.numerics.clone().unwrap_or_default(),
            device: rank.device.clone(),
            ..observed::Rank::default()
        })
        .collect();
    (!ranks.is_empty()).then(|| observed::Report {
        received_at: now,
        alive_at: now,
        generation: status.generation,
        serving: status.ready && ranks.iter().any(|rank| rank.rank == 0),
        ranks,
        draining: false,
        longest_sequence: 0,
    })
}

/// A kept snapshot; without its template when that cannot be read.
#[must_use]
pub fn revision(object: &ControllerRevision) -> observed::Revision {
    let template = object.data.as_ref().and_then(|data| data.0.get("template"));
    observed::Revision {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        digest: object.labels().get(labels::REVISION).cloned().unwrap_or_default(),
        number: object.revision,
        template: template.and_then(|template| serde_json::from_value(template.clone()).ok()),
    }
}

#[cfg(test)]
mod tests {
    use llamero_core::resources::{CPU, PODS};
    use serde_json::{Value, json};

    use super::*;

    fn listed(pods: &[Value]) -> Listed {
        let mut listed = Listed::default();
        for pod in pods {
            listed.add(serde_json::from_value(pod.clone()).unwrap());
        }
        listed
    }

    fn taking(node: Value, labels: Value, status: Value) -> Value {
        json!({"metadata": {"name": "p", "labels": labels}, "status": status,
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}]}})
    }

    #[test]
    fn pods_take_room_until_they_have_ended() {
        let member = json!({"llamero.dev/group": "g"});
        let nominated = json!({"phase": "Pending", "nominatedNodeName": "b"});
        let listed = listed(&[
            taking(json!("a"), json!({}), json!({"phase": "Running"})),
            taking(json!("a"), member.clone(), json!({"phase": "Pending"})),
            taking(json!("a"), json!({}), json!({"phase": "Failed"})),
            taking(Value::Null, json!({}), nominated.clone()),
            taking(Value::Null, member, nominated),
        ]);
        assert_eq!(
            listed.used["a"][&0],
            Resources::new().with(CPU, 1000).with(PODS, 2)
        );
        assert_eq!(
            listed.used["b"][&0],
            Resources::new().with(CPU, 500).with(PODS, 1)
        );
        assert_eq!(listed.pods.len(), 2);
    }

    #[test]
    fn what_belongs_to_an_object_has_its_uid() {
        let deployment: LlamaDeployment = serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "metadata": {"name": "d", "uid": "u"},
            "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 1}},
        }))
        .unwrap();
        let child = |uid: &str, controller: bool| -> Pod {
            serde_json::from_value(json!({"metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": "K", "name": "d", "uid": uid, "controller": controller}]}}))
            .unwrap()
        };
        assert!(owned(&child("u", true), &deployment));
        assert!(!owned(&child("u", false), &deployment) && !owned(&child("v", true), &deployment));
        let mut unborn = deployment;
        unborn.metadata.uid = None;
        assert!(!owned(&child("u", true), &unborn));
    }
}
