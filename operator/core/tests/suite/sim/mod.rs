//! A cluster that obeys plans, with a scheduler, kubelets and workers, and with faults. Every step that is applied is checked against the
//! invariants of the planner.

mod apply;
mod faults;
mod life;
mod rest;
mod shared;

pub(crate) use faults::Fault;
pub(crate) use shared::Shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, policy::v1::PodDisruptionBudget};
use llamero_api::{
    LlamaDeployment, LlamaGroup,
    deployment::Degraded,
    duration::Duration,
    group::{Intent, LlamaGroupSpec, RankPhase},
    labels::PLACEHOLDER_PRIORITY,
};
use llamero_core::{
    Action, Plan, Step,
    children::ManagedObject,
    decide,
    observed::{
        Demand, Deployment, Exit, Group, InspectPod, Load, Node, OPEN, Observed, Placeholder, Pod, PodPhase,
        Rank, Refusal, Report, Revision, Settings,
    },
    plan::Confirm,
    refusals, report,
    resources::{self, Resources},
    status::Reports,
    time::Millis,
};

use crate::build::{self, GPU, NOW};

/// Bytes that a rank reads in one tick.
const READ: i64 = 2 << 30;

/// A taint of who is about to take a node away, and of who does so at once.
const GOING: &str = "going";
const GONE_SOON: &str = "gone-soon";

/// As the operator sees it: without what it has not heard.
fn seen(p: &SimPod) -> Pod {
    let mut pod = p.pod.clone();
    if p.unheard.is_some() {
        (pod.report, pod.unheard_since) = (None, p.unheard);
    }
    pod
}

/// Whether pods of the group may come to the node.
fn is_open(node: &Node) -> bool {
    node.ready && !node.unschedulable && node.taints.is_empty()
}

/// Whether it is being taken away.
fn goes(node: &Node) -> bool {
    node.unschedulable
        || node
            .taints
            .iter()
            .any(|taint| taint.key == GOING || taint.key == GONE_SOON)
}

struct SimPod {
    pod: Pod,
    /// When its kubelet ends it at the latest.
    gone_at: Option<Millis>,
    pinned: Option<String>,
    stuck: bool,
    /// Since when this operator tries to hear it and has not.
    unheard: Option<Millis>,
}

struct SimGroup {
    object: LlamaGroup,
    pods: Vec<SimPod>,
    placeholders: Vec<Placeholder>,
    budget: Option<Arc<PodDisruptionBudget>>,
    /// Membership that was pushed last.
    formed: BTreeSet<String>,
}

/// The cluster.
pub(crate) struct World {
    pub(crate) now: Millis,
    /// How far the operator's clock is ahead.
    ahead: Millis,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Room taken by others, by node.
    pub(crate) foreign: BTreeMap<String, Resources>,
    pub(crate) object: LlamaDeployment,
    pub(crate) requests: u32,
    /// Pods that the namespace may have.
    pub(crate) quota: usize,
    /// Nodes that an autoscaler of the cluster adds at most.
    most_nodes: usize,
    /// Nodes that nobody reaches: neither their kubelets nor the pods on them.
    down: BTreeSet<String>,
    /// The next pass is decided from what was observed before the last one.
    stale: bool,
    before: Option<Observed>,
    refusals: BTreeMap<String, Vec<Refusal>>,
    groups: Vec<SimGroup>,
    inspect: Vec<InspectPod>,
    service: Option<Arc<Service>>,
    revisions: Vec<Revision>,
    replicas_manager: Option<String>,
    serial: u64,
}

impl World {
    pub(crate) fn new(nodes: usize, replicas: i32) -> Self {
        let mut deployment = build::deployment(|d| {
            d["spec"]["replicas"] = replicas.into();
            d["spec"]["recovery"] =
                serde_json::json!({"restartBudget": 60, "backoff": "1s", "stallTimeout": "5s"});
            d["spec"]["placement"] = serde_json::json!({"deadline": "20s"});
            d["spec"]["disruption"] = serde_json::json!({"deadline": "30s"});
        });
        let mut object = Arc::make_mut(&mut deployment.object).clone();
        object.status = None;
        let nodes = (0..nodes)
            .map(|n| (format!("n{n}"), build::node(&format!("n{n}"), 2)))
            .collect();
        Self {
            now: NOW,
            ahead: 0,
            nodes,
            foreign: BTreeMap::new(),
            object,
            requests: 0,
            quota: usize::MAX,
            most_nodes: 0,
            down: BTreeSet::new(),
            stale: false,
            before: None,
            refusals: BTreeMap::new(),
            groups: Vec::new(),
            inspect: Vec::new(),
            service: None,
            revisions: Vec::new(),
            replicas_manager: None,
            serial: 0,
        }
    }

    /// What the operator takes for now.
    pub(super) fn clock(&self) -> Millis {
        self.now + self.ahead
    }

    /// Another resource version of the deployment.
    pub(super) fn touch(&mut self) {
        self.serial += 1;
        self.object.metadata.resource_version = Some(self.serial.to_string());
    }

    fn uid(&mut self) -> String {
        self.serial += 1;
        format!("uid-{}", self.serial)
    }

    /// What the controller would observe.
    pub(crate) fn observe(&self) -> Observed {
        let mut nodes: Vec<Node> = self.nodes.values().cloned().collect();
        for node in &mut nodes {
            node.used = [(0, self.used(&node.name))].into();
            let held = self.held(&node.name);
            if held != Resources::new() {
                node.used.insert(PLACEHOLDER_PRIORITY, held);
            }
        }
        let groups = self
            .groups
            .iter()
            .map(|group| {
                let pods: Vec<Pod> = group.pods.iter().map(seen).collect();
                let serves = self.serves(group);
                Group {
                    object: Arc::new(group.object.clone()),
                    writing: None,
                    pods,
                    placeholders: group.placeholders.clone(),
                    budget: group.budget.clone(),
                    refusals: self.refused(group),
                    load: serves.then_some(Load {
                        running: self.requests,
                        waiting: 0,
                        received_at: self.clock(),
                    }),
                }
            })
            .collect();
        Observed {
            settings: Settings {
                worker_image: "worker:1".into(),
                disruption_taints: vec![GOING.into(), GONE_SOON.into()],
                urgent_taints: vec![GONE_SOON.into()],
                ..Settings::default()
            },
            nodes,
            deployments: vec![Deployment {
                object: Arc::new(self.object.clone()),
                groups,
                names_in_use: Arc::default(),
                claims: Arc::default(),
                inspect: self.inspect.clone(),
                service: self.service.clone(),
                network_policy: None,
                revisions: self.revisions.clone(),
                replicas_manager: self.replicas_manager.clone(),
                refusals: vec![],
                demand: Some(Demand {
                    held: if self.groups.iter().any(|g| self.serves(g)) {
                        0
                    } else {
                        self.requests
                    },
                    in_flight: self.requests,
                    total: u64::from(self.requests),
                    received_at: self.clock(),
                }),
            }],
            ..Observed::default()
        }
    }

    fn refused(&self, group: &SimGroup) -> Vec<Refusal> {
        let name = group.object.metadata.name.as_deref().unwrap_or_default();
        self.refusals.get(name).cloned().unwrap_or_default()
    }

    /// Nodes are asked for, and added until there are so many.
    pub(crate) fn provisioned(nodes: usize, replicas: i32, most: usize) -> Self {
        let mut world = Self::new(nodes, replicas);
        world.object.spec.placement = serde_json::from_value(
            serde_json::json!({"deadline": "20s", "whenFull": "Provision", "provisionDeadline": "60s"}),
        )
        .unwrap();
        world.most_nodes = most;
        world.touch();
        world
    }

    /// On CPUs of nodes that hold one pod each, where a group may go on without members.
    pub(crate) fn degradable(nodes: usize) -> Self {
        let mut world = Self::new(nodes, 1);
        world.object.spec.accelerator = None;
        // What is kept for keys and values is enough for the part of the model that another leaves.
        world.object.spec.engine.kv_cache =
            serde_json::from_value(serde_json::json!({"memory": "8Gi"})).unwrap();
        world.object.spec.recovery.degraded = Degraded::Allow;
        world.object.spec.recovery.degraded_after = Duration::from_secs(5);
        world.one_pod_each();
        world.touch();
        world
    }

    /// Nodes that came meanwhile hold one pod, too.
    pub(crate) fn one_pod_each(&mut self) {
        for node in self.nodes.values_mut() {
            node.allocatable = node.allocatable.clone().with("pods", 1);
        }
    }

    /// Who has led serves on or again, and only those are missing for whom there is no room.
    pub(crate) fn check_degraded(&self) {
        for group in &self.groups {
            let (spec, states) = (&group.object.spec, self.states());
            assert!(!spec.without.contains(&0), "nobody leads: {states:?}");
            let unplaced = spec.members.iter().filter(|m| m.node.is_none()).count();
            let occupied = spec.members.iter().filter_map(|m| m.node.clone()).collect();
            assert!(
                unplaced == 0 || self.fitting(group, &occupied) == 0 || !self.serves(group),
                "there is room: {states:?}"
            );
            assert!(
                spec.without.is_empty() || unplaced > 0,
                "who has room is left out: {:?} {states:?}",
                spec.without
            );
            let led = spec.members.iter().any(|m| m.index == 0 && m.node.is_some());
            assert!(!led || self.serves(group), "nobody serves: {states:?}");
        }
    }

    /// With autoscaling from zero.
    pub(crate) fn autoscaled(nodes: usize) -> Self {
        let mut world = Self::new(nodes, 0);
        world.object.spec.autoscaling = serde_json::from_value(serde_json::json!({
            "minReplicas": 0, "maxReplicas": 3, "targetRequestsPerGroup": 4,
            "scaleDownStabilization": "20s", "idleTimeoutToZero": "30s"
        }))
        .unwrap();
        world.touch();
        world
    }

    fn used(&self, node: &str) -> Resources {
        let mut used = self.foreign.get(node).cloned().unwrap_or_default();
        for group in &self.groups {
            let request = resources::of_template(&group.object.spec.template);
            for p in group
                .pods
                .iter()
                .filter(|p| p.pod.node.as_deref() == Some(node) && !p.pod.phase.ended())
            {
                let _ = p;
                used.add(&request);
            }
        }
        used
    }

    /// What placeholders hold of a node.
    fn held(&self, node: &str) -> Resources {
        let mut held = Resources::new();
        for group in &self.groups {
            let request = resources::of_template(&group.object.spec.template);
            let there = |one: &&Placeholder| one.node.as_deref() == Some(node);
            group
                .placeholders
                .iter()
                .filter(there)
                .for_each(|_| held.add(&request));
        }
        held
    }

    fn reserved(&self, node: &str) -> Resources {
        let mut reserved = Resources::new();
        for group in &self.groups {
            let request = resources::of_template(&group.object.spec.template);
            for member in group
                .object
                .spec
                .members
                .iter()
                .filter(|m| m.node.as_deref() == Some(node))
            {
                let bound = group.pods.iter().any(|p| {
                    p.pod.index == member.index && p.pod.attempt == member.attempt && p.pod.node.is_some()
                });
                if !bound {
                    reserved.add(&request);
                }
            }
            let successors = group
                .object
                .spec
                .members
                .iter()
                .filter_map(|m| Some((m.index, m.successor.as_ref()?)));
            for (index, successor) in successors.filter(|(_, s)| s.node == node) {
                let mut pods = group.pods.iter();
                let pod = pods.find(|p| p.pod.index == index && p.pod.attempt == successor.attempt);
                if pod.is_none_or(|p| p.pod.node.is_none()) {
                    reserved.add(&request);
                }
            }
        }
        reserved
    }

    /// Decides, applies the steps that the mask selects, writes the status if `write_status`, and lets the cluster go on for a tick.
    pub(crate) fn pass(&mut self, mask: u64, write_status: bool) -> Plan {
        let present = self.observe();
        let observed = match (self.stale, self.before.take()) {
            (true, Some(before)) => self.aged(&present, before),
            _ => present.clone(),
        };
        self.before = Some(present);
        let now = self.clock();
        let plan = decide(&observed, now);
        assert_eq!(plan, decide(&observed, now), "the same input gives the same plan");
        self.obey(&plan.steps, mask);
        if write_status {
            self.write_status(report(&observed, &plan, now));
        }
        self.stale = false;
        self.forget_refusals();
        self.tick();
        plan
    }

    /// What caches that lag behind show: all is as it was, but for what the operator itself wrote, and the words of the user.
    fn aged(&self, present: &Observed, mut before: Observed) -> Observed {
        let (now, old) = (&present.deployments[0], &mut before.deployments[0]);
        let mut groups = now.groups.clone();
        for group in &mut groups {
            let uid = &group.object.metadata.uid;
            let was = old.groups.iter().find(|other| other.object.metadata.uid == *uid);
            let (pods, placeholders, budget) = was.map_or_else(Default::default, |was| {
                (was.pods.clone(), was.placeholders.clone(), was.budget.clone())
            });
            (group.pods, group.placeholders, group.budget) = (pods, placeholders, budget);
        }
        (old.groups, old.object) = (groups, now.object.clone());
        (old.revisions, old.replicas_manager) = (now.revisions.clone(), now.replicas_manager.clone());
        before
    }

    /// Applies the steps that the mask selects.
    fn obey(&mut self, steps: &[Step], mask: u64) {
        let mut writes = BTreeSet::new();
        for step in steps {
            if let Action::WriteGroup { group, .. } = &step.action {
                assert!(writes.insert(group.clone()), "two writes to {group} in one plan");
            }
            assert!(!step.message.is_empty());
        }
        for (at, step) in steps.iter().enumerate() {
            if mask & (1 << (at % 64)) != 0 {
                self.apply(&step.action);
            }
        }
    }

    fn write_status(&mut self, reports: Reports) {
        if let Some(status) = reports.deployments.into_values().next() {
            self.object.status = Some(status);
        }
        for (key, status) in reports.groups {
            if let Some(group) = self.find(&key.name) {
                group.object.status = Some(status);
            }
        }
    }

    fn forget_refusals(&mut self) {
        let now = self.clock();
        for refusals in self.refusals.values_mut() {
            refusals
                .iter_mut()
                .for_each(|refusal| refusal.at = refusal.at.min(now));
            refusals.retain(|refusal| now <= refusals::retry_at(refusal) + 5_000);
        }
    }

    fn find(&mut self, name: &str) -> Option<&mut SimGroup> {
        self.groups
            .iter_mut()
            .find(|g| g.object.metadata.name.as_deref() == Some(name))
    }

    /// Groups that serve and are to go on.
    fn ready(&self) -> usize {
        self.groups.iter().filter(|group| self.answers(group)).count()
    }

    /// It serves, and its leader is not about to end.
    fn answers(&self, group: &SimGroup) -> bool {
        let stays = |p: &SimPod| p.pod.phase == PodPhase::Running && p.pod.deletion.is_none();
        let mut leaders = group.pods.iter().filter(|p| p.pod.index == 0 && stays(p));
        let speaks = |p: &SimPod| p.pod.report.as_ref().is_some_and(|report| report.serving);
        group.object.spec.intent == Intent::Run && self.serves(group) && leaders.any(speaks)
    }

    /// As many must serve whatever is done on purpose.
    fn floor(&self) -> usize {
        let spec = &self.object.spec;
        usize::try_from(spec.replicas - spec.rollout.max_unavailable).unwrap_or(0)
    }

    fn serves(&self, group: &SimGroup) -> bool {
        group.pods.iter().any(|p| {
            let reached = p.pod.node.as_ref().is_none_or(|node| !self.down.contains(node));
            reached && p.pod.report.as_ref().is_some_and(|r| r.serving)
        })
    }
}
