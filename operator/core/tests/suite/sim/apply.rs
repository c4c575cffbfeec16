//! Applies steps as the API server and workers would, and checks each against the planner's invariants.

use llamero_api::deployment::RolloutStrategy;

use super::*;

impl World {
    /// The number that stands in the specification, or, where somebody else wrote over it, the one that the status kept if that
    /// is more: the operator acts on either once it stands there.
    fn decided_groups(&self) -> i32 {
        let written = self.object.spec.replicas;
        let ours = self.replicas_manager.as_deref() == Some("llamero-operator");
        let status = self.object.status.as_ref();
        match status.filter(|status| status.autoscaling.is_some() && !ours) {
            Some(status) => written.max(status.desired_replicas),
            None => written,
        }
    }

    pub(super) fn apply(&mut self, action: &Action) {
        match action.clone() {
            Action::CreateGroup { name, spec, .. } => {
                let surge = self.object.spec.rollout.max_surge;
                let most = usize::try_from(self.decided_groups() + surge).unwrap();
                let alive = self
                    .groups
                    .iter()
                    .filter(|g| g.object.spec.intent == Intent::Run)
                    .count();
                assert!(
                    alive < most,
                    "group {name} is made although at most {most} are decided: the number is written first"
                );
                let kept = self.revisions.iter().find(|r| r.digest == spec.revision);
                assert_eq!(
                    kept.and_then(|r| r.template.as_ref()),
                    Some(&spec.template),
                    "a group is made from another snapshot than that of its revision"
                );
                if self.find(&name).is_none() {
                    let mut object = LlamaGroup::new(&name, *spec);
                    object.metadata.namespace = Some("ns".into());
                    object.metadata.uid = Some(self.uid());
                    object.metadata.resource_version = Some("1".into());
                    self.groups.push(SimGroup {
                        object,
                        pods: vec![],
                        placeholders: vec![],
                        budget: None,
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
                let pods = self.groups.iter().map(|g| g.pods.len() + g.placeholders.len());
                if pods.sum::<usize>() >= self.quota {
                    self.refuse(&group.name, action);
                    return;
                }
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                let recorded = group.object.spec.members.iter().any(|m| {
                    let successor = m.successor.as_ref().is_some_and(|s| s.attempt == attempt);
                    m.index == index && (successor || (m.attempt == attempt && m.node.is_some()))
                });
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
                        gone_at: None,
                        pinned: None,
                        stuck: false,
                        unheard: None,
                    });
                }
            }
            Action::CreatePlaceholder {
                group, name, index, ..
            } => {
                let uid = self.uid();
                let pods = self.groups.iter().map(|g| g.pods.len() + g.placeholders.len());
                if pods.sum::<usize>() >= self.quota {
                    self.refuse(&group.name, action);
                    return;
                }
                let most = usize::try_from(self.object.spec.replicas).unwrap();
                let holding = self.groups.iter().filter(|g| !g.placeholders.is_empty()).count();
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                let spec = &group.object.spec;
                let asks = spec.provision.as_ref().is_some_and(|p| p.since.is_some());
                let unplaced = spec.members.iter().any(|m| m.index == index && m.node.is_none());
                assert!(
                    asks && unplaced,
                    "a placeholder for nobody, or before its clock began"
                );
                assert!(
                    holding <= most || !group.placeholders.is_empty(),
                    "more groups ask for nodes than are wanted"
                );
                if group.placeholders.iter().all(|one| one.name != name) {
                    group.placeholders.push(Placeholder {
                        name,
                        uid,
                        index,
                        ..Placeholder::default()
                    });
                }
            }
            Action::Ungate { group, pod, node } => {
                let stale = self.stale;
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
                    complete || stale,
                    "a gate is lifted while members are not recorded or pods do not exist"
                );
                let own = spec.members.iter().any(|m| {
                    let successor = m.successor.as_ref();
                    (m.pod_uid.as_ref() == Some(&pod.uid) && m.node.as_ref() == Some(&node))
                        || successor.is_some_and(|s| s.pod_uid.as_ref() == Some(&pod.uid) && s.node == node)
                });
                assert!(own, "a pod is sent to a node that is not its member's");
                for p in group.pods.iter_mut().filter(|p| p.pod.uid == pod.uid) {
                    p.pod.gated = false;
                    p.pinned = Some(node.clone());
                }
            }
            Action::DeletePod { pod, .. } => {
                let now = self.now;
                self.inspect.retain(|i| i.uid != pod.uid);
                for group in &mut self.groups {
                    for one in group.placeholders.iter_mut().filter(|one| one.uid == pod.uid) {
                        one.terminating = true;
                    }
                    let recorded = group.object.spec.members.iter().any(|m| {
                        let successor = m.successor.as_ref().and_then(|s| s.pod_uid.as_ref());
                        m.pod_uid.as_ref() == Some(&pod.uid) || successor == Some(&pod.uid)
                    });
                    for p in group.pods.iter_mut().filter(|p| p.pod.uid == pod.uid) {
                        assert!(!recorded, "a recorded pod is deleted: {}", p.pod.name);
                        p.pod.deletion = Some(1);
                        p.gone_at.get_or_insert(now + 1000);
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
                let (stale, down) = (self.stale, self.down.clone());
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
                let reached = |p: &SimPod| p.pod.node.as_ref().is_some_and(|node| !down.contains(node));
                group.formed = members.iter().map(|m| m.pod_uid.clone()).collect();
                for p in group
                    .pods
                    .iter_mut()
                    .filter(|p| targets.iter().any(|t| t.pod_uid == p.pod.uid) && reached(p))
                {
                    let report = p.pod.report.as_mut().unwrap();
                    assert!(generation > report.generation || stale, "generations only grow");
                    report.generation = report.generation.max(generation);
                }
            }
            Action::DrainGroup { group, leader } => {
                let down = self.down.clone();
                let Some(group) = self.find(&group.name) else {
                    return;
                };
                assert_eq!(group.object.spec.intent, Intent::Drain);
                let reached = |p: &SimPod| p.pod.node.as_ref().is_some_and(|node| !down.contains(node));
                for p in group
                    .pods
                    .iter_mut()
                    .filter(|p| p.pod.uid == leader.pod_uid && reached(p))
                {
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
            Action::Apply { owner, object, .. } => match object {
                ManagedObject::Service(service) => self.service = Some(Arc::new(*service)),
                ManagedObject::Policy(_) => {}
                ManagedObject::Budget(budget) => {
                    if let Some(group) = self.find(&owner.name) {
                        group.budget = Some(Arc::new(*budget));
                    }
                }
            },
            Action::ScaleDeployment {
                resource_version,
                replicas,
                ..
            } => {
                assert!(
                    self.object.spec.autoscaling.is_some(),
                    "the number belongs to the user"
                );
                if self.object.metadata.resource_version == Some(resource_version) {
                    self.object.spec.replicas = replicas;
                    self.replicas_manager = Some("llamero-operator".into());
                    self.touch();
                }
            }
            Action::CreateRevision {
                name,
                digest,
                number,
                template,
                ..
            } => {
                let uid = self.uid();
                if self.revisions.iter().all(|r| r.name != name) {
                    self.revisions.push(Revision {
                        name,
                        uid,
                        digest,
                        number,
                        template: Some(*template),
                    });
                }
            }
            Action::RenumberRevision { uid, number, .. } => {
                for revision in self.revisions.iter_mut().filter(|r| r.uid == uid) {
                    revision.number = number;
                }
            }
            Action::DeleteRevision { uid, .. } => {
                let used = |r: &Revision| self.groups.iter().any(|g| g.object.spec.revision == r.digest);
                assert!(
                    !self.revisions.iter().any(|r| r.uid == uid && used(r)),
                    "a revision goes that a group runs"
                );
                self.revisions.retain(|r| r.uid != uid);
            }
            Action::CreateInspectPod { name, key, .. } => {
                let uid = self.uid();
                if self.inspect.iter().all(|pod| pod.name != name) {
                    self.inspect.push(InspectPod {
                        name,
                        uid,
                        key,
                        ..InspectPod::default()
                    });
                }
            }
        }
    }

    fn refuse(&mut self, group: &str, action: &Action) {
        let (target, now) = (action.target(), self.clock());
        let refusals = self.refusals.entry(group.to_owned()).or_default();
        match refusals.iter_mut().find(|refusal| refusal.target == target) {
            Some(refusal) => {
                refusal.times += 1;
                refusal.at = now;
            }
            None => refusals.push(Refusal {
                target,
                message: "exceeded quota".into(),
                at: now,
                times: 1,
            }),
        }
    }

    fn write(&mut self, name: &str, version: &str, spec: LlamaGroupSpec, confirm: &Confirm) {
        let (now, deadline) = (self.clock(), self.object.spec.placement.deadline.millis());
        // Where pods stay if nobody sends them away.
        let lasting = self.nodes.values().filter(|node| {
            let urgent = node.taints.iter().any(|taint| taint.key == GONE_SOON);
            !urgent && !self.down.contains(&node.name)
        });
        let nodes: BTreeSet<String> = lasting.map(|node| node.name.clone()).collect();
        let (stale, ready, floor) = (self.stale, self.ready(), self.floor());
        let at_once = self.object.spec.rollout.strategy == RolloutStrategy::Recreate;
        let scales = self.object.spec.autoscaling.is_some();
        let serves = self
            .groups
            .iter()
            .any(|group| group.object.metadata.name.as_deref() == Some(name) && self.answers(group));
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
        let drained = old.intent == Intent::Run && spec.intent == Intent::Drain;
        assert!(
            !(drained && serves) || stale || at_once || scales || ready > floor,
            "{name} is drained although only {ready} groups serve and {floor} must"
        );
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
            let successor = before
                .successor
                .as_ref()
                .filter(|s| s.pod_uid.is_some() && s.pod_uid == after.pod_uid);
            let loaded = |uid: &Option<String>| {
                let mut pods = group.pods.iter();
                let pod = pods.find(|p| Some(&p.pod.uid) == uid.as_ref());
                pod.and_then(|p| p.pod.report.as_ref())
                    .is_some_and(|r| r.ranks[0].phase == RankPhase::Connecting)
            };
            if successor.is_some_and(|s| loaded(&s.pod_uid)) {
                continue;
            }
            let on_a_node = p.pod.node.as_ref().is_some_and(|node| nodes.contains(node));
            let healthy =
                p.pod.phase == PodPhase::Running && p.pod.deletion.is_none() && on_a_node && !p.stuck;
            assert!(
                !(formed && healthy) || stale,
                "survivor {} is given up to repair a peer",
                p.pod.name
            );
        }
        let succeeded: Vec<String> = spec
            .members
            .iter()
            .zip(&old.members)
            .filter(|(after, before)| after.successor.is_some() && before.successor.is_none())
            .filter_map(|(after, _)| after.successor.as_ref().map(|s| s.node.clone()))
            .collect();
        let placed: Vec<String> = spec
            .members
            .iter()
            .zip(&old.members)
            .filter(|(after, before)| after.node.is_some() && before.node.is_none())
            .filter_map(|(after, _)| after.node.clone())
            .collect();
        let rolled_back = spec.placement_failures > old.placement_failures;
        let refused =
            spec.failures.last().is_some_and(|f| f.reason == "Refused") && spec.failures != old.failures;
        if rolled_back && refused {
            let held = spec
                .members
                .iter()
                .filter(|m| m.node.is_some() && m.pod_uid.is_none());
            assert_eq!(held.count(), 0, "a refused placement still holds room");
        }
        if rolled_back && !refused {
            let overdue = old
                .members
                .iter()
                .zip(&spec.members)
                .filter(|(b, a)| a.attempt > b.attempt);
            let times: BTreeSet<_> = overdue.clone().filter_map(|(b, _)| b.placed_at.clone()).collect();
            assert!(
                times.iter().all(|at| at.0.as_millisecond() + deadline <= now),
                "rolled back before the deadline"
            );
            let left = old.members.iter().zip(&spec.members).filter(|(b, a)| {
                b.attempt == a.attempt && b.placed_at.as_ref().is_some_and(|t| times.contains(t))
            });
            assert_eq!(left.count(), 0, "an attempt is rolled back whole");
        }
        group.object.spec = spec;
        group.object.metadata.resource_version = Some(format!("{}", version.parse::<u64>().unwrap() + 1));
        for node in placed.into_iter().chain(succeeded) {
            let mut sum = self.used(&node);
            sum.add(&self.reserved(&node));
            let Some(allocatable) = self.nodes.get(&node).map(|node| &node.allocatable) else {
                assert!(stale, "{node} is not there");
                continue;
            };
            assert!(
                allocatable.covers(&sum) || stale,
                "{node} is promised more than it has: {sum:?} of {allocatable:?}"
            );
        }
    }
}
