//! What the cluster does by itself: kubelets, the scheduler, workers.

use super::*;

impl World {
    /// One second of the cluster's own life.
    pub(crate) fn tick(&mut self) {
        self.now += 1000;
        let (now, clock) = (self.now, self.clock());
        for inspect in &mut self.inspect {
            inspect.phase = PodPhase::Succeeded;
            inspect.result = Some(serde_json::to_string(&build::summary()).unwrap());
        }
        // Kubelets of nodes that are gone, and deletions that have had their time, where a kubelet is there to say that the pod has ended.
        let nodes = &self.nodes;
        for group in &mut self.groups {
            group
                .pods
                .retain(|p| match p.pod.node.as_ref().map(|name| nodes.get(name)) {
                    Some(None) => false,
                    Some(Some(node)) if !node.ready => true,
                    _ => p.gone_at.is_none_or(|at| at > now),
                });
        }
        self.provision();
        self.schedule();
        for group in &mut self.groups {
            let total = group.object.spec.template.weight_bytes_per_rank;
            for p in &mut group.pods {
                let node = p.pod.node.as_ref().and_then(|name| self.nodes.get(name));
                let Some(node) = node.filter(|_| !p.pod.phase.ended()) else {
                    continue;
                };
                let starts = node.ready || p.pod.phase == PodPhase::Running;
                if !starts || self.down.contains(&node.name) {
                    continue;
                }
                p.unheard = None;
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
                (report.received_at, report.alive_at) = (clock, OPEN);
                // A rank reads its shard as soon as it runs; only connecting waits for Form.
                let rank = &mut report.ranks[0];
                rank.loaded_bytes = (rank.loaded_bytes + READ).min(total);
                rank.phase = if rank.loaded_bytes < total {
                    RankPhase::Loading
                } else {
                    RankPhase::Connecting
                };
            }
            step_group(group, &self.down);
            // The kubelet's probe.
            for p in &mut group.pods {
                let node = p.pod.node.as_ref().and_then(|name| self.nodes.get(name));
                let serves = p.pod.report.as_ref().is_some_and(|report| report.serving);
                p.pod.ready = serves && node.is_some_and(|node| node.ready);
            }
        }
    }

    /// Placeholders that were deleted, or whose nodes are gone, go; the others find room that nobody has; an autoscaler of the cluster adds a node
    /// while one finds none.
    fn provision(&mut self) {
        for at in 0..self.groups.len() {
            let nodes = &self.nodes;
            let stays = |one: &Placeholder| {
                !one.terminating && one.node.as_ref().is_none_or(|node| nodes.contains_key(node))
            };
            self.groups[at].placeholders.retain(stays);
            let request = resources::of_template(&self.groups[at].object.spec.template);
            for one in 0..self.groups[at].placeholders.len() {
                if self.groups[at].placeholders[one].node.is_none() {
                    let found = self.room_for_a_placeholder(at, &request);
                    self.groups[at].placeholders[one].node = found;
                }
            }
        }
        let short = |group: &SimGroup| group.placeholders.iter().any(|one| one.node.is_none());
        if self.nodes.len() < self.most_nodes && self.groups.iter().any(short) {
            self.serial += 1;
            let name = format!("added-{}", self.serial);
            self.nodes.insert(name.clone(), build::node(&name, 2));
        }
    }

    /// A node that has room without anyone giving way, and no pod of the group.
    fn room_for_a_placeholder(&self, at: usize, request: &Resources) -> Option<String> {
        let group = &self.groups[at];
        let occupied: BTreeSet<&String> = group
            .placeholders
            .iter()
            .filter_map(|one| one.node.as_ref())
            .chain(group.pods.iter().filter_map(|p| p.pod.node.as_ref()))
            .collect();
        let mut nodes = self.nodes.values();
        let found = nodes.find(|node| {
            let mut free = node.allocatable.clone();
            free.subtract(&self.used(&node.name));
            free.subtract(&self.held(&node.name));
            is_open(node) && !occupied.contains(&node.name) && free.covers(request)
        })?;
        Some(found.name.clone())
    }

    /// Placeholders of a node give way until nobody has too little.
    fn preempt(&mut self, node: &str) {
        loop {
            let mut taken = self.used(node);
            taken.add(&self.held(node));
            if self.nodes[node].allocatable.covers(&taken) {
                return;
            }
            let on_node = |one: &Placeholder| one.node.as_deref() == Some(node);
            let victim = self
                .groups
                .iter_mut()
                .find(|group| group.placeholders.iter().any(on_node))
                .unwrap();
            let at = victim.placeholders.iter().position(on_node).unwrap();
            victim.placeholders.remove(at);
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
                let free = self.nodes.get(&node).filter(|n| is_open(n)).map(|n| {
                    let mut free = n.allocatable.clone();
                    free.subtract(&self.used(&node));
                    free
                });
                let pod = &mut self.groups[at].pods[p].pod;
                if free.is_some_and(|free| free.covers(&request)) {
                    pod.unschedulable = None;
                    pod.node = Some(node.clone());
                    self.preempt(&node);
                } else {
                    pod.unschedulable = Some("0 nodes are available".into());
                }
            }
        }
    }
}

/// Workers: a group serves while exactly the pods that were formed together are there, loaded, and none is stuck.
fn step_group(group: &mut SimGroup, down: &BTreeSet<String>) {
    let reached = |p: &SimPod| p.pod.node.as_ref().is_none_or(|node| !down.contains(node));
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
            p.pod.phase == PodPhase::Running && generation(p) == newest && loaded && reached(p)
        });
    let stuck = formed.iter().any(|at| group.pods[*at].stuck);
    for p in group.pods.iter_mut().filter(|p| reached(p)) {
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
