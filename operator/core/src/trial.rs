//! Whether a new revision starts at all, where a serving group must go before its successor can come.
//!
//! ```text
//! no room for a surge --> a pod of the new revision on one of the old group's nodes --> pulled, started, headers read --> the old group goes
//!                                    |  it does not start by the deadlines of placement, or cannot read
//!                                    +--> nothing goes; told; tried again, and at once when the words change
//! ```
//! The pod itself is what is remembered: it is kept, ended, until no group is left to replace.

use llamero_api::{deployment::OnePodPerNode, group::GroupTemplate, labels};

use crate::{
    inspect,
    observed::{Deployment, InspectPod, Node, PodPhase},
    placement::{ANY_NODE, eligible},
    plan::{Action, EventKind, Key, Step},
    resources::{self, Resources},
    time::Millis,
    volumes::Mounts,
};

/// How long after a failure it is tried again; what it lacked may be there by then.
const RETRY_MILLIS: Millis = 60_000;
/// How the keys of these pods begin; those of other inspect pods are hexadecimal.
const PREFIX: &str = "trial-";

/// What is tried.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// Whose pod it is.
    pub deployment: &'a Deployment,
    /// Its namespace and name.
    pub key: &'a Key,
    /// Digest of the revision.
    pub revision: &'a str,
    /// What its groups are made from.
    pub template: &'a GroupTemplate,
    /// No nodes are known: the scheduler chooses one.
    pub unpinned: bool,
}

/// How far the trial is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The revision starts and reads the checkpoint.
    Passed,
    /// Not yet, or it does not: what people should know, and when to look again.
    Pending(String, Option<Millis>),
}

/// Whether the pod tries a revision, instead of asking what a checkpoint is.
#[must_use]
pub fn is_one(pod: &InspectPod) -> bool {
    pod.key.starts_with(PREFIX)
}

/// Deletes pods of trials beside the one of `revision`, or all.
pub fn clear(deployment: &Deployment, key: &Key, revision: Option<&str>, steps: &mut Vec<Step>) {
    let kept = revision.map(label);
    let trials = deployment.inspect.iter().filter(|pod| is_one(pod));
    for pod in trials.filter(|pod| Some(&pod.key) != kept.as_ref() && !pod.terminating) {
        steps.push(inspect::delete(key, pod, "no revision is to be tried"));
    }
}

fn label(revision: &str) -> String {
    format!("{PREFIX}{revision}")
}

impl Trial<'_> {
    /// How far it is; begins it on the first of `nodes` that may run the revision and has room for the pod, else on the first that may.
    #[must_use]
    pub fn advance<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Node>,
        now: Millis,
        steps: &mut Vec<Step>,
    ) -> Outcome {
        let label = label(self.revision);
        let mut pods = self.deployment.inspect.iter();
        match pods.find(|pod| pod.key == label) {
            Some(pod) => self.judge(pod, now, steps),
            None => self.begin(label, nodes, steps),
        }
    }

    fn begin<'a>(
        &self,
        label: String,
        nodes: impl Iterator<Item = &'a Node>,
        steps: &mut Vec<Step>,
    ) -> Outcome {
        let revision = self.revision;
        let needs = Mounts::of(self.deployment).needs(self.template, None);
        let pods = usize::try_from(self.template.pods()).unwrap_or(usize::MAX);
        let shares = self.template.one_pod_per_node == Some(OnePodPerNode::Preferred);
        if let Some(why) = needs.forbid_spreading(pods).filter(|_| !shares) {
            return Outcome::Pending(format!("revision {revision} cannot be tried: {why}"), None);
        }
        let may: Vec<&Node> = nodes
            .filter(|node| eligible::check(self.template, node).is_ok() && needs.check(node).is_ok())
            .collect();
        let request = resources::of_inspect(&self.deployment.object.spec.worker);
        let roomy = may.iter().find(|node| has_room(node, &request));
        let chosen = roomy.or(may.first()).map(|node| node.name.as_str());
        let Some(node) = chosen.or(self.unpinned.then_some(ANY_NODE)) else {
            let why = "no node may run it (taints, worker.nodeSelector, worker.affinity, volumes)";
            return Outcome::Pending(format!("revision {revision} cannot be tried: {why}"), None);
        };
        let words = match node {
            ANY_NODE => format!("revision {revision} is tried before a group goes"),
            node => format!("revision {revision} is tried on node {node} before a group goes"),
        };
        steps.push(Step {
            action: Action::CreateInspectPod {
                deployment: self.key.clone(),
                name: labels::inspect_pod_name(&self.key.name, &label),
                key: label,
                trial: Some(Box::new(self.template.clone())),
                node: node.to_owned(),
            },
            reason: "Trying",
            message: words.clone(),
            event: EventKind::Normal,
        });
        Outcome::Pending(words, None)
    }

    fn judge(&self, pod: &InspectPod, now: Millis, steps: &mut Vec<Step>) -> Outcome {
        let revision = self.revision;
        match pod.phase {
            PodPhase::Succeeded => Outcome::Passed,
            PodPhase::Failed => {
                // The clock of its node may be ahead; then the API server's says when it began.
                let ended = [pod.finished_at, pod.created_at].into_iter().flatten();
                let at = ended
                    .filter(|at| *at <= now)
                    .max()
                    .map_or(now, |at| at.saturating_add(RETRY_MILLIS));
                if now >= at && !pod.terminating {
                    steps.push(inspect::delete(self.key, pod, "the revision is tried again"));
                }
                let why = inspect::last_words(pod);
                let words = format!(
                    "revision {revision} does not start, so no group goes: {why}; correct the specification, it is tried again every minute"
                );
                Outcome::Pending(words, Some(at).filter(|at| *at > now))
            }
            PodPhase::Pending | PodPhase::Running => self.wait(pod, now, steps),
        }
    }

    /// It has as long as members have to be scheduled and to start; then it is tried anew, perhaps on another node.
    fn wait(&self, pod: &InspectPod, now: Millis, steps: &mut Vec<Step>) -> Outcome {
        let (revision, policy) = (self.revision, &self.deployment.object.spec.placement);
        let until = pod.created_at.map(|at| {
            let start = pod.node.as_ref().map_or(0, |_| policy.start_deadline.millis());
            // The API server's clock may be wrong, but nothing was made in the future.
            let scheduled_by = at.min(now).saturating_add(policy.deadline.millis());
            scheduled_by.saturating_add(start)
        });
        if until.is_none_or(|at| now < at) {
            let waits = pod.waiting.as_deref().unwrap_or("its pod starts");
            let words = format!("revision {revision} is tried before a group goes: {waits}");
            return Outcome::Pending(words, until);
        }
        if !pod.terminating {
            steps.push(inspect::delete(self.key, pod, "the revision is tried anew"));
        }
        let why = pod.waiting.as_deref().unwrap_or("nobody says why");
        let (what, field) = match &pod.node {
            None => (
                format!("was not scheduled within {}", policy.deadline),
                "placement.deadline",
            ),
            Some(node) => (
                format!(
                    "did not start and end on node {node} within {}",
                    policy.start_deadline
                ),
                "placement.startDeadline",
            ),
        };
        let words = format!(
            "revision {revision} could not be tried, so no group goes: its pod {what} ({field}): {why}; make room for a pod of \
             worker.inspectResources on a node for workers, or correct the specification; it is tried again"
        );
        Outcome::Pending(words, None)
    }
}

/// Whether the node has room for a pod beside those that are bound to it.
fn has_room(node: &Node, request: &Resources) -> bool {
    let mut free = node.allocatable.clone();
    node.used.values().for_each(|used| free.subtract(used));
    free.covers(request)
}
