//! What goes wrong.

use k8s_openapi::api::core::v1::Taint;

use super::*;

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Crash(usize),
    Delete(usize),
    Evict(usize),
    /// Its node ran short of memory.
    Pressure(usize),
    Stall(usize),
    RemoveNode(usize),
    AddNode(usize),
    Foreign(usize, i64),
    Scale(i32),
    Partition(i32),
    Image(u8),
    Wait(u8),
    Quota(usize),
    Cordon(usize, bool),
    Requests(u32),
    /// Somebody else writes the number of replicas.
    Meddle(i32),
    /// The operator begins anew, and has heard nobody.
    Restart,
    /// Nobody reaches a node, nor what runs on it.
    Unreachable(usize),
    /// It is there again; what ran on it ran on, or its machine began anew.
    Back(usize, bool),
    /// A kubelet says nothing any more, or does again; what runs on its node runs on.
    Kubelet(usize, bool),
    /// A taint of others, of who takes nodes away, of who does so at once; or none any more.
    Taint(usize, Option<u8>),
    /// Caches lag behind for a pass.
    Stale,
    /// The operator's clock is so many minutes ahead.
    Clock(i16),
}

impl World {
    fn pods(&mut self) -> Vec<&mut SimPod> {
        self.groups.iter_mut().flat_map(|g| g.pods.iter_mut()).collect()
    }

    fn on(&mut self, node: &str) -> Vec<&mut SimPod> {
        let mut pods = self.pods();
        pods.retain(|p| p.pod.node.as_deref() == Some(node));
        pods
    }

    /// A pod by number, whatever there is.
    fn pod(&mut self, number: usize) -> Option<&mut SimPod> {
        let mut pods = self.pods();
        let count = pods.len();
        (count > 0).then(|| pods.swap_remove(number % count))
    }

    pub(crate) fn fault(&mut self, fault: &Fault) {
        let (now, clock) = (self.now, self.clock());
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
                    p.pod.deletion = Some(3);
                    p.gone_at.get_or_insert(now + 3000);
                }
            }
            Fault::Evict(n) => {
                if let Some(p) = self.pod(*n) {
                    p.pod.evicted = true;
                    p.pod.deletion = Some(1);
                    p.gone_at.get_or_insert(now + 1000);
                }
            }
            Fault::Pressure(n) => {
                if let Some(p) = self.pod(*n).filter(|p| p.pod.phase == PodPhase::Running) {
                    (p.pod.evicted, p.pod.pressure, p.pod.phase) = (true, true, PodPhase::Failed);
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
                self.down.remove(&name);
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
            Fault::Scale(n) => self.object.spec.replicas = *n,
            Fault::Partition(n) => self.object.spec.rollout.partition = *n,
            Fault::Image(n) => self.object.spec.worker.image = Some(format!("worker:{n}")),
            Fault::Cordon(n, on) => {
                if let Some(node) = self.nodes.get_mut(&format!("n{n}")) {
                    node.unschedulable = *on;
                }
            }
            Fault::Quota(pods) => self.quota = *pods,
            Fault::Requests(n) => self.requests = *n,
            Fault::Meddle(n) => {
                self.object.spec.replicas = *n;
                self.replicas_manager = Some("kubectl-scale".into());
                self.touch();
            }
            Fault::Restart => {
                for p in self.pods() {
                    p.unheard = (p.pod.phase == PodPhase::Running).then_some(clock);
                }
            }
            Fault::Unreachable(n) => {
                let name = format!("n{n}");
                if let Some(node) = self.nodes.get_mut(&name) {
                    node.ready = false;
                    self.down.insert(name.clone());
                }
                for p in self.on(&name) {
                    p.pod.ready = false;
                    if let Some(report) = &mut p.pod.report {
                        report.alive_at = report.alive_at.min(clock);
                    }
                }
            }
            Fault::Back(n, anew) => {
                let name = format!("n{n}");
                if !self.down.remove(&name) {
                    return;
                }
                if let Some(node) = self.nodes.get_mut(&name) {
                    node.ready = true;
                }
                for p in self
                    .on(&name)
                    .into_iter()
                    .filter(|p| *anew && !p.pod.phase.ended())
                {
                    p.pod.phase = PodPhase::Failed;
                    p.pod.exit = Some(Exit {
                        code: 255,
                        reason: "Unknown".into(),
                        message: String::new(),
                    });
                }
            }
            Fault::Kubelet(n, up) => {
                let name = format!("n{n}");
                let reached = !self.down.contains(&name);
                if let Some(node) = self.nodes.get_mut(&name).filter(|_| reached) {
                    node.ready = *up;
                }
            }
            Fault::Taint(n, which) => {
                if let Some(node) = self.nodes.get_mut(&format!("n{n}")) {
                    let key = |which: &u8| ["others", GOING, GONE_SOON][usize::from(which % 3)];
                    let taint = |which| Taint {
                        key: key(which).into(),
                        effect: "NoSchedule".into(),
                        ..Taint::default()
                    };
                    node.taints = which.iter().map(taint).collect();
                }
            }
            Fault::Stale => self.stale = true,
            Fault::Clock(minutes) => {
                self.ahead = i64::from(*minutes) * 60_000;
                // As the controller's links do when they see it.
                let clock = self.clock();
                for p in self.pods() {
                    p.unheard = p.unheard.map(|since| since.min(clock));
                    if let Some(report) = p.pod.report.as_mut().filter(|report| report.alive_at != OPEN) {
                        report.alive_at = report.alive_at.min(clock);
                    }
                }
            }
            Fault::Wait(seconds) => {
                for _ in 0..*seconds {
                    self.tick();
                }
            }
        }
    }
}
