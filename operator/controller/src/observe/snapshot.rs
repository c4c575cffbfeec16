//! The input of a pass, and how it becomes one value.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::{
        apps::v1::ControllerRevision,
        core::v1::{Node, Pod, Service},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        scheduling::v1::PriorityClass,
    },
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt as _};
use llamero_api::{LlamaDeployment, LlamaGroup, labels};
use llamero_core::{Observed, network::policy_name, observed};
use llamero_proto::v1;

use super::{nodes, pods, streams, writers};
use crate::{
    apply::{Refusals, Subject, index::key_of},
    build::parts::namespace_of,
    links::Received,
};

/// What the caches and streams hold at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All LlamaDeployments served.
    pub deployments: Vec<Arc<LlamaDeployment>>,
    /// All LlamaGroups.
    pub groups: Vec<Arc<LlamaGroup>>,
    /// All pods of the cluster.
    pub pods: Vec<Arc<Pod>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Services that we manage.
    pub services: Vec<Arc<Service>>,
    /// Disruption budgets that we manage.
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    /// Network policies that we manage.
    pub policies: Vec<Arc<NetworkPolicy>>,
    /// Kept revisions.
    pub revisions: Vec<Arc<ControllerRevision>>,
    /// All priority classes.
    pub priority_classes: Vec<Arc<PriorityClass>>,
    /// Rank reports by pod UID.
    pub reports: HashMap<String, Received<v1::PodReport>>,
    /// Load by UID of the leader's pod.
    pub loads: HashMap<String, Received<v1::LoadSample>>,
    /// One entry for each ready gateway.
    pub gateways: Vec<Option<Received<v1::DemandSample>>>,
}

/// Puts everything where it belongs: by the UID of the controlling owner, never by label alone.
#[must_use]
pub fn observe(
    snapshot: &Snapshot,
    settings: &observed::Settings,
    refusals: &Refusals,
    now: Timestamp,
) -> Observed {
    let owned = Owned::of(snapshot, refusals, now);
    let mut deployments: Vec<_> = snapshot.deployments.iter().map(|d| owned.deployment(d)).collect();
    deployments.sort_by_key(|deployment| {
        (
            namespace_of(deployment.object.as_ref()),
            deployment.object.name_any(),
        )
    });
    let classes = &snapshot.priority_classes;
    let default = classes.iter().find(|class| class.global_default == Some(true));
    Observed {
        settings: settings.clone(),
        nodes: nodes::nodes(&snapshot.nodes, &snapshot.pods),
        priority_classes: classes
            .iter()
            .map(|class| (class.name_any(), class.value))
            .collect(),
        default_priority: default.map_or(0, |class| class.value),
        deployments,
    }
}

type ByOwner<'a, K> = BTreeMap<String, Vec<&'a Arc<K>>>;

/// A snapshot whose objects are found by the UID of their controller.
struct Owned<'a> {
    snapshot: &'a Snapshot,
    refusals: &'a Refusals,
    now: Timestamp,
    pods: ByOwner<'a, Pod>,
    groups: ByOwner<'a, LlamaGroup>,
    services: ByOwner<'a, Service>,
    budgets: ByOwner<'a, PodDisruptionBudget>,
    policies: ByOwner<'a, NetworkPolicy>,
    revisions: ByOwner<'a, ControllerRevision>,
    group_names: BTreeMap<String, BTreeSet<String>>,
}

impl<'a> Owned<'a> {
    fn of(snapshot: &'a Snapshot, refusals: &'a Refusals, now: Timestamp) -> Self {
        Self {
            snapshot,
            refusals,
            now,
            pods: by_owner(&snapshot.pods),
            groups: by_owner(&snapshot.groups),
            services: by_owner(&snapshot.services),
            budgets: by_owner(&snapshot.budgets),
            policies: by_owner(&snapshot.policies),
            revisions: by_owner(&snapshot.revisions),
            group_names: group_names(snapshot),
        }
    }

    fn deployment(&self, object: &Arc<LlamaDeployment>) -> observed::Deployment {
        let uid = object.uid().unwrap_or_default();
        let (namespace, name) = (namespace_of(object.as_ref()), object.name_any());
        let mut groups: Vec<_> = of(&self.groups, &uid)
            .iter()
            .map(|group| self.group(group))
            .collect();
        groups.sort_by_key(|group| group.object.name_any());
        let mut inspect: Vec<_> = of(&self.pods, &uid)
            .iter()
            .filter(|pod| pod.labels().contains_key(labels::INSPECT))
            .map(|pod| pods::inspect_pod(pod))
            .collect();
        inspect.sort_by(|one, other| (&one.name, &one.uid).cmp(&(&other.name, &other.uid)));
        let mut names_in_use = self.group_names.get(&namespace).cloned().unwrap_or_default();
        for group in &groups {
            names_in_use.remove(&group.object.name_any());
        }
        observed::Deployment {
            names_in_use,
            groups,
            inspect,
            service: named(&self.services, &uid, &labels::service_name(&name)),
            network_policy: named(&self.policies, &uid, &policy_name(&name)),
            revisions: of(&self.revisions, &uid).iter().map(|r| revision(r)).collect(),
            replicas_manager: writers::of_replicas(object),
            refusals: self.refusals.of(&Subject::Deployment(key_of(object.as_ref()))),
            demand: streams::demand(&self.snapshot.gateways, &namespace, &name),
            object: Arc::clone(object),
        }
    }

    fn group(&self, object: &Arc<LlamaGroup>) -> observed::Group {
        let uid = object.uid().unwrap_or_default();
        let report = |pod: &Pod| self.snapshot.reports.get(pod.metadata.uid.as_ref()?);
        let mut pods: Vec<_> = of(&self.pods, &uid)
            .iter()
            .filter_map(|pod| pods::worker_pod(pod, report(pod), self.now))
            .collect();
        pods.sort_by(|one, other| {
            (one.index, one.attempt, &one.uid).cmp(&(other.index, other.attempt, &other.uid))
        });
        let leader = pods
            .iter()
            .filter(|pod| pod.index == 0 && !pod.phase.ended())
            .max_by_key(|pod| pod.attempt);
        observed::Group {
            load: leader
                .and_then(|pod| self.snapshot.loads.get(&pod.uid))
                .map(streams::load),
            budget: named(&self.budgets, &uid, &object.name_any()),
            refusals: self.refusals.of(&Subject::Group(key_of(object.as_ref()))),
            pods,
            object: Arc::clone(object),
        }
    }
}

/// What the owner with this UID controls.
fn of<'a, 'b, K>(owned: &'b ByOwner<'a, K>, uid: &str) -> &'b [&'a Arc<K>] {
    owned.get(uid).map(Vec::as_slice).unwrap_or_default()
}

/// The one of this name among them.
fn named<K: Resource>(owned: &ByOwner<'_, K>, uid: &str, name: &str) -> Option<Arc<K>> {
    let mut objects = of(owned, uid).iter();
    objects
        .find(|object| object.meta().name.as_deref() == Some(name))
        .map(|object| Arc::clone(object))
}

/// A kept snapshot; without its template when that cannot be read.
fn revision(object: &ControllerRevision) -> observed::Revision {
    let data = object.data.as_ref().map(|data| data.0.clone());
    observed::Revision {
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        digest: object.labels().get(labels::REVISION).cloned().unwrap_or_default(),
        number: object.revision,
        template: data.and_then(|data| serde_json::from_value(data.get("template")?.clone()).ok()),
    }
}

/// Objects by the UID of their controller.
fn by_owner<K: Resource>(objects: &[Arc<K>]) -> ByOwner<'_, K> {
    let mut owned = ByOwner::new();
    for object in objects {
        let controller = object
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true));
        if let Some(owner) = controller {
            owned.entry(owner.uid.clone()).or_default().push(object);
        }
    }
    owned
}

/// By namespace: names that groups bear, or pods that still exist carry. Made once a pass, however many deployments there are.
fn group_names(snapshot: &Snapshot) -> BTreeMap<String, BTreeSet<String>> {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut add = |namespace: String, name: String| names.entry(namespace).or_default().insert(name);
    for group in &snapshot.groups {
        add(namespace_of(group.as_ref()), group.name_any());
    }
    for pod in &snapshot.pods {
        let labels = pod.metadata.labels.as_ref();
        if let Some(name) = labels.and_then(|labels| labels.get(labels::GROUP_NAME)) {
            add(namespace_of(pod.as_ref()), name.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn deployment(name: &str, uid: &str) -> Arc<LlamaDeployment> {
        object(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": name, "namespace": "n", "uid": uid},
            "spec": {"model": {"source": {"hostPath": {"path": "/w"}}}, "parallelism": {"tensor": 1}},
        }))
    }

    fn group(name: &str, uid: &str, owner: &str) -> Arc<LlamaGroup> {
        object(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
            "metadata": {"name": name, "namespace": "n", "uid": uid, "ownerReferences": owned(owner)},
            "spec": {"deployment": "d", "revision": "r", "generation": 1, "members": [{"index": 0, "attempt": 0}],
                "template": {"modelName": "m", "source": {"hostPath": {"path": "/w"}}, "maxContextLength": 1, "tensor": 1,
                    "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s"}},
        }))
    }

    fn owned(uid: &str) -> Value {
        json!([{"apiVersion": "v", "kind": "k", "name": "o", "uid": uid, "controller": true}])
    }

    fn pod(uid: &str, owner: &str, labels: Value) -> Arc<Pod> {
        object(
            json!({"metadata": {"name": uid, "namespace": "n", "uid": uid, "labels": labels, "ownerReferences": owned(owner)}}),
        )
    }

    fn member(group: &str) -> Value {
        json!({"llamero.dev/deployment": "d", "llamero.dev/group": group, "llamero.dev/member": "0", "llamero.dev/attempt": "0"})
    }

    #[test]
    fn everything_belongs_to_its_owner_by_uid() {
        let snapshot = Snapshot {
            deployments: vec![deployment("d", "d-uid")],
            groups: vec![
                group("d-0", "g-uid", "d-uid"),
                group("d-9", "other", "an earlier d"),
            ],
            pods: vec![
                pod("p", "g-uid", member("d-0")),
                pod("same label", "somebody", member("d-0")),
                pod("left", "gone", member("d-7")),
                pod(
                    "i",
                    "d-uid",
                    json!({"llamero.dev/deployment": "d", "llamero.dev/inspect": "key"}),
                ),
            ],
            services: vec![object(
                json!({"metadata": {"name": "d-inference", "ownerReferences": owned("d-uid")}}),
            )],
            budgets: vec![object(
                json!({"metadata": {"name": "d-0", "ownerReferences": owned("g-uid")}, "spec": {"minAvailable": 1}}),
            )],
            priority_classes: vec![object(
                json!({"metadata": {"name": "high"}, "value": 9, "globalDefault": true}),
            )],
            ..Snapshot::default()
        };
        let settings = observed::Settings {
            worker_image: "image".into(),
            ..observed::Settings::default()
        };
        let seen = observe(&snapshot, &settings, &Refusals::default(), Timestamp::UNIX_EPOCH);
        let [deployment] = seen.deployments.as_slice() else {
            panic!("one deployment")
        };
        let [group] = deployment.groups.as_slice() else {
            panic!("one group")
        };
        assert_eq!(
            group.pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(),
            ["p"]
        );
        assert!(group.budget.is_some());
        assert_eq!(
            deployment
                .inspect
                .iter()
                .map(|pod| pod.key.as_str())
                .collect::<Vec<_>>(),
            ["key"]
        );
        assert!(deployment.service.is_some());
        assert_eq!(
            deployment.names_in_use,
            BTreeSet::from(["d-7".to_owned(), "d-9".to_owned()])
        );
        assert_eq!(deployment.demand, None);
        assert_eq!((seen.default_priority, seen.priority_classes["high"]), (9, 9));
        assert_eq!(seen.settings.worker_image, "image");
    }
}
