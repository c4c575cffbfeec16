//! Several deployments on the same nodes, and a planner that is told of changes: it must decide what is decided from scratch.

use llamero_core::{Key, Planner, placement::Reservations};

use super::*;

/// Deployments of different namespaces that share their nodes.
pub(crate) struct Shared {
    worlds: Vec<World>,
    planner: Planner,
    /// Room taken by pods of nobody here, by node.
    foreign: BTreeMap<String, Resources>,
}

impl Shared {
    /// So many deployments on so many nodes.
    pub(crate) fn new(deployments: usize, nodes: usize, replicas: i32) -> Self {
        Self {
            worlds: (0..deployments).map(|_| World::new(nodes, replicas)).collect(),
            planner: Planner::default(),
            foreign: BTreeMap::new(),
        }
    }

    /// Nodes are everybody's; anything else goes wrong with one deployment.
    pub(crate) fn fault(&mut self, at: usize, fault: &Fault) {
        let at = at % self.worlds.len();
        match fault {
            Fault::RemoveNode(_)
            | Fault::AddNode(_)
            | Fault::Cordon(..)
            | Fault::Unreachable(_)
            | Fault::Back(..)
            | Fault::Kubelet(..)
            | Fault::Taint(..)
            | Fault::Restart
            | Fault::Wait(_) => {
                self.worlds.iter_mut().for_each(|world| world.fault(fault));
            }
            Fault::Foreign(node, gpus) => {
                let name = format!("n{node}");
                self.share(false);
                let used = self.worlds[0].used(&name).get(GPU);
                let own = self.foreign.get(&name).map_or(0, |foreign| foreign.get(GPU));
                let offered = self.worlds[0]
                    .nodes
                    .get(&name)
                    .map_or(0, |node| node.allocatable.get(GPU));
                let most = offered - used + own;
                self.foreign
                    .insert(name, Resources::new().with(GPU, (*gpus).min(most)));
            }
            other => self.worlds[at].fault(other),
        }
    }

    /// What each deployment finds taken by others: what they use, and, where promises are checked, what they reserved.
    fn share(&mut self, with_reservations: bool) {
        let nodes: Vec<String> = self.worlds[0].nodes.keys().cloned().collect();
        self.worlds.iter_mut().for_each(|world| world.foreign.clear());
        let own: Vec<Vec<Resources>> = self
            .worlds
            .iter()
            .map(|world| {
                let taken = |node: &String| {
                    let mut taken = world.used(node);
                    if with_reservations {
                        taken.add(&world.reserved(node));
                    }
                    taken
                };
                nodes.iter().map(taken).collect()
            })
            .collect();
        for (at, world) in self.worlds.iter_mut().enumerate() {
            for (node, name) in nodes.iter().enumerate() {
                let mut foreign = self.foreign.get(name).cloned().unwrap_or_default();
                for others in own
                    .iter()
                    .enumerate()
                    .filter(|(other, _)| *other != at)
                    .map(|(_, o)| o)
                {
                    foreign.add(&others[node]);
                }
                world.foreign.insert(name.clone(), foreign);
            }
        }
    }

    /// Everything from scratch.
    fn observe(&mut self) -> Observed {
        self.share(false);
        let mut all = Observed::default();
        for (at, world) in self.worlds.iter().enumerate() {
            let mut one = world.observe();
            let namespace = Some(format!("ns{at}"));
            for deployment in &mut one.deployments {
                Arc::make_mut(&mut deployment.object)
                    .metadata
                    .namespace
                    .clone_from(&namespace);
                for group in &mut deployment.groups {
                    Arc::make_mut(&mut group.object)
                        .metadata
                        .namespace
                        .clone_from(&namespace);
                }
                deployment
                    .groups
                    .sort_by(|a, b| a.object.metadata.name.cmp(&b.object.metadata.name));
            }
            all.deployments.extend(one.deployments);
            (all.settings, all.nodes) = (one.settings, one.nodes);
        }
        all
    }

    /// Tells the planner what changed.
    fn tell(&mut self, observed: &Observed) {
        let planner = &mut self.planner;
        planner.set_cluster(
            &observed.settings,
            &observed.priority_classes,
            observed.default_priority,
        );
        let there: BTreeSet<&String> = observed.nodes.iter().map(|node| &node.name).collect();
        let gone: Vec<String> = planner
            .observed()
            .nodes
            .iter()
            .map(|node| node.name.clone())
            .filter(|name| !there.contains(name))
            .collect();
        // What is used may be told apart from the node.
        for node in &observed.nodes {
            planner.set_used(&node.name, node.used.clone());
        }
        let changes = observed
            .nodes
            .iter()
            .map(|node| (node.name.clone(), Some(node.clone())));
        planner.set_nodes(changes.chain(gone.into_iter().map(|name| (name, None))));
        for deployment in &observed.deployments {
            let key = Key::of(&deployment.object.metadata);
            let frame = Deployment {
                groups: vec![],
                ..deployment.clone()
            };
            planner.set_deployment(frame);
            let known = planner.observed().deployments.iter();
            let known: Vec<String> = known
                .filter(|d| Key::of(&d.object.metadata) == key)
                .flat_map(|d| &d.groups)
                .filter_map(|g| g.object.metadata.name.clone())
                .collect();
            for name in known {
                if deployment
                    .groups
                    .iter()
                    .all(|g| g.object.metadata.name.as_ref() != Some(&name))
                {
                    planner.remove_group(&key, &name);
                }
            }
            for group in &deployment.groups {
                assert!(planner.set_group(&key, group.clone()));
            }
        }
    }

    /// A pass of the planner, compared with one from scratch; the steps that the mask selects happen. The namespaces that were decided about.
    pub(crate) fn pass(&mut self, mask: u64, write_status: bool) -> usize {
        let observed = self.observe();
        self.tell(&observed);
        let now = self.worlds[0].now;
        assert_eq!(self.planner.observed().nodes, observed.nodes);
        assert_eq!(*self.planner.reservations(), Reservations::of(&observed));
        let (plan, whole) = (self.planner.pass(now), decide(&observed, now));
        let reports = self.planner.report(&plan, now);
        let all_reports = report(&observed, &whole, now);
        for (key, verdict) in &whole.verdicts {
            let of = |plan: &Plan| -> Vec<Step> {
                let steps = plan.steps.iter();
                steps
                    .filter(|s| namespace(&s.action) == key.namespace)
                    .cloned()
                    .collect()
            };
            match plan.verdicts.get(key) {
                Some(decided) => {
                    assert_eq!(decided, verdict);
                    assert_eq!(of(&plan), of(&whole));
                    assert_eq!(reports.deployments.get(key), all_reports.deployments.get(key));
                }
                None => assert_eq!(of(&whole), [], "{key} was left alone"),
            }
        }
        self.share(true);
        for (at, world) in self.worlds.iter_mut().enumerate() {
            let own = |step: &&Step| namespace(&step.action) == format!("ns{at}");
            let steps: Vec<Step> = plan.steps.iter().filter(own).cloned().collect();
            world.obey(&steps, mask);
        }
        for (at, world) in self.worlds.iter_mut().enumerate() {
            let mut own = reports.clone();
            own.deployments
                .retain(|key, _| key.namespace == format!("ns{at}"));
            own.groups.retain(|key, _| key.namespace == format!("ns{at}"));
            if write_status {
                world.write_status(own);
            }
            world.forget_refusals();
        }
        self.share(false);
        self.worlds.iter_mut().for_each(World::tick);
        plan.verdicts.len()
    }

    /// Whether every group serves, on nodes that stay.
    pub(crate) fn serves(&self) -> bool {
        let mut worlds = self.worlds.iter();
        let mut nodes = self.worlds[0].nodes.values();
        nodes.all(is_open) && worlds.all(|world| world.all_settled() && !world.groups.is_empty())
    }
}

fn namespace(action: &Action) -> &str {
    let key = match action {
        Action::CreateGroup { deployment, .. }
        | Action::ScaleDeployment { deployment, .. }
        | Action::CreateRevision { deployment, .. }
        | Action::RenumberRevision { deployment, .. }
        | Action::DeleteRevision { deployment, .. }
        | Action::CreateInspectPod { deployment, .. } => deployment,
        Action::DeletePod { owner, .. } | Action::Apply { owner, .. } => owner,
        Action::WriteGroup { group, .. }
        | Action::CreatePod { group, .. }
        | Action::CreatePlaceholder { group, .. }
        | Action::Ungate { group, .. }
        | Action::Form { group, .. }
        | Action::DrainGroup { group, .. }
        | Action::DeleteGroup { group, .. } => group,
    };
    &key.namespace
}
