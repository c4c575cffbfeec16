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
        let Some(key) = view.deployment_of(&failure.subject) else {
            continue;
        };
        if let Some(status) = reports.deployments.get_mut(&key) {
            status.message.clone_from(&failure.message);
            let before = view
                .deployment(&key)
                .ok()
                .and_then(|object| object.status.as_ref());
            degrade(status, before, &failure.message, now);
        }
    }
    reports
}

/// Sets the condition Degraded; the time of its last change stays when it was so before this pass.
fn degrade(
    status: &mut LlamaDeploymentStatus,
    before: Option<&LlamaDeploymentStatus>,
    message: &str,
    now: Millis,
) {
    let is_degraded =
        |condition: &&Condition| condition.type_ == condition::DEGRADED && condition.status == "True";
    let mut known = before
        .iter()
        .flat_map(|before| &before.conditions)
        .chain(&status.conditions);
    let since = known
        .find(is_degraded)
        .map(|condition| condition.last_transition_time.clone());
    let degraded = Condition {
        type_: condition::DEGRADED.to_owned(),
        status: "True".to_owned(),
        reason: reason::PODS_NOT_STARTING.to_owned(),
        message: message.to_owned(),
        last_transition_time: since.unwrap_or_else(|| to_time(now)),
        observed_generation: Some(status.observed_generation),
    };
    match status
        .conditions
        .iter_mut()
        .find(|condition| condition.type_ == condition::DEGRADED)
    {
        Some(condition) => *condition = degraded,
        None => status.conditions.push(degraded),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llamero_api::{LlamaDeployment, LlamaGroup, group::LlamaGroupStatus};
    use llamero_core::Key;
    use serde_json::json;

    use super::*;
    use crate::observe::Snapshot;

    fn key(name: &str) -> Key {
        Key {
            namespace: "n".to_owned(),
            name: name.to_owned(),
        }
    }

    /// `before`: status of the deployment as the last pass left it.
    fn setting(before: Option<LlamaDeploymentStatus>) -> (Reports, View) {
        let mut deployment: LlamaDeployment = serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
            "metadata": {"name": "d", "namespace": "n"},
            "spec": {"model": {"source": {}}, "parallelism": {"tensor": 1}},
        }))
        .unwrap();
        deployment.status = before;
        let group: LlamaGroup = serde_json::from_value(json!({
            "apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
            "metadata": {"name": "d-0", "namespace": "n"},
            "spec": {"deployment": "d", "revision": "r", "generation": 1, "members": [],
                "template": {"modelName": "m", "source": {}, "maxContextLength": 1, "tensor": 1,
                    "pipeline": 1, "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "1s"}},
        }))
        .unwrap();
        let reports = Reports {
            deployments: [(key("d"), LlamaDeploymentStatus::default())].into(),
            groups: [(key("d-0"), LlamaGroupStatus::default())].into(),
        };
        (
            reports,
            View::new(&Snapshot {
                deployments: vec![Arc::new(deployment)],
                groups: vec![Arc::new(group)],
                ..Snapshot::default()
            }),
        )
    }

    fn failure(remedy: Remedy) -> Failure {
        Failure {
            subject: Subject::Group(key("d-0")),
            action: "CreatePod",
            message: "violates PodSecurity".into(),
            remedy,
        }
    }

    #[test]
    fn a_refusal_is_said_where_people_look() {
        let (reports, view) = setting(None);
        let reports = with_failures(reports, &view, &[failure(Remedy::User)], 5_000);
        assert_eq!(reports.groups[&key("d-0")].message, "violates PodSecurity");
        let status = &reports.deployments[&key("d")];
        let condition = &status.conditions[0];
        assert_eq!(
            (condition.type_.as_str(), condition.status.as_str()),
            ("Degraded", "True")
        );
        assert_eq!(
            (condition.message.as_str(), status.message.as_str()),
            ("violates PodSecurity", "violates PodSecurity")
        );
        // Said again a pass later it keeps the time of its beginning.
        let (fresh, view) = setting(Some(status.clone()));
        let again = with_failures(fresh, &view, &[failure(Remedy::User)], 9_000);
        assert_eq!(
            again.deployments[&key("d")].conditions[0].last_transition_time,
            to_time(5_000)
        );
    }

    #[test]
    fn what_passes_by_itself_is_not_said() {
        let (reports, view) = setting(None);
        let same = with_failures(
            reports.clone(),
            &view,
            &[failure(Remedy::Retry), failure(Remedy::Decide)],
            5_000,
        );
        assert_eq!(same.deployments, reports.deployments);
    }
}
