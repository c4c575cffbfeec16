//! Members and their pods side by side.

use std::collections::BTreeSet;

use llamero_api::{
    LlamaGroupStatus,
    group::{GroupPhase, Intent, LlamaGroupSpec, Member, RankPhase},
};

use crate::{
    observed::{Group, Pod, PodPhase},
    placement::ANY_NODE,
    plan::{Key, PodRef},
    time::Millis,
};

/// A group, its members with their pods, and pods that are nobody's.
#[derive(Clone, Debug)]
pub struct GroupView<'a> {
    /// Namespace and name.
    pub key: Key,
    /// What was observed.
    pub group: &'a Group,
    /// Members as `spec.members` records them.
    pub members: Vec<MemberView<'a>>,
    /// Pods that no member claims; they are to go.
    pub orphans: Vec<&'a Pod>,
    /// The group answers.
    pub ready: bool,
    /// Nobody knows whether it does: it did, and this operator has not had the time to hear its leader yet.
    pub unheard: bool,
}

/// A member and its pod.
#[derive(Clone, Copy, Debug)]
pub struct MemberView<'a> {
    /// The record.
    pub member: &'a Member,
    /// The pod with this index and attempt, and the recorded UID if there is one.
    pub pod: Option<&'a Pod>,
    /// The pod of its successor.
    pub successor: Option<&'a Pod>,
}

impl MemberView<'_> {
    /// No node is chosen.
    #[must_use]
    pub const fn unplaced(&self) -> bool {
        self.member.node.is_none()
    }

    /// The node where its pod is, or where it is to go; nothing while nobody knows.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        let chosen = self.member.node.as_deref().filter(|node| *node != ANY_NODE);
        let bound = self.pod.and_then(|pod| pod.node.as_deref());
        bound.or(chosen)
    }

    /// The scheduler alone chooses its node, and has not yet.
    #[must_use]
    pub fn anywhere(&self) -> bool {
        self.member.node.as_deref() == Some(ANY_NODE) && !self.scheduled()
    }

    /// Its pod is recorded, so its gate may be lifted.
    #[must_use]
    pub const fn recorded(&self) -> bool {
        self.member.node.is_some() && self.member.pod_uid.is_some()
    }

    /// Its pod is bound to a node.
    #[must_use]
    pub fn scheduled(&self) -> bool {
        self.pod.is_some_and(|pod| pod.node.is_some())
    }

    /// Its pod exists and is not on its way out.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.pod
            .is_some_and(|pod| pod.deletion.is_none() && !pod.phase.ended())
    }
}

impl<'a> GroupView<'a> {
    /// Puts members and pods side by side.
    #[must_use]
    pub fn of(group: &'a Group, now: Millis) -> Self {
        let mut claimed = BTreeSet::new();
        let members: Vec<MemberView<'a>> = group
            .object
            .spec
            .members
            .iter()
            .map(|member| {
                let pod = group.pods.iter().find(|pod| claims(member, pod));
                let successor = group.pods.iter().find(|pod| succeeds(member, pod));
                claimed.extend(pod.iter().chain(&successor).map(|pod| pod.uid.as_str()));
                MemberView {
                    member,
                    pod,
                    successor,
                }
            })
            .collect();
        let orphans = group
            .pods
            .iter()
            .filter(|pod| !claimed.contains(pod.uid.as_str()))
            .collect();
        let mut view = Self {
            key: Key::of(&group.object.metadata),
            group,
            members,
            orphans,
            ready: false,
            unheard: false,
        };
        view.ready = view.is_ready(now);
        view.unheard = !view.ready && view.is_unheard(now);
        view
    }

    /// The group's specification.
    #[must_use]
    pub fn spec(&self) -> &'a LlamaGroupSpec {
        &self.group.object.spec
    }

    /// The group's UID.
    #[must_use]
    pub fn uid(&self) -> String {
        self.group.object.metadata.uid.clone().unwrap_or_default()
    }

    /// The group object is being deleted.
    #[must_use]
    pub fn deleting(&self) -> bool {
        self.group.object.metadata.deletion_timestamp.is_some()
    }

    /// The group is to serve.
    #[must_use]
    pub fn wanted(&self) -> bool {
        !self.deleting() && self.spec().intent == Intent::Run
    }

    /// All members that take part are recorded and their pods are bound and healthy.
    #[must_use]
    pub fn whole(&self) -> bool {
        !self.members.is_empty()
            && self
                .present()
                .all(|(_, m)| m.recorded() && m.healthy() && m.scheduled())
    }

    /// The same, and the group does without nobody.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.spec().without.is_empty() && self.whole()
    }

    /// Whether the present generation does without a member.
    #[must_use]
    pub fn does_without(&self, member: &Member) -> bool {
        self.spec().without.contains(&member.index)
    }

    /// The same of the member at a position.
    #[must_use]
    pub fn is_apart(&self, at: usize) -> bool {
        let member = self.members.get(at);
        member.is_some_and(|m| self.does_without(m.member))
    }

    /// The members that take part, with their positions.
    pub fn present(&self) -> impl Iterator<Item = (usize, &MemberView<'a>)> {
        let members = self.members.iter().enumerate();
        members.filter(|(_, m)| !self.does_without(m.member))
    }

    /// No room is reserved for a member that takes part.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.present().any(|(_, m)| m.unplaced())
    }

    /// Some member beside the lost ones may have weights to keep: its pod holds a generation, or, while nobody hears it, was last reported
    /// with loaded bytes.
    #[must_use]
    pub fn has_survivors(&self, lost: impl Fn(usize) -> bool) -> bool {
        let reported = self
            .group
            .object
            .status
            .as_ref()
            .map(|s| s.ranks.as_slice())
            .unwrap_or_default();
        let rest = self
            .members
            .iter()
            .enumerate()
            .filter(|(at, m)| m.healthy() && !lost(*at));
        rest.filter_map(|(_, m)| m.pod).any(|pod| match &pod.report {
            Some(report) => report.generation > 0,
            None => reported
                .iter()
                .any(|rank| rank.pod == pod.name && rank.loaded_bytes > 0),
        })
    }

    /// The pod of rank 0.
    #[must_use]
    pub fn leader(&self) -> Option<&'a Pod> {
        self.members.iter().find(|m| m.member.index == 0)?.pod
    }

    /// A pod whose successor has taken over, and which serves on until all members know it.
    #[must_use]
    pub fn hands_over(&self, pod: &Pod) -> bool {
        let formed = |pod: &Pod| pod.report.as_ref().map_or(0, |report| report.generation);
        let failed = || {
            self.spec()
                .failures
                .iter()
                .any(|f| f.index == pod.index && f.attempt == pod.attempt)
        };
        let succeeded = || {
            let mut members = self.members.iter();
            members.any(|m| m.member.index == pod.index && m.member.attempt > pod.attempt)
        };
        let told = || {
            self.present()
                .all(|(_, m)| m.pod.map_or(0, formed) >= self.spec().generation)
        };
        let healthy = pod.deletion.is_none() && pod.phase == PodPhase::Running;
        healthy && formed(pod) > 0 && succeeded() && !failed() && self.whole() && !told()
    }

    /// The phase that was last reported.
    #[must_use]
    pub fn last_phase(&self) -> GroupPhase {
        self.group
            .object
            .status
            .as_ref()
            .map(|s| s.phase)
            .unwrap_or_default()
    }

    /// A pod of the group, for a step.
    #[must_use]
    pub fn pod_ref(&self, pod: &Pod) -> PodRef {
        PodRef {
            key: self.key.sibling(&pod.name),
            uid: pod.uid.clone(),
        }
    }

    /// It serves, or may well do so: it does not go as one that serves nobody.
    #[must_use]
    pub const fn may_serve(&self) -> bool {
        self.ready || self.unheard
    }

    /// The operator before this one wrote that this very leader serves, and for as long as a silent one is waited for nobody knows better: the node
    /// of one that serves on may be not ready, and then the kubelet's probe says nothing.
    fn is_unheard(&self, now: Millis) -> bool {
        let Some(leader) = self.unheard_leader(now).filter(|_| self.wanted()) else {
            return false;
        };
        let served = |status: &LlamaGroupStatus| {
            let mut ranks = status.ranks.iter();
            // What it says of readiness is this operator's word by now, which hears nobody yet.
            ranks.any(|rank| rank.pod == leader.name && rank.phase == RankPhase::Serving)
        };
        self.group.object.status.as_ref().is_some_and(served)
    }

    /// The leader, while it runs and this operator has not had the time to hear it: for as long as a silent one is waited for.
    #[must_use]
    pub fn unheard_leader(&self, now: Millis) -> Option<&'a Pod> {
        let patience = self.spec().template.stall_timeout.millis().max(1);
        self.running_leader().filter(|leader| {
            let since = leader.unheard_since.filter(|_| leader.report.is_none());
            since.is_some_and(|since| now.saturating_sub(since) <= patience)
        })
    }

    fn running_leader(&self) -> Option<&'a Pod> {
        self.leader()
            .filter(|pod| pod.phase == PodPhase::Running && pod.deletion.is_none())
    }

    /// The leader says so; while nobody hears it (this operator has just started), the kubelet's probe and what was last reported do.
    fn is_ready(&self, now: Millis) -> bool {
        let Some(leader) = self.running_leader() else {
            return false;
        };
        if !self.wanted() || leader.ip.is_none() {
            return false;
        }
        match leader.fresh_report(now) {
            Some(report) => report.serving && !report.draining,
            None => {
                leader.ready
                    && self
                        .group
                        .object
                        .status
                        .as_ref()
                        .is_some_and(|status| status.ready)
            }
        }
    }
}

fn succeeds(member: &Member, pod: &Pod) -> bool {
    member.successor.as_ref().is_some_and(|successor| {
        pod.index == member.index
            && pod.attempt == successor.attempt
            && successor.pod_uid.as_ref().is_none_or(|uid| *uid == pod.uid)
    })
}

/// While no node is chosen there is no pod; once a UID is recorded, only that pod will do.
fn claims(member: &Member, pod: &Pod) -> bool {
    member.node.is_some()
        && pod.index == member.index
        && pod.attempt == member.attempt
        && member.pod_uid.as_ref().is_none_or(|uid| *uid == pod.uid)
}
