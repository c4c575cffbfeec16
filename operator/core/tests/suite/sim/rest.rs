//! How a cluster looks in which there is nothing left to do.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use llamero_core::time;
use serde_json::{Value, to_value};

use super::*;

/// Nothing waits longer: a pause before nodes are asked for again, with what it is spread by.
const LONGEST_WAIT: Millis = 75 * 60_000;

/// Whoever asks for nodes that nobody adds goes on for ever: after so many deadlines the rest is at rest.
const IN_VAIN: usize = 12;

impl World {
    /// Lets the operator work undisturbed, with the right time, until there is nothing left to do.
    pub(crate) fn settle(&mut self) {
        let (mut quiet, mut in_vain) = (0, 0);
        self.quota = usize::MAX;
        self.fault(&Fault::Clock(0));
        // A group may be told to go first; then its times are put right, and then that is told.
        for _ in 0..3 {
            self.pass(u64::MAX, true);
        }
        self.check_times();
        for _ in 0..2000 {
            let plan = self.pass(u64::MAX, true);
            quiet = if plan.steps.is_empty() { quiet + 1 } else { 0 };
            if quiet < 12 {
                continue;
            }
            in_vain += usize::from(self.asks_in_vain(&plan));
            let rests = self.all_settled() && !self.somebody_leaves();
            match plan.next_at.filter(|_| !rests && in_vain < IN_VAIN) {
                // Nothing to do before a deadline or a backoff ends: wait for it, with the kubelets alive.
                Some(at) => {
                    assert!(
                        at - self.now <= LONGEST_WAIT,
                        "it waits for {} s",
                        (at - self.now) / 1000
                    );
                    while self.now < at {
                        self.tick();
                    }
                }
                None => return self.check_settled(),
            }
        }
        panic!("the planner does not come to rest: {:?}", self.states());
    }

    /// Somebody asks for nodes, and no more are added: and so it goes on. Who else does not serve has no room either, and stands beside a group that
    /// is to be replaced.
    fn asks_in_vain(&self, plan: &Plan) -> bool {
        let mut verdicts = plan.verdicts.values();
        let asks = verdicts.any(|verdict| !verdict.provisioning.is_empty());
        let waits = |group: &SimGroup| group.object.spec.members.iter().any(|m| m.node.is_none());
        asks && self.nodes.len() >= self.most_nodes && self.groups.iter().all(|g| self.serves(g) || waits(g))
    }

    /// Nothing is said to have happened later than now, so that no wait is longer than it should be.
    fn check_times(&self) {
        let groups = self.groups.iter();
        let objects = groups.flat_map(|g| [to_value(&g.object.spec), to_value(&g.object.status)]);
        for object in objects.chain([to_value(&self.object.status)]) {
            check_times("", &object.unwrap(), self.now);
        }
    }

    pub(super) fn all_settled(&self) -> bool {
        self.groups.iter().all(|g| self.serves(g))
    }

    /// A group is to leave nodes that are being taken away, and may.
    fn somebody_leaves(&self) -> bool {
        self.groups.iter().any(|group| self.is_on_its_way_out(group))
    }

    /// It has a member on a node that is being taken away, and too few would not serve without it.
    fn is_on_its_way_out(&self, group: &SimGroup) -> bool {
        let mut nodes = group.object.spec.members.iter().filter_map(|m| m.node.as_ref());
        let disrupted = nodes.any(|name| self.nodes.get(name).is_some_and(goes));
        disrupted && (!self.serves(group) || self.ready() > self.floor())
    }

    pub(super) fn states(&self) -> Vec<String> {
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

    /// Nodes that have room for another pod of the group.
    pub(super) fn fitting(&self, group: &SimGroup, occupied: &BTreeSet<String>) -> usize {
        let request = resources::of_template(&group.object.spec.template);
        let fits = self.nodes.iter().filter(|(node, n)| {
            let mut free = n.allocatable.clone();
            free.subtract(&self.used(node));
            free.subtract(&self.reserved(node));
            is_open(n) && !occupied.contains(*node) && free.covers(&request)
        });
        fits.count()
    }

    /// Members sit on cordoned nodes, and all of them could be elsewhere.
    fn could_move(&self, group: &SimGroup) -> bool {
        let nodes: BTreeSet<String> = group
            .object
            .spec
            .members
            .iter()
            .filter_map(|m| m.node.clone())
            .collect();
        let cordoned = nodes
            .iter()
            .filter(|name| self.nodes.get(*name).is_some_and(goes));
        let moving = cordoned.count();
        moving > 0 && self.fitting(group, &nodes) >= moving
    }

    /// With an autoscaler that adds nodes of two devices, everybody serves whom so many nodes can hold.
    pub(crate) fn check_provisioned(&self) {
        let wanted = usize::try_from(self.object.spec.replicas).unwrap();
        let roomy = self.quota == usize::MAX
            && self.foreign.is_empty()
            && self.most_nodes >= (wanted + 1).max(2)
            && self.nodes.values().all(is_open);
        assert!(
            !roomy || self.all_settled(),
            "nodes could be added, and not everybody serves: {:?}",
            self.states()
        );
    }

    fn check_settled(&self) {
        let status = self.object.status.as_ref().unwrap();
        assert!(
            self.object.spec.autoscaling.is_none() || self.requests == 0 || self.object.spec.replicas > 0,
            "requests wait and no group is wanted"
        );
        let wanted = usize::try_from(self.object.spec.replicas).unwrap();
        // A surge may wait for room while an older group may not go.
        let outdated = self
            .groups
            .iter()
            .filter(|g| g.object.spec.revision != status.revision)
            .count();
        let surge = usize::from(outdated > 0);
        assert!(
            (wanted..=wanted + surge).contains(&self.groups.len()),
            "{wanted} wanted: {:?}",
            self.states()
        );
        // Replacing another one that serves would leave too few; nothing but room for a missing group can help.
        let rollout = &self.object.spec.rollout;
        let at_floor = status.ready_replicas <= self.object.spec.replicas - rollout.max_unavailable;
        let older = self
            .groups
            .iter()
            .filter(|g| g.object.spec.revision != status.revision && !(at_floor && self.serves(g)));
        assert!(
            older.count() <= usize::try_from(rollout.partition).unwrap(),
            "an old revision is left"
        );
        for group in &self.groups {
            let spec = &group.object.spec;
            let budget = group.budget.as_ref().and_then(|budget| budget.spec.clone());
            let minimum = budget.and_then(|budget| budget.min_available);
            assert!(
                minimum == Some(IntOrString::Int(2)) || (minimum.is_none() && !self.serves(group)),
                "what serves is protected: {minimum:?}"
            );
            assert!(
                !self.is_on_its_way_out(group),
                "a node is drained in vain: {:?}",
                self.states()
            );
            let name = group.object.metadata.name.as_deref().unwrap();
            let asks = spec
                .provision
                .as_ref()
                .is_some_and(|provision| provision.since.is_some());
            assert!(
                group.placeholders.is_empty() || (asks && !self.serves(group)),
                "placeholders are left: {:?} {:?}",
                spec.provision,
                group.placeholders
            );
            if self.serves(group) {
                let recorded: BTreeSet<_> = spec.members.iter().filter_map(|m| m.pod_uid.clone()).collect();
                // What a kubelet that says nothing has to end is not seen to end.
                let mute = |p: &&SimPod| {
                    let node = p.pod.node.as_ref().and_then(|name| self.nodes.get(name));
                    p.pod.deletion.is_some() && node.is_some_and(|node| !node.ready)
                };
                let running: BTreeSet<_> = group
                    .pods
                    .iter()
                    .filter(|p| !mute(p))
                    .map(|p| p.pod.uid.clone())
                    .collect();
                assert_eq!(recorded, running, "exactly the recorded pods run");
                assert!(
                    !self.could_move(group),
                    "{name} stays on a cordoned node although there is room: {:?}",
                    self.states()
                );
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
            let holds = group
                .pods
                .iter()
                .any(|p| p.pod.node.is_some() && p.pod.deletion.is_none());
            assert!(
                formed || !holds,
                "a part of a group that was never whole holds accelerators: {:?}",
                self.states()
            );
            // There is truly no room for what is missing.
            let occupied: BTreeSet<_> = spec.members.iter().filter_map(|m| m.node.clone()).collect();
            assert!(
                self.fitting(group, &occupied) < unplaced,
                "{name} waits although there is room: {:?}",
                self.states()
            );
        }
    }
}

fn check_times(field: &str, value: &Value, now: Millis) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(field, value)| check_times(field, value, now)),
        Value::Array(values) => values.iter().for_each(|value| check_times(field, value, now)),
        Value::String(_) => {
            let Ok(at) = serde_json::from_value(value.clone()) else {
                return;
            };
            let most = match field {
                "placeAfter" => 120_000,
                "notBefore" => LONGEST_WAIT,
                _ => 0,
            };
            assert!(
                time::millis(&at) <= now + most,
                "{field} lies ahead: {value} at {now}"
            );
        }
        _ => {}
    }
}
