//! A cluster that obeys plans, with a scheduler, kubelets and workers, and with faults. Every step that is applied is checked against the
//! invariants of the planner.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use llamero_api::{
    LlamaDeployment, LlamaGroup,
    group::{Intent, LlamaGroupSpec, RankPhase},
};
use llamero_core::{
    Action, Plan, decide,
    observed::{
        Demand, Deployment, Exit, Group, InspectPod, Load, Node, Observed, Pod, PodPhase, Rank, Report,
        Settings,
    },
    plan::Confirm,
    report,
    resources::{self, Resources},
    time::Millis,
};

use crate::build::{self, GPU, NOW};

/// Bytes that a rank reads in one tick.
const READ: i64 = 2 << 30;

struct SimPod {
    pod: Pod,
    pinned: Option<String>,
    stuck: bool,
}

struct SimGroup {
    object: LlamaGroup,
    pods: Vec<SimPod>,
    pdb: Option<i32>,
    /// Membership that was pushed last.
    formed: BTreeSet<String>,
}

/// The cluster.
pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Room taken by others, by node.
    pub(crate) foreign: BTreeMap<String, Resources>,
    pub(crate) object: LlamaDeployment,
    pub(crate) requests: u32,
    groups: Vec<SimGroup>,
    inspect: Option<InspectPod>,
    service: bool,
    serial: u64,
}

impl World {
    pub(crate) fn new(nodes: usize, replicas: i32) -> Self {
        let mut deployment = build::deployment(|d| {
            d["spec"]["replicas"] = replicas.into();
            d["spec"]["recovery"] =
                serde_json::json!({"restartBudget": 60, "backoff": "1s", "stallTimeout": "5s"});
            d["spec"]["placement"] = serde_json::json!({"deadline": "20s"});
        });
        let mut object = Arc::make_mut(&mut deployment.object).clone();
        object.status = None;
        let nodes = (0..nodes)
            .map(|n| (format!("n{n}"), build::node(&format!("n{n}"), 2)))
            .collect();
        Self {
            now: NOW,
            nodes,
            foreign: BTreeMap::new(),
            object,
            requests: 0,
            groups: Vec::new(),
            inspect: None,
            service: false,
            serial: 0,
        }
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
        }
        let groups = self
            .groups
            .iter()
            .map(|group| {
                let pods: Vec<Pod> = group.pods.iter().map(|p| p.pod.clone()).collect();
                let serves = self.serves(group);
                Group {
                    object: Arc::new(group.object.clone()),
                    pods,
                    pdb_min_available: group.pdb,
                    load: serves.then_some(Load {
                        running: self.requests,
                        waiting: 0,
                        received_at: self.now,
                    }),
                }
            })
            .collect();
        Observed {
            settings: Settings {
                worker_image: "worker:1".into(),
            },
            nodes,
            deployments: vec![Deployment {
                object: Arc::new(self.object.clone()),
                groups,
                names_in_use: BTreeSet::new(),
                inspect: self.inspect.iter().cloned().collect(),
                has_service: self.service,
                demand: Some(Demand {
                    held: 0,
                    in_flight: self.requests,
                    received_at: self.now,
                }),
            }],
            ..Observed::default()
        }
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
        }
        reserved
    }

    /// Decides, applies the steps that the mask selects, writes the status if `write_status`, and lets the cluster go on for a tick.
    pub(crate) fn pass(&mut self, mask: u64, write_status: bool) -> Plan {
        let observed = self.observe();
        let plan = decide(&observed, self.now);
        assert_eq!(
            plan,
            decide(&observed, self.now),
            "the same sight gives the same plan"
        );
        let mut writes = BTreeSet::new();
        for step in &plan.steps {
            if let Action::WriteGroup { group, .. } = &step.action {
                assert!(writes.insert(group.clone()), "two writes to {group} in one plan");
            }
            assert!(!step.message.is_empty());
        }
        for (at, step) in plan.steps.iter().enumerate() {
            if mask & (1 << (at % 64)) != 0 {
                self.apply(&step.action);
            }
        }
        if write_status {
            let reports = report(&observed, &plan, self.now);
            self.object.status = reports.deployments.into_values().next();
            for (key, status) in reports.groups {
                if let Some(group) = self.find(&key.name) {
                    group.object.status = Some(status);
                }
            }
        }
        self.tick();
        plan
    }

    fn find(&mut self, name: &str) -> Option<&mut SimGroup> {
        self.groups
            .iter_mut()
            .find(|g| g.object.metadata.name.as_deref() == Some(name))
    }

    fn apply(&mut self, action: &Action) {
        match action.clone() {
            Action::CreateGroup { name, spec, .. } => {
                if self.find(&name).is_none() {
                    let mut object = LlamaGroup::new(&name, *spec);
                    object.metadata.namespace = Some("ns".into());
                    object.metadata.uid = Some(self.uid());
                    object.metadata.resource_version = Some("1".into());
                    self.groups.push(SimGroup {
                        object,
                        pods: vec![],
                        pdb: None,
                        formed: BTreeSet::new(),
                    });
                }
            }
            Action::WriteGroup {
                group,
                resource_version,
                spec,
                confirm,
            } => self.write(&group.name, &resource_version, *spec, &confirm),
            Action::CreatePod {
                group,
                name,
                index,
                attempt,
            } => {
                let uid = self.uid();
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                let recorded = group
                    .object
                    .spec
                    .members
                    .iter()
                    .any(|m| m.index == index && m.attempt == attempt && m.node.is_some());
                assert!(recorded, "pod {name} is created for no placed member");
                if group.pods.iter().all(|p| p.pod.name != name) {
                    let pod = Pod {
                        name,
                        uid,
                        index,
                        attempt,
                        gated: true,
                        ..Pod::default()
                    };
                    group.pods.push(SimPod {
                        pod,
                        pinned: None,
                        stuck: false,
                    });
                }
            }
            Action::Ungate { group, pod, node } => {
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                let spec = &group.object.spec;
                let complete = spec.members.iter().all(|m| {
                    m.pod_uid
                        .as_ref()
                        .is_some_and(|uid| group.pods.iter().any(|p| p.pod.uid == *uid))
                });
                assert!(
                    complete,
                    "a gate is lifted while members are not recorded or pods do not exist"
                );
                let own = spec
                    .members
                    .iter()
                    .any(|m| m.pod_uid.as_ref() == Some(&pod.uid) && m.node.as_ref() == Some(&node));
                assert!(own, "a pod is sent to a node that is not its member's");
                for p in group.pods.iter_mut().filter(|p| p.pod.uid == pod.uid) {
                    p.pod.gated = false;
                    p.pinned = Some(node.clone());
                }
            }
            Action::DeletePod { pod, .. } => {
                let now = self.now;
                self.inspect = self.inspect.take().filter(|i| i.uid != pod.uid);
                for group in &mut self.groups {
                    let recorded = group
                        .object
                        .spec
                        .members
                        .iter()
                        .any(|m| m.pod_uid.as_ref() == Some(&pod.uid));
                    for p in group.pods.iter_mut().filter(|p| p.pod.uid == pod.uid) {
                        assert!(!recorded, "a recorded pod is deleted: {}", p.pod.name);
                        p.pod.deletion = Some(now + 1000);
                    }
                }
            }
            Action::Form {
                group,
                generation,
                members,
                targets,
                ..
            } => {
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                assert_eq!(generation, group.object.spec.generation);
                assert!(
                    group
                        .pods
                        .iter()
                        .filter(|p| targets.iter().any(|t| t.pod_uid == p.pod.uid))
                        .all(|p| p.pod.node.is_some())
                );
                group.formed = members.iter().map(|m| m.pod_uid.clone()).collect();
                for p in group
                    .pods
                    .iter_mut()
                    .filter(|p| targets.iter().any(|t| t.pod_uid == p.pod.uid))
                {
                    let report = p.pod.report.as_mut().unwrap();
                    assert!(generation > report.generation, "generations only grow");
                    report.generation = generation;
                }
            }
            Action::DrainGroup { group, leader } => {
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                assert_eq!(group.object.spec.intent, Intent::Drain);
                for p in group.pods.iter_mut().filter(|p| p.pod.uid == leader.pod_uid) {
                    if let Some(report) = &mut p.pod.report {
                        report.draining = true;
                    }
                }
            }
            Action::DeleteGroup { group, uid } => {
                if let Some(found) = self.find(&group.name) {
                    assert_eq!(
                        found.object.spec.intent,
                        Intent::Drain,
                        "a group is deleted that was not drained"
                    );
                    assert_eq!(found.object.metadata.uid.as_ref(), Some(&uid));
                    self.groups
                        .retain(|g| g.object.metadata.uid.as_ref() != Some(&uid));
                }
            }
            Action::ApplyService { .. } => self.service = true,
            Action::ApplyPdb {
                group, min_available, ..
            } => {
                if let Some(group) = self.find(&group.name) {
                    group.pdb = Some(min_available);
                }
            }
            Action::CreateInspectPod { name, key, .. } => {
                let uid = self.uid();
                let created_at = self.now;
                self.inspect.get_or_insert_with(|| InspectPod {
                    name,
                    uid,
                    key,
                    created_at,
                    ..InspectPod::default()
                });
            }
        }
    }

    fn write(&mut self, name: &str, version: &str, spec: LlamaGroupSpec, confirm: &Confirm) {
        let (now, deadline) = (self.now, self.object.spec.placement.deadline.millis());
        let nodes: BTreeSet<String> = self.nodes.keys().cloned().collect();
        let Some(group) = self.find(name) else { return };
        if group.object.metadata.resource_version.as_deref() != Some(version) {
            return;
        }
        let exists = |uid: &String| {
            group
                .pods
                .iter()
                .any(|p| p.pod.uid == *uid && p.pod.deletion.is_none() && !p.pod.phase.ended())
        };
        if !confirm.present.iter().all(exists) || confirm.gone.iter().any(exists) {
            return;
        }
        let old = group.object.spec.clone();
        assert!(spec.generation >= old.generation, "generations only grow");
        assert_eq!(
            (&spec.template, &spec.revision),
            (&old.template, &old.revision),
            "revisions never mix"
        );
        assert!(old.intent == Intent::Run || spec.intent == Intent::Drain);
        for (before, after) in old.members.iter().zip(&spec.members) {
            assert!(after.attempt >= before.attempt, "attempts only grow");
            if after.attempt == before.attempt {
                continue;
            }
            let Some(p) = group
                .pods
                .iter()
                .find(|p| Some(&p.pod.uid) == before.pod_uid.as_ref())
            else {
                continue;
            };
            let formed = p.pod.report.as_ref().is_some_and(|r| r.generation > 0);
            let on_a_node = p.pod.node.as_ref().is_some_and(|node| nodes.contains(node));
            let healthy =
                p.pod.phase == PodPhase::Running && p.pod.deletion.is_none() && on_a_node && !p.stuck;
            assert!(
                !(formed && healthy),
                "survivor {} is given up to repair a peer",
                p.pod.name
            );
        }
        let placed: Vec<String> = spec
            .members
            .iter()
            .zip(&old.members)
            .filter(|(after, before)| after.node.is_some() && before.node.is_none())
            .filter_map(|(after, _)| after.node.clone())
            .collect();
        let taken_back = spec.placement_failures > old.placement_failures;
        if taken_back {
            let overdue = old
                .members
                .iter()
                .zip(&spec.members)
                .filter(|(b, a)| a.attempt > b.attempt);
            let times: BTreeSet<_> = overdue.clone().filter_map(|(b, _)| b.placed_at.clone()).collect();
            assert!(
                times.iter().all(|at| at.0.as_millisecond() + deadline <= now),
                "taken back before the deadline"
            );
            let left = old.members.iter().zip(&spec.members).filter(|(b, a)| {
                b.attempt == a.attempt && b.placed_at.as_ref().is_some_and(|t| times.contains(t))
            });
            assert_eq!(left.count(), 0, "an attempt is taken back whole");
        }
        group.object.spec = spec;
        group.object.metadata.resource_version = Some(format!("{}", version.parse::<u64>().unwrap() + 1));
        for node in placed {
            let mut sum = self.used(&node);
            sum.add(&self.reserved(&node));
            let allocatable = &self.nodes[&node].allocatable;
            assert!(
                allocatable.covers(&sum),
                "{node} is promised more than it has: {sum:?} of {allocatable:?}"
            );
        }
    }

    /// One second of the cluster's own life.
    pub(crate) fn tick(&mut self) {
        self.now += 1000;
        let now = self.now;
        if let Some(inspect) = &mut self.inspect {
            inspect.phase = PodPhase::Succeeded;
            inspect.result = Some(serde_json::to_string(&build::summary()).unwrap());
        }
        // Kubelets of nodes that are gone, and deletions that have had their time.
        let nodes: BTreeSet<String> = self.nodes.keys().cloned().collect();
        for group in &mut self.groups {
            group.pods.retain(|p| {
                p.pod.deletion.is_none_or(|at| at > now)
                    && p.pod.node.as_ref().is_none_or(|n| nodes.contains(n))
            });
        }
        self.schedule();
        for group in &mut self.groups {
            let total = group.object.spec.template.weight_bytes_per_rank;
            for p in &mut group.pods {
                if p.pod.node.is_none() || p.pod.phase.ended() {
                    continue;
                }
                p.pod.phase = PodPhase::Running;
                p.pod.ip = Some(format!("10.0.{}.{}", p.pod.index, p.pod.attempt));
                let rank = Rank {
                    rank: p.pod.index,
                    phase: RankPhase::Preflight,
                    total_bytes: total,
                    pid: 1,
                    ..Rank::default()
                };
                let report = p.pod.report.get_or_insert_with(|| Report {
                    ranks: vec![rank],
                    ..Report::default()
                });
                (report.received_at, report.alive_at) = (now, now);
                let rank = &mut report.ranks[0];
                if report.generation > 0 {
                    rank.loaded_bytes = (rank.loaded_bytes + READ).min(total);
                    rank.phase = if rank.loaded_bytes < total {
                        RankPhase::Loading
                    } else {
                        RankPhase::Connecting
                    };
                }
            }
            step_group(group);
        }
    }

    /// The stock scheduler: binds pods without gate to the node they are pinned to, if it has room.
    fn schedule(&mut self) {
        for at in 0..self.groups.len() {
            let request = resources::of_template(&self.groups[at].object.spec.template);
            for p in 0..self.groups[at].pods.len() {
                let sim = &self.groups[at].pods[p];
                let Some(node) = sim
                    .pinned
                    .clone()
                    .filter(|_| !sim.pod.gated && sim.pod.node.is_none() && sim.pod.deletion.is_none())
                else {
                    continue;
                };
                let free = self.nodes.get(&node).map(|n| {
                    let mut free = n.allocatable.clone();
                    free.subtract(&self.used(&node));
                    free
                });
                let pod = &mut self.groups[at].pods[p].pod;
                if free.is_some_and(|free| free.covers(&request)) {
                    pod.node = Some(node);
                    pod.unschedulable = None;
                } else {
                    pod.unschedulable = Some("0 nodes are available".into());
                }
            }
        }
    }

    fn serves(&self, group: &SimGroup) -> bool {
        group
            .pods
            .iter()
            .any(|p| p.pod.report.as_ref().is_some_and(|r| r.serving))
    }

    fn pods(&mut self) -> Vec<&mut SimPod> {
        self.groups.iter_mut().flat_map(|g| g.pods.iter_mut()).collect()
    }

    /// A pod by number, whatever there is.
    fn pod(&mut self, number: usize) -> Option<&mut SimPod> {
        let mut pods = self.pods();
        let count = pods.len();
        (count > 0).then(|| pods.swap_remove(number % count))
    }

    pub(crate) fn fault(&mut self, fault: &Fault) {
        let now = self.now;
        match fault {
            Fault::Crash(n) => {
                if let Some(p) = self.pod(*n).filter(|p| p.pod.phase == PodPhase::Running) {
                    p.pod.phase = PodPhase::Failed;
                    p.pod.exit = Some(Exit {
                        code: 1,
                        reason: "Error".into(),
                        message: "crashed".into(),
                    });
                }
            }
            Fault::Delete(n) => {
                if let Some(p) = self.pod(*n) {
                    p.pod.deletion = Some(now + 3000);
                }
            }
            Fault::Evict(n) => {
                if let Some(p) = self.pod(*n) {
                    p.pod.evicted = true;
                    p.pod.deletion = Some(now + 1000);
                }
            }
            Fault::Stall(n) => {
                if let Some(p) = self.pod(*n) {
                    p.stuck = true;
                }
            }
            Fault::RemoveNode(n) => {
                let name = format!("n{n}");
                self.nodes.remove(&name);
            }
            Fault::AddNode(n) => {
                let name = format!("n{n}");
                self.nodes
                    .entry(name.clone())
                    .or_insert_with(|| build::node(&name, 2));
            }
            Fault::Foreign(n, gpus) => {
                let name = format!("n{n}");
                let mut free = self.nodes.get(&name).map_or(0, |node| node.allocatable.get(GPU))
                    - self.used(&name).get(GPU);
                free += self.foreign.get(&name).map_or(0, |f| f.get(GPU));
                self.foreign
                    .insert(name, Resources::new().with(GPU, (*gpus).min(free)));
            }
            Fault::Scale(n) => self.object.spec.replicas = Some(*n),
            Fault::Image(n) => self.object.spec.worker.image = Some(format!("worker:{n}")),
            Fault::Wait(seconds) => {
                for _ in 0..*seconds {
                    self.tick();
                }
            }
        }
    }

    /// Lets the operator work undisturbed until there is nothing left to do.
    pub(crate) fn settle(&mut self) {
        let mut quiet = 0;
        for _ in 0..2000 {
            let plan = self.pass(u64::MAX, true);
            quiet = if plan.steps.is_empty() { quiet + 1 } else { 0 };
            if quiet < 12 {
                continue;
            }
            match plan.next_at.filter(|_| !self.all_settled()) {
                // Nothing to do before a deadline or a backoff ends: wait for it, with the kubelets alive.
                Some(at) => {
                    while self.now < at {
                        self.tick();
                    }
                }
                None => return self.check_settled(),
            }
        }
        panic!("the planner does not come to rest: {:?}", self.states());
    }

    fn all_settled(&self) -> bool {
        self.groups.iter().all(|g| self.serves(g))
    }

    fn states(&self) -> Vec<String> {
        self.groups
            .iter()
            .map(|g| {
                let pods: Vec<_> = g
                    .pods
                    .iter()
                    .map(|p| {
                        format!(
                            "{} {:?} {:?} gated {}",
                            p.pod.name, p.pod.node, p.pod.phase, p.pod.gated
                        )
                    })
                    .collect();
                format!(
                    "{:?} {:?} {:?}",
                    g.object.metadata.name, g.object.spec.members, pods
                )
            })
            .collect()
    }

    fn check_settled(&self) {
        let status = self.object.status.as_ref().unwrap();
        let wanted = usize::try_from(self.object.spec.replicas.unwrap()).unwrap();
        assert_eq!(self.groups.len(), wanted, "{:?}", self.states());
        for group in &self.groups {
            let spec = &group.object.spec;
            let floor = self.object.spec.replicas.unwrap() - self.object.spec.rollout.max_unavailable;
            // Replacing another one would leave too few; nothing but room for a missing group can help.
            let at_floor = self.serves(group) && status.ready_replicas <= floor;
            assert!(
                spec.revision == status.revision || at_floor,
                "an old revision is left"
            );
            assert_eq!(group.pdb, Some(2));
            let name = group.object.metadata.name.as_deref().unwrap();
            if self.serves(group) {
                let recorded: BTreeSet<_> = spec.members.iter().filter_map(|m| m.pod_uid.clone()).collect();
                let running: BTreeSet<_> = group.pods.iter().map(|p| p.pod.uid.clone()).collect();
                assert_eq!(recorded, running, "exactly the recorded pods run");
                continue;
            }
            let summary = status.groups.iter().find(|g| g.name == name).unwrap();
            let unplaced = spec.members.iter().filter(|m| m.node.is_none()).count();
            assert!(
                unplaced > 0,
                "{name} neither serves nor waits: {:?} {:?}",
                summary,
                self.states()
            );
            let formed = group
                .pods
                .iter()
                .any(|p| p.pod.report.as_ref().is_some_and(|r| r.generation > 0));
            let holds = group.pods.iter().any(|p| p.pod.node.is_some());
            assert!(
                formed || !holds,
                "a part of a group that was never whole holds accelerators: {:?}",
                self.states()
            );
            // There is truly no room for what is missing.
            let occupied: BTreeSet<_> = spec.members.iter().filter_map(|m| m.node.clone()).collect();
            let fits = self.nodes.iter().filter(|(node, n)| {
                let mut free = n.allocatable.clone();
                free.subtract(&self.used(node));
                free.subtract(&self.reserved(node));
                !occupied.contains(*node) && free.covers(&resources::of_template(&spec.template))
            });
            assert!(
                fits.count() < unplaced,
                "{name} waits although there is room: {:?}",
                self.states()
            );
        }
    }
}

/// Workers: a group serves while exactly the pods that were formed together are there, loaded, and none is stuck.
fn step_group(group: &mut SimGroup) {
    let generation = |p: &SimPod| p.pod.report.as_ref().map_or(0, |r| r.generation);
    let formed: Vec<usize> = (0..group.pods.len())
        .filter(|at| group.formed.contains(&group.pods[*at].pod.uid))
        .collect();
    let newest = formed
        .iter()
        .map(|at| generation(&group.pods[*at]))
        .max()
        .unwrap_or(0);
    let together = !formed.is_empty()
        && formed.len() == group.formed.len()
        && formed.iter().all(|at| {
            let p = &group.pods[*at];
            let loaded = p
                .pod
                .report
                .as_ref()
                .is_some_and(|r| r.ranks[0].phase == RankPhase::Connecting);
            p.pod.phase == PodPhase::Running && generation(p) == newest && loaded
        });
    let stuck = formed.iter().any(|at| group.pods[*at].stuck);
    for p in &mut group.pods {
        let (leads, hangs) = (p.pod.index == 0, p.stuck);
        let Some(report) = &mut p.pod.report else { continue };
        let member = group.formed.contains(&p.pod.uid);
        report.serving = leads && member && together && !stuck && !report.draining;
        let rank = &mut report.ranks[0];
        if member && together {
            rank.phase = RankPhase::Serving;
            if stuck {
                // All but the stuck rank enter the next step and wait in it.
                rank.entered = rank.completed + i64::from(!hangs);
                rank.idle_millis = Some(rank.idle_millis.unwrap_or(0) + 1000);
            } else {
                rank.entered = 100;
                rank.completed = 100;
                rank.idle_millis = Some(0);
            }
        }
        if leads && report.draining && p.pod.phase == PodPhase::Running {
            p.pod.phase = PodPhase::Succeeded;
            report.serving = false;
        }
    }
    // Completed steps are one number for the whole group.
    if together && stuck {
        for at in formed {
            if let Some(report) = &mut group.pods[at].pod.report {
                report.ranks[0].completed = 100;
            }
        }
    }
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Crash(usize),
    Delete(usize),
    Evict(usize),
    Stall(usize),
    RemoveNode(usize),
    AddNode(usize),
    Foreign(usize, i64),
    Scale(i32),
    Image(u8),
    Wait(u8),
}
