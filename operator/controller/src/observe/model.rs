//! Everything that is known, brought up to date by changes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::ControllerRevision, core::v1::Service, networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget, scheduling::v1::PriorityClass,
};
use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, LlamaGroup, group::LlamaGroupSpec};
use llamero_core::{
    Key, Plan, Planner,
    observed::{self, Priority, Settings},
    status::Reports,
    time::Millis,
};

use super::{
    OwnPod, SeenPod,
    owned::{ByOwner, controller},
    streams::Demands,
    usage::Usage,
    volumes::Volumes,
};
use crate::{
    apply::{Index, Refusals, Subject, index::key_of},
    links::{Membership, Streams},
    watch::{Change, Changes},
};

/// What is known beside the planner, by whom it belongs to.
#[derive(Default)]
pub struct Known {
    pub(super) pods: ByOwner<Arc<OwnPod>>,
    pub(super) services: ByOwner<Arc<Service>>,
    pub(super) budgets: ByOwner<Arc<PodDisruptionBudget>>,
    pub(super) policies: ByOwner<Arc<NetworkPolicy>>,
    pub(super) revisions: ByOwner<Arc<ControllerRevision>>,
    pub(super) names: NamesInUse,
    pub(super) volumes: Volumes,
    pub(super) demands: Demands,
    /// Specifications that are being written.
    pub(super) writing: HashMap<Key, Arc<LlamaGroupSpec>>,
    groups: ByOwner<Arc<LlamaGroup>>,
    /// Deployments, groups and the groups of pods, by UID.
    deployment_keys: HashMap<String, Key>,
    group_keys: HashMap<String, Key>,
    group_of_pod: HashMap<String, Key>,
}

/// Names that groups bear, or that pods which still exist carry, by namespace.
#[derive(Default)]
pub(super) struct NamesInUse {
    counts: HashMap<String, HashMap<String, usize>>,
    shared: HashMap<String, Arc<BTreeSet<String>>>,
    touched: BTreeSet<String>,
}

impl NamesInUse {
    pub(super) fn of(&self, namespace: &str) -> Arc<BTreeSet<String>> {
        self.shared.get(namespace).cloned().unwrap_or_default()
    }

    fn add(&mut self, namespace: &str, name: &str) {
        let names = self.counts.entry(namespace.to_owned()).or_default();
        let count = names.entry(name.to_owned()).or_default();
        *count += 1;
        if *count == 1 {
            let shared = self.shared.entry(namespace.to_owned()).or_default();
            Arc::make_mut(shared).insert(name.to_owned());
            self.touched.insert(namespace.to_owned());
        }
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let Some(names) = self.counts.get_mut(namespace) else {
            return;
        };
        let Some(count) = names.get_mut(name) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        names.remove(name);
        let emptied = names.is_empty();
        self.touched.insert(namespace.to_owned());
        if emptied {
            self.counts.remove(namespace);
            self.shared.remove(namespace);
        } else if let Some(shared) = self.shared.get_mut(namespace) {
            Arc::make_mut(shared).remove(name);
        }
    }
}

/// What a class gives to its pods.
fn priority(class: &PriorityClass) -> Priority {
    Priority {
        value: class.value,
        preempts: class.preemption_policy.as_deref() != Some("Never"),
    }
}

/// Everything that is known.
#[derive(Default)]
pub struct Model {
    planner: Planner,
    known: Known,
    index: Index,
    usage: Usage,
    /// And whether they are the default.
    priority_classes: BTreeMap<String, (Priority, bool)>,
    /// UID and address of ready gateways.
    gateways: BTreeMap<String, String>,
    stale_deployments: BTreeSet<Key>,
    stale_groups: BTreeSet<Key>,
    /// UIDs of pods that are gone.
    gone: Vec<String>,
    /// When everything was brought up to date last.
    last: Millis,
}

impl Model {
    /// What is decided from.
    #[must_use]
    pub const fn planner(&self) -> &Planner {
        &self.planner
    }

    /// The same, to hold and release deployments.
    pub const fn planner_mut(&mut self) -> &mut Planner {
        &mut self.planner
    }

    /// Objects by name.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// UID and address of every gateway that is ready.
    #[must_use]
    pub const fn gateways(&self) -> &BTreeMap<String, String> {
        &self.gateways
    }

    /// Takes in what changed. It counts from the next [`Self::refresh`].
    pub fn take(&mut self, changes: Changes) {
        for change in &changes.pods {
            self.pod(change);
        }
        for change in changes.deployments {
            self.deployment(change);
        }
        for change in changes.groups {
            self.group(change);
        }
        for change in &changes.services {
            let owners = self.known.services.change(change);
            self.touch_owners(owners);
        }
        for change in &changes.budgets {
            let owners = self.known.budgets.change(change);
            self.touch_owners(owners);
        }
        for change in &changes.policies {
            let owners = self.known.policies.change(change);
            self.touch_owners(owners);
        }
        for change in &changes.revisions {
            let owners = self.known.revisions.change(change);
            self.touch_owners(owners);
        }
        for change in changes.priority_classes {
            self.priority_class(&change);
        }
        for change in changes.claims {
            self.known.volumes.claim(change);
        }
        for change in changes.volumes {
            self.known.volumes.volume(change);
        }
        for change in changes.drivers {
            self.known.volumes.driver(change);
        }
        self.nodes(changes.nodes);
    }

    fn nodes(&mut self, changes: Vec<Change<Arc<observed::Node>>>) {
        for node in self.usage.take_touched() {
            self.planner.set_used(&node, self.usage.of(&node));
        }
        let nodes: Vec<(String, Option<observed::Node>)> = changes
            .into_iter()
            .filter_map(|change| {
                let name = change.after.as_ref().or(change.before.as_ref())?.name.clone();
                let node = change.after.map(|node| observed::Node {
                    used: self.usage.of(&name),
                    ..(*node).clone()
                });
                Some((name, node))
            })
            .collect();
        self.planner.set_nodes(nodes);
    }

    fn pod(&mut self, change: &Change<SeenPod>) {
        self.usage.change(change);
        if let Some(SeenPod::Gateway {
            ready: Some(ready), ..
        }) = &change.before
        {
            self.gateways.remove(&ready.0);
        }
        if let Some(SeenPod::Gateway {
            ready: Some(ready), ..
        }) = &change.after
        {
            self.gateways.insert(ready.0.clone(), ready.1.clone());
        }
        let ours = |seen: &Option<SeenPod>| match seen {
            Some(SeenPod::Ours(pod)) => Some(Arc::clone(pod)),
            _ => None,
        };
        let (before, after) = (ours(&change.before), ours(&change.after));
        for (pod, comes) in [(&before, false), (&after, true)] {
            let Some(pod) = pod else { continue };
            if let Some(group) = &pod.group {
                match comes {
                    true => self.known.names.add(&pod.key.namespace, group),
                    false => self.known.names.remove(&pod.key.namespace, group),
                }
            }
            let Some(owner) = &pod.owner else { continue };
            match comes {
                true => self.known.pods.put(owner, &pod.key.name, Arc::clone(pod)),
                false => self.known.pods.remove(owner, &pod.key.name),
            }
            self.touch_owners([owner.clone()]);
        }
        self.index.pod(before.as_deref(), after.as_deref());
        let uid = |pod: &Option<Arc<OwnPod>>| pod.as_ref()?.member.as_ref().map(|member| member.uid.clone());
        let (was, is) = (uid(&before), uid(&after));
        if let Some(was) = was.filter(|was| Some(was) != is.as_ref()) {
            self.known.group_of_pod.remove(&was);
            self.gone.push(was);
        }
        let group = after
            .as_ref()
            .and_then(|pod| self.known.group_keys.get(pod.owner.as_ref()?));
        if let (Some(is), Some(group)) = (is, group) {
            self.known.group_of_pod.insert(is, group.clone());
        }
    }

    fn deployment(&mut self, change: Change<Arc<LlamaDeployment>>) {
        let Change { before, after } = change;
        let same = before.as_ref().and_then(|o| o.uid()) == after.as_ref().and_then(|o| o.uid());
        if let Some(before) = before.filter(|_| !same) {
            let key = key_of(before.as_ref());
            self.known
                .deployment_keys
                .remove(&before.uid().unwrap_or_default());
            self.planner.remove_deployment(&key);
            self.stale_deployments.remove(&key);
            self.index.remove_deployment(&key);
        }
        let Some(after) = after else { return };
        let (key, uid) = (key_of(after.as_ref()), after.uid().unwrap_or_default());
        if !same {
            self.stale_groups
                .extend(self.known.groups.of(&uid).map(|group| key_of(group.as_ref())));
            self.known.deployment_keys.insert(uid, key.clone());
        }
        self.index.put_deployment(key.clone(), after);
        self.stale_deployments.insert(key);
    }

    fn group(&mut self, change: Change<Arc<LlamaGroup>>) {
        let owners = self.known.groups.change(&change);
        let Change { before, after } = change;
        let same = before.as_ref().and_then(|o| o.uid()) == after.as_ref().and_then(|o| o.uid());
        if let (true, [first, _], Some(before)) = (same, owners.as_slice(), &before)
            && let Some(first) = self.known.deployment_keys.get(first)
        {
            // It changed hands.
            self.planner.remove_group(first, &before.name_any());
        }
        if let Some(before) = before.filter(|_| !same) {
            let key = key_of(before.as_ref());
            self.known.names.remove(&key.namespace, &key.name);
            self.known.group_keys.remove(&before.uid().unwrap_or_default());
            for owner in owners
                .iter()
                .filter_map(|uid| self.known.deployment_keys.get(uid))
            {
                self.planner.remove_group(owner, &key.name);
            }
            self.stale_groups.remove(&key);
            self.index.remove_group(&key);
        }
        let Some(after) = after else { return };
        let (key, uid) = (key_of(after.as_ref()), after.uid().unwrap_or_default());
        if !same {
            self.known.names.add(&key.namespace, &key.name);
            let members: Vec<String> = self.known.members(&uid).map(|pod| pod.uid.clone()).collect();
            for pod in members {
                self.known.group_of_pod.insert(pod, key.clone());
            }
            self.known.group_keys.insert(uid, key.clone());
        }
        self.index.put_group(key.clone(), after);
        self.stale_groups.insert(key);
    }

    fn priority_class(&mut self, change: &Change<Arc<PriorityClass>>) {
        if let Some(before) = &change.before {
            self.priority_classes.remove(&before.name_any());
        }
        if let Some(after) = &change.after {
            let default = after.global_default == Some(true);
            self.priority_classes
                .insert(after.name_any(), (priority(after), default));
        }
    }

    fn touch_owners(&mut self, uids: impl IntoIterator<Item = String>) {
        for uid in uids {
            if let Some(key) = self.known.group_keys.get(&uid) {
                self.stale_groups.insert(key.clone());
            } else if let Some(key) = self.known.deployment_keys.get(&uid) {
                self.stale_deployments.insert(key.clone());
            }
        }
    }

    /// Something about it changed that no cache tells: a refusal.
    pub fn touch(&mut self, subject: &Subject) {
        match subject {
            Subject::Deployment(key) => drop(self.stale_deployments.insert(key.clone())),
            Subject::Group(key) => drop(self.stale_groups.insert(key.clone())),
        }
    }

    /// A specification of a group is being written, or is not any more.
    pub fn set_writing(&mut self, group: &Key, spec: Option<Arc<LlamaGroupSpec>>) {
        match spec {
            Some(spec) => drop(self.known.writing.insert(group.clone(), spec)),
            None => drop(self.known.writing.remove(group)),
        }
        self.stale_groups.insert(group.clone());
    }

    /// Pods that said something.
    pub fn heard(&mut self, pod_uids: impl IntoIterator<Item = String>) {
        for uid in pod_uids {
            if let Some(group) = self.known.group_of_pod.get(&uid) {
                self.stale_groups.insert(group.clone());
            }
        }
    }

    /// The gateways said something.
    pub fn set_demands(&mut self, demands: Demands) {
        self.known.demands = demands;
        for key in self.known.deployment_keys.values() {
            let demand = self.known.demands.for_deployment(&key.namespace, &key.name);
            self.planner.set_demand(key, demand);
        }
    }

    /// Brings the planner up to date.
    pub fn refresh(
        &mut self,
        streams: &mut dyn Streams,
        settings: &Settings,
        refusals: &Refusals,
        now: Millis,
    ) {
        let classes = self.priority_classes.iter();
        let values = classes
            .clone()
            .map(|(name, (value, _))| (name.clone(), *value))
            .collect();
        let default = classes
            .filter(|(_, (_, default))| *default)
            .map(|(_, (value, _))| *value)
            .max_by_key(|priority| priority.value);
        self.planner
            .set_cluster(settings, &values, default.unwrap_or_default());
        if now < self.last {
            // The clock went back: what was heard is told anew, none of it later than now.
            self.stale_groups.extend(self.known.group_keys.values().cloned());
        }
        self.last = now;
        for uid in std::mem::take(&mut self.gone) {
            streams.forget(&uid);
        }
        for (namespace, claims) in self.known.volumes.changed() {
            self.planner.set_claims(&namespace, &claims);
        }
        for key in std::mem::take(&mut self.stale_deployments) {
            if let Ok(object) = self.index.deployment(&key) {
                self.planner
                    .set_deployment(self.known.deployment(object, refusals));
            }
        }
        for namespace in std::mem::take(&mut self.known.names.touched) {
            let names = self.known.names.of(&namespace);
            self.planner.set_names_in_use(&namespace, &names);
        }
        for key in std::mem::take(&mut self.stale_groups) {
            let Ok(object) = self.index.group(&key) else {
                continue;
            };
            let owner = controller(object.as_ref()).and_then(|uid| self.known.deployment_keys.get(&uid));
            let Some(owner) = owner else { continue };
            let scaled = self
                .index
                .deployment(owner)
                .is_ok_and(|d| d.spec.autoscaling.is_some());
            let uid = object.uid().unwrap_or_default();
            streams.follow(
                &Membership {
                    group: object,
                    pods: self.known.members(&uid).collect(),
                    scaled,
                },
                now,
            );
            let group = self.known.group(object, streams, refusals);
            self.planner.set_group(owner, group);
        }
    }

    /// Decides about what is dirty or due.
    pub fn pass(&mut self, now: Millis) -> Plan {
        self.planner.pass(now)
    }

    /// Reports on what was decided about.
    #[must_use]
    pub fn report(&self, plan: &Plan, now: Millis) -> Reports {
        self.planner.report(plan, now)
    }
}
