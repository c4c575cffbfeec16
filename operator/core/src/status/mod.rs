//! What is reported: pure functions from what was observed and decided to the `status` of every object.
//!
//! | module | what it reports |
//! |---|---|
//! | [`group`] | phase, ranks, progress and last failure of a group |
//! | [`start`] | how long a group took until it served first |
//! | [`message`] | why a group is not further, in words |
//! | [`conditions`] | Accepted, Placed, Ready, Progressing, Degraded of a deployment |
//! | `progressing` | the condition of that name |
//! | `kstatus` | Reconciling and Stalled, for tools that know every kind by them |

pub mod conditions;
pub mod group;
mod kstatus;
pub mod message;
mod progressing;
pub mod start;

use std::collections::BTreeMap;

use llamero_api::{
    LlamaDeploymentStatus, LlamaGroupStatus, deployment::GroupSummary, group::GroupPhase, labels,
    quantity::human,
};

use crate::{
    groups::GroupView,
    observed::{Deployment, Observed},
    plan::{Acceptance, Key, Plan, Verdict},
    progress,
    time::Millis,
};

/// Statuses to write where they differ from what is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reports {
    /// Of deployments.
    pub deployments: BTreeMap<Key, LlamaDeploymentStatus>,
    /// Of groups.
    pub groups: BTreeMap<Key, LlamaGroupStatus>,
}

/// Reports on everything a plan has a verdict about.
#[must_use]
pub fn report(observed: &Observed, plan: &Plan, now: Millis) -> Reports {
    let mut reports = Reports::default();
    for deployment in &observed.deployments {
        if let Some(verdict) = plan.verdicts.get(&Key::of(&deployment.object.metadata)) {
            report_one(deployment, verdict, now, &mut reports);
        }
    }
    reports
}

/// Reports on one deployment and its groups.
pub(crate) fn report_one(deployment: &Deployment, verdict: &Verdict, now: Millis, reports: &mut Reports) {
    let key = Key::of(&deployment.object.metadata);
    let mut rows: Vec<Row<'_>> = deployment
        .groups
        .iter()
        .map(|group| {
            let view = GroupView::of(group, now);
            let missing = verdict.no_room.get(&view.key.name).map(String::as_str);
            let status = group::status(&view, &deployment.object, missing, now);
            Row { view, status }
        })
        .collect();
    rows.sort_by(|a, b| {
        (a.view.key.name.len(), &a.view.key.name).cmp(&(b.view.key.name.len(), &b.view.key.name))
    });
    let status = of_deployment(deployment, &key, verdict, &rows, now);
    reports.deployments.insert(key, status);
    reports
        .groups
        .extend(rows.into_iter().map(|row| (row.view.key, row.status)));
}

/// A group and its new status.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// What was observed.
    pub view: GroupView<'a>,
    /// What is reported.
    pub status: LlamaGroupStatus,
}

fn of_deployment(
    deployment: &Deployment,
    key: &Key,
    verdict: &Verdict,
    rows: &[Row<'_>],
    now: Millis,
) -> LlamaDeploymentStatus {
    let object = &deployment.object;
    let ready = count(rows, |row| row.status.ready);
    let sum = |of: fn(&LlamaGroupStatus) -> i64| {
        rows.iter()
            .map(|row| of(&row.status))
            .fold(0i64, i64::saturating_add)
    };
    let previous = object
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let rollout = progress::of(object, verdict, rows, now);
    let facts = conditions::Facts {
        deployment,
        verdict,
        rows,
        ready,
        overdue: progress::overdue(object, rollout.as_ref(), now),
    };
    let conditions = conditions::all(&facts, previous, now);
    LlamaDeploymentStatus {
        observed_generation: object.metadata.generation.unwrap_or(0),
        phase: phase(verdict, rows, ready).to_owned(),
        ready: format!("{ready}/{}", verdict.desired),
        loaded: pair(sum(|s| s.loaded_bytes), sum(|s| s.total_bytes)),
        model: object.model_name().to_owned(),
        message: conditions::headline(&conditions),
        replicas: count(rows, |_| true),
        ready_replicas: ready,
        desired_replicas: verdict.desired,
        selector: labels::leader_selector(&key.name),
        revision: verdict.revision.clone(),
        content_identity: identity(rows, &verdict.revision),
        plan: verdict.plan.clone(),
        checkpoint: verdict.checkpoint.clone(),
        autoscaling: verdict.autoscaling.clone(),
        rollout,
        groups: rows.iter().map(summary).collect(),
        conditions,
    }
}

/// What the weights of a revision are, where all of its groups agree.
fn identity(rows: &[Row<'_>], revision: &str) -> Option<String> {
    let mut told = rows
        .iter()
        .filter(|row| row.view.spec().revision == revision)
        .filter_map(|row| row.status.content_identity.as_ref());
    let first = told.next()?;
    told.all(|other| other == first).then(|| first.clone())
}

fn summary(row: &Row<'_>) -> GroupSummary {
    GroupSummary {
        name: row.view.key.name.clone(),
        revision: row.view.spec().revision.clone(),
        generation: row.view.spec().generation,
        phase: row.status.phase,
        ready: row.status.ready,
        loaded_bytes: row.status.loaded_bytes,
        total_bytes: row.status.total_bytes,
        last_failure: row.status.last_failure.clone(),
    }
}

/// The least advanced thing that is going on, in one word.
fn phase(verdict: &Verdict, rows: &[Row<'_>], ready: i32) -> &'static str {
    let wanted = || {
        rows.iter()
            .filter(|row| row.view.wanted())
            .map(|row| row.status.phase)
    };
    if rows.is_empty() {
        match verdict.acceptance {
            Acceptance::Inspecting(_) => return "Inspecting",
            Acceptance::Unreadable(_)
            | Acceptance::Refused(_)
            | Acceptance::NoBackend(_)
            | Acceptance::PolicyRefused(_)
            | Acceptance::NoRevision(_) => return "Refused",
            Acceptance::Accepted if verdict.desired == 0 => return "Idle",
            Acceptance::Accepted => {}
        }
    }
    if ready >= verdict.desired && verdict.desired > 0 && wanted().all(|phase| phase == GroupPhase::Serving) {
        return GroupPhase::Serving.as_str();
    }
    const WORST_FIRST: [GroupPhase; 7] = [
        GroupPhase::Failed,
        GroupPhase::Recovering,
        GroupPhase::Pending,
        GroupPhase::Placing,
        GroupPhase::Starting,
        GroupPhase::Loading,
        GroupPhase::Forming,
    ];
    match WORST_FIRST
        .into_iter()
        .find(|worst| wanted().any(|phase| phase == *worst))
    {
        Some(worst) => worst.as_str(),
        None if wanted().next().is_some() || rows.is_empty() => GroupPhase::Pending.as_str(),
        None => GroupPhase::Draining.as_str(),
    }
}

fn count(rows: &[Row<'_>], which: impl Fn(&Row<'_>) -> bool) -> i32 {
    i32::try_from(rows.iter().filter(|row| which(row)).count()).unwrap_or(i32::MAX)
}

/// Two amounts of bytes in the unit of the second: `1.2/4.0 GiB`.
#[must_use]
pub fn pair(loaded: i64, total: i64) -> String {
    const UNITS: [(&str, i64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    match UNITS.iter().find(|(_, scale)| total >= *scale) {
        Some((unit, scale)) => format!(
            "{:.1}/{:.1} {unit}",
            loaded as f64 / *scale as f64,
            total as f64 / *scale as f64
        ),
        None => format!("{loaded}/{}", human(total)),
    }
}
