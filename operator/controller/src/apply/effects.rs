//! Runs a plan's steps: one chain a group, chains side by side.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use llamero_core::{Action, Step, plan::EventKind};
use tracing::{debug, info, warn};

use super::{
    EffectError, Holds, Subject, View, Writer,
    calls::{self, Channels},
    error::Remedy,
    objects, pods,
};
use crate::{events::Events, metrics::Metrics};

/// Chains that run at the same time.
const CONCURRENCY: usize = 8;

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps that failed.
    pub failures: Vec<Failure>,
    /// Steps that were applied.
    pub applied: usize,
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it was about.
    pub subject: Subject,
    /// Name of the action.
    pub action: &'static str,
    /// What went wrong.
    pub message: String,
    /// Who must act.
    pub remedy: Remedy,
}

/// Everything that effects need.
pub struct Tools<'a> {
    /// Fenced access to the API server.
    pub writer: &'a Writer,
    /// Objects of this pass.
    pub view: &'a View,
    /// Connections to worker pods.
    pub channels: &'a Channels,
    /// Where Events go.
    pub events: &'a Events,
    /// Refused steps that wait.
    pub holds: &'a Holds,
    /// Counters.
    pub metrics: &'a Metrics,
    /// Image of inspect pods whose deployment names none.
    pub worker_image: &'a str,
}

/// Runs all steps. Steps of one group run in order, and the first that fails ends them for this pass; other groups go on.
pub async fn apply(tools: &Tools<'_>, steps: &[Step]) -> Outcome {
    let mut runs = Vec::new();
    for (subject, chain) in chains(tools.view, steps) {
        runs.push(run_chain(tools, subject, chain));
    }
    let outcomes: Vec<Outcome> = futures::stream::iter(runs).buffered(CONCURRENCY).collect().await;
    let mut all = Outcome::default();
    for outcome in outcomes {
        all.applied += outcome.applied;
        all.failures.extend(outcome.failures);
    }
    all
}

/// Steps by group in their order; a step about a deployment is a chain of its own.
fn chains<'a>(view: &View, steps: &'a [Step]) -> Vec<(Subject, Vec<&'a Step>)> {
    let mut chains: Vec<(Subject, Vec<&Step>)> = Vec::new();
    let mut of_group: BTreeMap<Subject, usize> = BTreeMap::new();
    for step in steps {
        let subject = view.subject(&step.action);
        match of_group.get(&subject) {
            Some(&index) => chains[index].1.push(step),
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

async fn run_chain(tools: &Tools<'_>, subject: Subject, steps: Vec<&Step>) -> Outcome {
    let mut outcome = Outcome::default();
    for step in steps {
        let action = action_name(&step.action);
        if let Some(failure) = tools.holds.held(&subject, action, &step.action) {
            outcome.failures.push(failure);
            break;
        }
        match run(tools, &step.action).await {
            Ok(()) => {
                outcome.applied += 1;
                tools.holds.release(&subject, action);
                tools.metrics.effect(action, "ok");
                info!(%subject, action, reason = step.reason, "{}", step.message);
                if step.event != EventKind::None {
                    let warning = step.event == EventKind::Warning;
                    tools
                        .events
                        .publish(tools.view, &subject, warning, step.reason, action, &step.message);
                }
            }
            Err(error) => {
                tools.metrics.effect(action, error.class());
                let failure = Failure {
                    subject,
                    action,
                    message: error.to_string(),
                    remedy: error.remedy(),
                };
                refused(tools, &step.action, &failure);
                outcome.failures.push(failure);
                break;
            }
        }
    }
    outcome
}

/// Says what went wrong to whom it concerns.
fn refused(tools: &Tools<'_>, action: &Action, failure: &Failure) {
    let Failure {
        subject,
        action: kind,
        message,
        remedy,
    } = failure;
    match remedy {
        Remedy::Decide => debug!(%subject, action = kind, "dropped: {message}"),
        Remedy::Retry => warn!(%subject, action = kind, "failed, to be tried again: {message}"),
        Remedy::User => {
            warn!(%subject, action = kind, "refused: {message}");
            tools.holds.refuse(action, failure);
            tools
                .events
                .publish(tools.view, subject, true, "Refused", kind, message);
        }
    }
}

async fn run(tools: &Tools<'_>, action: &Action) -> Result<(), EffectError> {
    let Tools {
        writer,
        view,
        channels,
        ..
    } = tools;
    match action {
        Action::CreateGroup {
            deployment,
            deployment_uid,
            name,
            spec,
        } => objects::create_group(writer, view, deployment, deployment_uid, name, spec).await,
        Action::WriteGroup {
            group,
            resource_version,
            spec,
            confirm,
        } => objects::write_group(writer, view, group, resource_version, spec, confirm).await,
        Action::CreatePod {
            group,
            name,
            index,
            attempt,
        } => pods::create_member(writer, view, group, name, *index, *attempt).await,
        Action::Ungate { pod, node, .. } => pods::ungate(writer, view, pod, node).await,
        Action::DeletePod {
            pod, grace_seconds, ..
        } => pods::delete(writer, pod, *grace_seconds).await,
        Action::Form {
            group_uid,
            generation,
            members,
            targets,
            ..
        } => calls::form(writer, channels, group_uid, *generation, members, targets).await,
        Action::DrainGroup { leader, .. } => calls::drain(writer, channels, leader).await,
        Action::DeleteGroup { group, uid } => objects::delete_group(writer, group, uid).await,
        Action::ApplyService {
            deployment,
            deployment_uid,
        } => objects::apply_service(writer, view, deployment, deployment_uid).await,
        Action::ApplyPdb {
            group,
            group_uid,
            min_available,
        } => objects::apply_budget(writer, view, group, group_uid, *min_available).await,
        Action::CreateInspectPod {
            deployment,
            name,
            key,
        } => pods::create_inspect(writer, view, deployment, name, key, tools.worker_image).await,
    }
}

fn action_name(action: &Action) -> &'static str {
    match action {
        Action::CreateGroup { .. } => "CreateGroup",
        Action::WriteGroup { .. } => "WriteGroup",
        Action::CreatePod { .. } => "CreatePod",
        Action::Ungate { .. } => "Ungate",
        Action::DeletePod { .. } => "DeletePod",
        Action::Form { .. } => "Form",
        Action::DrainGroup { .. } => "DrainGroup",
        Action::DeleteGroup { .. } => "DeleteGroup",
        Action::ApplyService { .. } => "ApplyService",
        Action::ApplyPdb { .. } => "ApplyPdb",
        Action::CreateInspectPod { .. } => "CreateInspectPod",
    }
}

#[cfg(test)]
mod tests {
    use llamero_core::Key;

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
            step(Action::ApplyService {
                deployment: key(name),
                deployment_uid: "u".into(),
            })
        };
        let steps = [pod("a", 0), service("d"), pod("b", 0), pod("a", 1), service("d")];
        let chains = chains(&View::default(), &steps);
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
        assert_eq!(chains[0].1, [&steps[0], &steps[3]]);
    }
}
