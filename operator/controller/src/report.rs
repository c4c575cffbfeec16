//! What the statuses say about effects that somebody else must make possible. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use llamero_api::deployment::{LlamaDeploymentStatus, condition, reason};
use llamero_core::{
    status::Reports,
    time::{Millis, to_time},
};

use crate::apply::{Failure, Subject, View, error::Remedy};

/// Adds refused effects (Pod Security, quota, an object of the same name) to the statuses of their group and deployment: nothing goes on
/// before a user or administrator acts, so the sentence must be where they look.
#[must_use]
pub fn with_failures(mut reports: Reports, view: &View, failures: &[Failure], now: Millis) -> Reports {
    for failure in failures.iter().filter(|failure| failure.remedy == Remedy::User) {
        if let Subject::Group(key) = &failure.subject
            && let Some(status) = reports.groups.get_mut(key)
        {
            status.message.clone_from(&failure.message);
        }
        if let Some(status) = view
            .deployment_of(&failure.subject)
            .and_then(|key| reports.deployments.get_mut(&key))
        {
            status.message.clone_from(&failure.message);
            degrade(status, &failure.message, now);
        }
    }
    reports
}

/// Sets the condition Degraded; the time of its last change stays when it was so already.
fn degrade(status: &mut LlamaDeploymentStatus, message: &str, now: Millis) {
    let generation = Some(status.observed_generation);
    let found = status
        .conditions
        .iter_mut()
        .find(|condition| condition.type_ == condition::DEGRADED);
    match found {
        Some(condition) => {
            if condition.status != "True" {
                condition.last_transition_time = to_time(now);
            }
            condition.status = "True".to_owned();
            condition.reason = reason::PODS_NOT_STARTING.to_owned();
            message.clone_into(&mut condition.message);
            condition.observed_generation = generation;
        }
        None => status.conditions.push(Condition {
            type_: condition::DEGRADED.to_owned(),
            status: "True".to_owned(),
            reason: reason::PODS_NOT_STARTING.to_owned(),
            message: message.to_owned(),
            last_transition_time: to_time(now),
            observed_generation: generation,
        }),
    }
}
