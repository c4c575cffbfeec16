//! A plan's steps: one chain a group, which runs in order.

use std::collections::BTreeMap;

use llamero_core::{Action, Key, Step, observed::Settings, plan::EventKind};
use tracing::{debug, info, warn};

use super::{
    EffectError, Index, Subject, Writer,
    calls::{self, Channels, Dialled},
    children,
    error::Remedy,
    objects,
    peers::Peers,
    pods, revisions,
};
use crate::{build::inspect, events::Events, form_keys::FormKeys, metrics::Metrics};

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps that failed.
    pub failures: Vec<Failure>,
    /// What was applied: what it was about, and [`Action::target`].
    pub applied: Vec<(Subject, String)>,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was about.
    pub subject: Subject,
    /// Name of the action.
    pub action: &'static str,
    /// [`Action::target`].
    pub target: String,
    /// What went wrong.
    pub message: String,
    /// Who must act.
    pub remedy: Remedy,
}

/// Everything that effects need.
pub struct Tools<'a> {
    /// Fenced access to the API server.
    pub writer: &'a Writer,
    /// The objects that the steps are about.
    pub index: &'a Index,
    /// Connections to worker pods.
    pub channels: &'a Channels,
    /// Calls to worker pods that are under way.
    pub peers: &'a Peers,
    /// Where Events go.
    pub events: &'a Events,
    /// Counters.
    pub metrics: &'a Metrics,
    /// What pods are made with where their deployment says nothing.
    pub settings: &'a Settings,
    /// From which the key of every generation is derived.
    pub keys: &'a FormKeys,
}

/// Steps that run one after another, and what they are about.
pub type Chain = (Subject, Vec<Step>);

/// Steps by group in their order; a step about a deployment is a chain of its own.
#[must_use]
pub fn chains(index: &Index, steps: Vec<Step>) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    let mut of_group: BTreeMap<Subject, usize> = BTreeMap::new();
    for step in steps {
        let subject = index.subject(&step.action);
        match of_group.get(&subject).and_then(|index| chains.get_mut(*index)) {
            Some((_, chain)) => chain.push(step),
            None => {
                if matches!(subject, Subject::Group(_)) {
                    of_group.insert(subject.clone(), chains.len());
                }
                chains.push((subject, vec![step]));
            }
        }
    }
    chains
}

/// Runs the steps of a chain in order; the first that fails ends it.
pub async fn run_chain(tools: &Tools<'_>, (subject, steps): Chain) -> Outcome {
    let mut outcome = Outcome::default();
    for step in &steps {
        let action = step.action.kind();
        let result = match begin_call(tools, &step.action) {
            // It is under way already, which is no news.
            Some(Ok(false)) => continue,
            Some(begun) => begun.map(drop),
            None => run(tools, &step.action).await,
        };
        match result {
            Ok(()) => {
                outcome.applied.push((subject.clone(), step.action.target()));
                tools.metrics.effect(action, "ok");
                info!(%subject, action, reason = step.reason, "{}", step.message);
                if step.event != EventKind::None {
                    let warning = step.event == EventKind::Warning;
                    tools
                        .events
                        .publish(tools.index, &subject, warning, step.reason, action, &step.message);
                }
            }
            Err(error) => {
                tools.metrics.effect(action, error.class());
                let failure = Failure {
                    subject,
                    action,
                    target: step.action.target(),
                    message: error.to_string(),
                    remedy: error.remedy(),
                };
                tell(tools, &failure);
                outcome.failures.push(failure);
                break;
            }
        }
    }
    outcome
}

/// Says what went wrong to whom it concerns.
fn tell(tools: &Tools<'_>, failure: &Failure) {
    let Failure {
        subject,
        action: kind,
        message,
        remedy,
        ..
    } = failure;
    match remedy {
        Remedy::Decide => debug!(%subject, action = kind, "dropped: {message}"),
        Remedy::Retry => warn!(%subject, action = kind, "failed, to be tried again: {message}"),
        Remedy::User => {
            warn!(%subject, action = kind, "refused: {message}");
            tools
                .events
                .publish(tools.index, subject, true, "Refused", kind, message);
        }
    }
}

async fn run(tools: &Tools<'_>, action: &Action) -> Result<(), EffectError> {
    let Tools { writer, index, .. } = tools;
    match action {
        Action::CreateGroup { .. }
        | Action::ScaleDeployment { .. }
        | Action::CreateRevision { .. }
        | Action::RenumberRevision { .. }
        | Action::DeleteRevision { .. }
        | Action::CreateInspectPod { .. } => run_for_deployment(tools, action).await,
        Action::Form { .. } | Action::DrainGroup { .. } => Err(not_about(action, "an object")),
        Action::WriteGroup {
            group,
            resource_version,
            spec,
            confirm,
        } => objects::write_group(writer, index, group, resource_version, spec, confirm).await,
        Action::CreatePod {
            group,
            name,
            index: member,
            attempt,
        } => pods::create_member((writer, tools.settings), index, group, name, *member, *attempt).await,
        Action::CreatePlaceholder {
            group,
            name,
            index: member,
            most_seconds,
        } => {
            let made = (name.as_str(), *member, *most_seconds);
            pods::create_placeholder((writer, tools.settings), index, group, made).await
        }
        Action::Ungate { pod, node, .. } => pods::ungate(writer, index, pod, node).await,
        Action::DeletePod {
            pod, grace_seconds, ..
        } => pods::delete(writer, pod, *grace_seconds).await,
        Action::DeleteGroup { group, uid } => objects::delete_group(writer, group, uid).await,
        Action::Apply {
            owner,
            owner_uid,
            object,
        } => children::apply(writer, owner, owner_uid, object).await,
    }
}

/// Steps about a deployment itself.
async fn run_for_deployment(tools: &Tools<'_>, action: &Action) -> Result<(), EffectError> {
    let Tools { writer, index, .. } = tools;
    match action {
        Action::CreateGroup {
            deployment,
            deployment_uid,
            name,
            spec,
        } => objects::create_group(writer, index, deployment, deployment_uid, name, spec).await,
        Action::ScaleDeployment {
            deployment,
            deployment_uid,
            resource_version,
            replicas,
        } => objects::scale(writer, deployment, deployment_uid, resource_version, *replicas).await,
        Action::CreateRevision { deployment, .. } => {
            revisions::create(writer, index.deployment(deployment)?, action).await
        }
        Action::RenumberRevision {
            deployment,
            name,
            uid,
            number,
        } => revisions::renumber(writer, deployment, name, uid, *number).await,
        Action::DeleteRevision {
            deployment,
            name,
            uid,
        } => revisions::delete(writer, deployment, name, uid).await,
        Action::CreateInspectPod {
            deployment,
            name,
            key,
            trial,
            node,
        } => {
            let owner = index.deployment(deployment)?;
            let wanted = inspect::inspect_pod(owner, key, (trial.as_deref(), node), tools.settings);
            pods::create_inspect(writer, owner, name, wanted).await
        }
        other => Err(not_about(other, "a deployment")),
    }
}

/// Calls to worker pods go on by themselves: whether one was begun. Nothing for other actions.
fn begin_call(tools: &Tools<'_>, action: &Action) -> Option<Result<bool, EffectError>> {
    match action {
        Action::Form {
            group,
            group_uid,
            generation,
            lost,
            members,
            targets,
        } => {
            let forming = calls::Forming {
                group_uid,
                generation: *generation,
                lost,
                members,
                key: tools.keys.of_generation(group_uid, *generation),
            };
            Some(calls::form(
                tools.peers,
                &dialled(tools, group),
                &forming,
                targets,
            ))
        }
        Action::DrainGroup { group, leader } => {
            Some(calls::drain(tools.peers, &dialled(tools, group), leader))
        }
        _ => None,
    }
}

fn dialled<'a>(tools: &Tools<'a>, group: &Key) -> Dialled<'a> {
    let found = tools.index.group(group);
    Dialled {
        channels: tools.channels,
        transport: found
            .map(|group| group.spec.template.transport)
            .unwrap_or_default(),
    }
}

fn not_about(action: &Action, what: &str) -> EffectError {
    EffectError::Dropped(format!("{} is not about {what}", action.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(action: Action) -> Step {
        Step {
            action,
            reason: "Test",
            message: String::new(),
            event: EventKind::None,
        }
    }

    #[test]
    fn steps_of_a_group_stay_in_order_and_a_deployment_s_stand_alone() {
        let key = |name: &str| Key {
            namespace: "n".into(),
            name: name.into(),
        };
        let pod = |group: &str, index| {
            step(Action::CreatePod {
                group: key(group),
                name: format!("{group}-{index}-0"),
                index,
                attempt: 0,
            })
        };
        let service = |name: &str| {
            step(Action::ScaleDeployment {
                deployment: key(name),
                deployment_uid: "u".into(),
                resource_version: "1".into(),
                replicas: 1,
            })
        };
        let steps = vec![pod("a", 0), service("d"), pod("b", 0), pod("a", 1), service("d")];
        let chains = chains(&Index::default(), steps.clone());
        let lengths: Vec<_> = chains
            .iter()
            .map(|(subject, chain)| (subject.clone(), chain.len()))
            .collect();
        assert_eq!(
            lengths,
            [
                (Subject::Group(key("a")), 2),
                (Subject::Deployment(key("d")), 1),
                (Subject::Group(key("b")), 1),
                (Subject::Deployment(key("d")), 1),
            ]
        );
        assert_eq!(chains[0].1, [steps[0].clone(), steps[3].clone()]);
    }
}
