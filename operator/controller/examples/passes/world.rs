//! A cluster in memory that obeys plans.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::Pod},
    apimachinery::pkg::{
        apis::meta::v1::{Condition, ObjectMeta},
        runtime::RawExtension,
    },
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use llamero_api::{
    LlamaDeployment, LlamaGroup,
    deployment::{CheckpointStatus, condition},
    labels,
};
use llamero_core::{
    Action, Key, children::ManagedObject, observed::Settings, revision, status::Reports, time,
};
use llamero_operator::{
    apply::Refusals,
    build::{parts::owner_reference, pod::member_pod},
    links::{Membership, Received, Streams},
    observe::{Model, SeenPod, nodes, seen_pod::Projection},
    watch::{Change, Changes},
};
use llamero_proto::v1;
use serde_json::{Value, json};

const GPU: &str = "nvidia.com/gpu";
const NAMESPACE: &str = "models";

/// What pods say; everybody is listened to.
#[derive(Default)]
struct Said(HashMap<String, Received<v1::PodReport>>);

impl Streams for Said {
    fn follow(&mut self, _: &Membership<'_>, _: i64) {}
    fn forget(&mut self, pod_uid: &str) {
        self.0.remove(pod_uid);
    }
    fn report(&self, pod_uid: &str) -> Option<Received<v1::PodReport>> {
        self.0.get(pod_uid).cloned()
    }
    fn tried_since(&self, _: &str) -> Option<Timestamp> {
        None
    }
    fn load(&self, _: &str) -> Option<Received<v1::LoadSample>> {
        None
    }
}

pub(crate) struct World {
    model: Model,
    projection: Projection,
    said: Said,
    settings: Settings,
    refusals: Refusals,
    changes: Changes,
    heard: Vec<String>,
    now: i64,
    serial: u64,
    deployments: BTreeMap<Key, Arc<LlamaDeployment>>,
    groups: BTreeMap<Key, Arc<LlamaGroup>>,
    pods: HashMap<Key, (Pod, SeenPod)>,
    node: Arc<llamero_core::observed::Node>,
    foreign: Option<SeenPod>,
}

fn new<T>(after: T) -> Change<T> {
    Change {
        before: None,
        after: Some(after),
    }
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of this program is well-formed")
}

fn foreign_pod(at: usize, node: usize) -> Pod {
    of(json!({
        "metadata": {"name": format!("web-{at}"), "namespace": format!("team-{}", at % 50), "uid": format!("f{at}"),
            "labels": {"app": format!("web-{}", at % 400)}},
        "spec": {"nodeName": format!("node-{node}"), "priority": 0, "containers": [{"name": "web", "image": "web:1",
            "resources": {"requests": {"cpu": format!("{}m", 50 + at % 8 * 25), "memory": "128Mi"}}}]},
        "status": {"phase": "Running"},
    }))
}

fn node(at: usize) -> Arc<llamero_core::observed::Node> {
    let capacity =
        json!({"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti", GPU: "16"});
    Arc::new(nodes::node(of(json!({
        "metadata": {"name": format!("node-{at}"), "labels": {
            "kubernetes.io/hostname": format!("node-{at}"), "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": format!("z{}", at % 3),
            "node.kubernetes.io/instance-type": "p5.48xlarge", "nvidia.com/gpu.memory": "81559", "nvidia.com/gpu.product": "H100"}},
        "status": {"allocatable": capacity, "conditions": [{"type": "Ready", "status": "True"}]},
    }))))
}

/// A node that nothing runs on.
fn spare() -> Arc<llamero_core::observed::Node> {
    let mut node = node(0).as_ref().clone();
    (node.name, node.unschedulable) = ("spare".into(), true);
    Arc::new(node)
}

impl World {
    pub(crate) fn new(nodes: usize, foreign: usize) -> Self {
        let projection = Projection::new("llamero-system", "app=gateway".parse().expect("a selector"));
        let changes = Changes {
            nodes: (0..nodes).map(node).chain([spare()]).map(new).collect(),
            // Parsed and made short one after another, as they come out of a watch.
            pods: (0..foreign)
                .map(|at| new(projection.pod(&foreign_pod(at, at % nodes))))
                .collect(),
            ..Changes::default()
        };
        Self {
            model: Model::default(),
            projection,
            said: Said::default(),
            settings: Settings {
                worker_image: "worker:1".into(),
                ..Settings::default()
            },
            refusals: Refusals::default(),
            changes,
            heard: Vec::new(),
            now: Timestamp::now().as_millisecond(),
            serial: 0,
            deployments: BTreeMap::new(),
            groups: BTreeMap::new(),
            pods: HashMap::new(),
            node: spare(),
            foreign: None,
        }
    }

    /// Asks for so many deployments of so many groups of eight pods with one device each.
    pub(crate) fn deploy(&mut self, deployments: usize, groups: usize) {
        for at in 0..deployments {
            let mut object: LlamaDeployment = of(json!({
                "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
                "metadata": {"name": format!("llama-{at}"), "namespace": NAMESPACE, "uid": format!("d{at}"), "generation": 1,
                    "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"model": {"name": format!("m{at}"), "source": {"hostPath": {"path": "/w"}}, "maxContextLength": 4096},
                    "parallelism": {"tensor": 8}, "accelerator": {"resource": GPU, "perNode": 1, "memory": "80Gi"}, "replicas": groups},
            }));
            let plans: Vec<Value> = [1, 2, 4, 8]
                .iter()
                .map(|tensor| {
                    json!({"tensor": tensor, "weightBytesPerRank": (8i64 << 30) / tensor, "kvBytesPerTokenPerRank": 1024})
                })
                .collect();
            object.status.get_or_insert_default().checkpoint = Some(CheckpointStatus {
                key: revision::inspect_key(&object.spec),
                pod_uid: Some("inspected".into()),
                image: None,
                image_id: None,
                inspected_at: time::to_time(self.now),
                summary: Some(of(
                    json!({"formatVersion": 1, "architecture": "LlamaForCausalLM", "hiddenSize": 4096, "layers": 32,
                    "qHeads": 32, "kvHeads": 8, "headDim": 128, "ffnSize": 14336, "vocabSize": 128256, "maxPositionEmbeddings": 8192,
                    "weights": "fp8", "parameters": 8i64 << 30, "checkpointBytes": 8i64 << 30, "plans": plans,
                    "backends": ["cpu", "cuda"]}),
                )),
                error: None,
            });
            let key = Key::of(&object.metadata);
            let object = Arc::new(object);
            self.changes.deployments.push(new(Arc::clone(&object)));
            self.deployments.insert(key, object);
        }
    }

    /// One pass of the operator, timed; then everybody obeys.
    pub(crate) fn pass(&mut self) -> Duration {
        self.now += 1_000;
        let now = self.now;
        let began = Instant::now();
        self.model.take(std::mem::take(&mut self.changes));
        self.model.heard(std::mem::take(&mut self.heard));
        self.model
            .refresh(&mut self.said, &self.settings, &self.refusals, now);
        let plan = self.model.pass(now);
        let reports = self.model.report(&plan, now);
        let took = began.elapsed();
        for step in &plan.steps {
            self.obey(&step.action);
        }
        self.write_statuses(reports);
        took
    }

    pub(crate) fn serves(&self) -> bool {
        !self.groups.is_empty()
            && self
                .groups
                .values()
                .all(|group| group.status.as_ref().is_some_and(|s| s.ready))
    }

    /// What one of the deployments and one of the groups that do not serve are said to wait for.
    pub(crate) fn what_is_missing(&self) -> Vec<String> {
        let mut deployments = self.deployments.values().filter_map(|d| d.status.as_ref());
        let mut groups = self.groups.values().filter_map(|g| g.status.as_ref());
        let group = groups.find(|status| !status.ready);
        let waits =
            |condition: &&Condition| condition.type_ == condition::READY && condition.status != "True";
        let conditions = deployments.find_map(|status| status.conditions.iter().find(waits));
        conditions
            .into_iter()
            .map(|condition| format!("{}={}: {}", condition.type_, condition.status, condition.message))
            .chain(group.map(|status| format!("{:?}: {}", status.phase, status.message)))
            .collect()
    }

    /// Until nothing is written any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..120 {
            self.pass();
        }
    }

    fn version(&mut self) -> Option<String> {
        self.serial += 1;
        Some(self.serial.to_string())
    }

    fn write_statuses(&mut self, reports: Reports) {
        for (key, status) in reports.groups {
            let known = self
                .groups
                .get(&key)
                .filter(|group| group.status.as_ref() != Some(&status));
            if let Some(mut object) = known.map(|group| group.as_ref().clone()) {
                object.status = Some(status);
                self.put_group(object);
            }
        }
        for (key, status) in reports.deployments {
            let Some(known) = self
                .deployments
                .get(&key)
                .filter(|d| d.status.as_ref() != Some(&status))
            else {
                continue;
            };
            let before = Arc::clone(known);
            let mut object = before.as_ref().clone();
            object.status = Some(status);
            object.metadata.resource_version = self.version();
            let after = Arc::new(object);
            self.deployments.insert(key, Arc::clone(&after));
            self.changes.deployments.push(Change {
                before: Some(before),
                after: Some(after),
            });
        }
    }

    fn put_group(&mut self, mut object: LlamaGroup) {
        object.metadata.resource_version = self.version();
        let key = Key::of(&object.metadata);
        let after = Arc::new(object);
        let before = self.groups.insert(key, Arc::clone(&after));
        self.changes.groups.push(Change {
            before,
            after: Some(after),
        });
    }

    fn put_pod(&mut self, pod: Pod) {
        let key = Key::of(&pod.metadata);
        let after = self.projection.pod(&pod);
        let before = self.pods.insert(key, (pod, after.clone())).map(|(_, seen)| seen);
        self.changes.pods.push(Change {
            before,
            after: Some(after),
        });
    }

    fn obey(&mut self, action: &Action) {
        match action {
            Action::CreateGroup {
                deployment,
                name,
                spec,
                ..
            } => {
                let Some(owner) = self.deployments.get(deployment) else {
                    return;
                };
                let mut object = LlamaGroup::new(name, spec.as_ref().clone());
                object.metadata.namespace = Some(deployment.namespace.clone());
                object.metadata.uid = Some(format!("g-{name}"));
                object.metadata.owner_references = owner_reference(owner.as_ref()).map(|owner| vec![owner]);
                self.put_group(object);
            }
            Action::WriteGroup { group, spec, .. } => {
                if let Some(mut object) = self.groups.get(group).map(|group| group.as_ref().clone()) {
                    object.spec = spec.as_ref().clone();
                    self.put_group(object);
                }
            }
            Action::CreatePod {
                group,
                name,
                index,
                attempt,
            } => {
                let Some(owner) = self.groups.get(group) else {
                    return;
                };
                let mut pod = member_pod(owner, *index, *attempt);
                pod.metadata.name = Some(name.clone());
                pod.metadata.namespace = Some(group.namespace.clone());
                pod.metadata.uid = Some(format!("p-{name}"));
                self.put_pod(pod);
            }
            Action::Ungate { pod, node, .. } => self.run(&pod.key, node),
            Action::Form {
                generation, targets, ..
            } => {
                for target in targets {
                    self.say(&target.pod_uid, u64::try_from(*generation).unwrap_or(0), 100);
                }
            }
            Action::CreateRevision {
                deployment,
                name,
                digest,
                number,
                template,
                ..
            } => {
                let Some(owner) = self.deployments.get(deployment) else {
                    return;
                };
                let revision = ControllerRevision {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(deployment.namespace.clone()),
                        uid: Some(format!("r-{name}")),
                        labels: Some([(labels::REVISION.to_owned(), digest.clone())].into()),
                        owner_references: owner_reference(owner.as_ref()).map(|owner| vec![owner]),
                        ..ObjectMeta::default()
                    },
                    revision: *number,
                    data: Some(RawExtension(json!({ "template": template }))),
                };
                self.changes.revisions.push(new(Arc::new(revision)));
            }
            Action::Apply { object, .. } => self.apply(object),
            other => panic!("a start asks for {}", other.kind()),
        }
    }

    fn apply(&mut self, object: &ManagedObject) {
        match object {
            ManagedObject::Service(service) => {
                self.changes
                    .services
                    .push(new(Arc::new(service.as_ref().clone())));
            }
            ManagedObject::Budget(budget) => {
                self.changes.budgets.push(new(Arc::new(budget.as_ref().clone())));
            }
            ManagedObject::Policy(policy) => {
                self.changes.policies.push(new(Arc::new(policy.as_ref().clone())));
            }
        }
    }

    /// Scheduler, kubelet and worker: the pod runs and has loaded.
    fn run(&mut self, key: &Key, node: &str) {
        let Some((pod, _)) = self.pods.get(key) else {
            return;
        };
        let mut pod = pod.clone();
        let spec = pod.spec.get_or_insert_default();
        spec.scheduling_gates = None;
        spec.node_name = Some(node.to_owned());
        self.serial += 1;
        let (hi, lo) = (self.serial / 250 % 250, self.serial % 250);
        pod.status = of(json!({"phase": "Running", "podIP": format!("10.9.{hi}.{lo}"),
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]}));
        let uid = pod.uid().unwrap_or_default();
        self.put_pod(pod);
        self.say(&uid, 0, 0);
    }

    /// A report of the pod's supervisor.
    fn say(&mut self, uid: &str, generation: u64, completed: u64) {
        let index: u32 = uid
            .rsplit('-')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let serving = generation > 0;
        let phase = if serving {
            v1::Phase::Serving
        } else {
            v1::Phase::Connecting
        };
        let rank = v1::RankReport {
            rank: index,
            phase: phase.into(),
            loaded_bytes: 1 << 30,
            total_bytes: 1 << 30,
            generation,
            entered: completed,
            completed,
            idle_millis: Some(5),
            still_millis: Some(5),
            pid: 7,
            content_identity: "c".into(),
            numerics: "n".into(),
            ..v1::RankReport::default()
        };
        let message = v1::PodReport {
            pod_uid: uid.to_owned(),
            generation,
            ranks: vec![rank],
            group_serving: serving && index == 0,
            ..v1::PodReport::default()
        };
        let at = Timestamp::from_millisecond(self.now).unwrap_or(Timestamp::UNIX_EPOCH);
        let received = Received {
            message,
            at,
            broken_at: None,
        };
        self.said.0.insert(uid.to_owned(), received);
        self.heard.push(uid.to_owned());
    }

    /// Counters of all leaders go on.
    pub(crate) fn leaders_report(&mut self) {
        let leaders: Vec<(String, u64)> = self
            .said
            .0
            .values()
            .filter(|said| said.message.group_serving)
            .map(|said| (said.message.pod_uid.clone(), said.message.ranks[0].completed))
            .collect();
        for (uid, completed) in leaders {
            self.say(&uid, 1, completed + 10);
        }
    }

    pub(crate) fn foreign_moves(&mut self) {
        let after = match self.foreign {
            Some(_) => None,
            None => Some(self.projection.pod(&foreign_pod(1 << 20, 0))),
        };
        let before = std::mem::replace(&mut self.foreign, after.clone());
        self.changes.pods.push(Change { before, after });
    }

    /// Its readiness flips.
    pub(crate) fn own_pod_changes(&mut self) {
        let Some(mut pod) = self.pods.values().next().map(|(pod, _)| pod.clone()) else {
            return;
        };
        let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut());
        for condition in conditions.into_iter().flatten().filter(|c| c.type_ == "Ready") {
            condition.status = if condition.status == "True" {
                "False"
            } else {
                "True"
            }
            .to_owned();
        }
        self.put_pod(pod);
    }

    /// A node without members is cordoned, or let go.
    pub(crate) fn cordon(&mut self) {
        let mut node = (*self.node).clone();
        node.unschedulable = !node.unschedulable;
        let after = Arc::new(node);
        let before = std::mem::replace(&mut self.node, Arc::clone(&after));
        self.changes.nodes.push(Change {
            before: Some(before),
            after: Some(after),
        });
    }

    /// As when the operator's settings change.
    pub(crate) fn everything_is_due(&mut self) {
        self.settings.disruption_taints = vec![format!("example.com/{}", self.serial)];
        self.serial += 1;
    }

    /// Only what the operator itself holds stays.
    pub(crate) fn drop_objects(&mut self) {
        (self.deployments, self.groups, self.pods) = Default::default();
    }
}
