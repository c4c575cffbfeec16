//! How long a group took until it served first, step by step.
//!
//! Everything is read from times that others keep: Kubernetes in whole seconds, each by the clock of whoever wrote it, and workers as durations of
//! their own. A step appears together with the phase that follows it, which is written anyway, and does not change within that phase: telling
//! these times costs no write.

use llamero_api::{
    LlamaDeployment,
    group::{GroupPhase, StartStep, StartStepName},
};

use crate::{
    groups::GroupView,
    observed::{PhaseTimes, Pod},
    time::{self, Millis},
};

/// The steps that are over in `phase`. Once the group has served they stay as they are.
#[must_use]
pub fn steps(
    view: &GroupView<'_>,
    phase: GroupPhase,
    deployment: &LlamaDeployment,
    now: Millis,
) -> Vec<StartStep> {
    let before = view.group.object.status.as_ref();
    let known = before.map(|status| status.start.as_slice()).unwrap_or_default();
    let served = known.iter().any(|step| step.step == StartStepName::Serving);
    // It served before anybody wrote this down, or is not on its way.
    let elsewhere = matches!(view.last_phase(), GroupPhase::Serving | GroupPhase::Recovering);
    let created = view.group.object.metadata.creation_timestamp.as_ref();
    let (Some(reached), Some(created), false) = (reached(phase), created, served || elsewhere) else {
        return known.to_vec();
    };
    let facts = Facts::of(view, time::millis(created));
    let sized = known
        .iter()
        .find(|step| step.step == StartStepName::Sized)
        .cloned()
        .or_else(|| sized(deployment, facts.created));
    let steps = [
        (0, sized),
        (1, facts.placed()),
        (2, facts.scheduled()),
        (3, facts.started()),
        (3, facts.checked()),
        (4, facts.loaded()),
        (5, facts.formed()),
        (5, Some(facts.serving(now))),
    ];
    steps
        .into_iter()
        .filter(|(from, _)| *from <= reached)
        .filter_map(|(_, step)| step)
        .collect()
}

/// How far the phase is on the way to serving.
const fn reached(phase: GroupPhase) -> Option<u8> {
    match phase {
        GroupPhase::Pending => Some(0),
        GroupPhase::Placing => Some(1),
        GroupPhase::Starting => Some(2),
        GroupPhase::Loading => Some(3),
        GroupPhase::Forming => Some(4),
        GroupPhase::Serving => Some(5),
        GroupPhase::Recovering | GroupPhase::Draining | GroupPhase::Failed => None,
    }
}

/// What the headers took, for the groups that a deployment began with: nobody knows of a change when it was made.
fn sized(deployment: &LlamaDeployment, group_created: Millis) -> Option<StartStep> {
    let unchanged = deployment.metadata.generation == Some(1);
    let begun = deployment
        .metadata
        .creation_timestamp
        .as_ref()
        .filter(|_| unchanged)?;
    let checkpoint = deployment.status.as_ref()?.checkpoint.as_ref()?;
    let (begun, inspected) = (time::millis(begun), time::millis(&checkpoint.inspected_at));
    let is_before = checkpoint.summary.is_some() && (begun..=group_created).contains(&inspected);
    is_before.then(|| until(StartStepName::Sized, begun, inspected))
}

/// What is known of the members.
struct Facts<'a> {
    created: Millis,
    placed: Option<Millis>,
    scheduled: Option<Millis>,
    started: Option<Millis>,
    pods: Vec<&'a Pod>,
}

impl<'a> Facts<'a> {
    fn of(view: &'a GroupView<'_>, created: Millis) -> Self {
        let pods: Vec<&Pod> = view.members.iter().filter_map(|member| member.pod).collect();
        let placed = view.members.iter().map(|member| member.member.placed_at.as_ref());
        let last =
            |times: Vec<Option<Millis>>| times.into_iter().collect::<Option<Vec<_>>>()?.into_iter().max();
        Self {
            created,
            placed: last(placed.map(|at| at.map(time::millis)).collect()),
            scheduled: last(pods.iter().map(|pod| pod.scheduled_at).collect()),
            started: last(pods.iter().map(|pod| pod.started_at).collect()),
            pods,
        }
    }

    fn placed(&self) -> Option<StartStep> {
        Some(until(StartStepName::Placed, self.created, self.placed?))
    }

    fn scheduled(&self) -> Option<StartStep> {
        let begun = self.placed.unwrap_or(self.created);
        Some(until(StartStepName::Scheduled, begun, self.scheduled?))
    }

    fn started(&self) -> Option<StartStep> {
        Some(until(StartStepName::Started, self.scheduled?, self.started?))
    }

    fn checked(&self) -> Option<StartStep> {
        let slowest = self.times().filter_map(|times| times.preflight).max()?;
        Some(took(StartStepName::Checked, slowest))
    }

    fn loaded(&self) -> Option<StartStep> {
        let slowest = self.times().filter_map(|times| times.loading).max()?;
        let ranks = self.reports().map(|rank| rank.loaded_bytes);
        let bytes = ranks.fold(0i64, i64::saturating_add);
        Some(StartStep {
            bytes: Some(bytes),
            rate: (slowest > 0 && bytes > 0)
                .then(|| format!("{:.2} GB/s", bytes as f64 / 1e6 / slowest as f64)),
            ..took(StartStepName::Loaded, slowest)
        })
    }

    /// Of the rank that had its weights last, which is the one that waited least for the others. What followers went through last is often not
    /// heard: once a group serves, its leader speaks for all.
    fn formed(&self) -> Option<StartStep> {
        let both = |times: &PhaseTimes| Some(times.connecting?.saturating_add(times.warming?));
        let least = self.times().filter_map(both).min()?;
        Some(took(StartStepName::Formed, least))
    }

    fn serving(&self, now: Millis) -> StartStep {
        until(StartStepName::Serving, self.created, now)
    }

    fn reports(&self) -> impl Iterator<Item = &'a crate::observed::Rank> {
        let reports = self.pods.iter().filter_map(|pod| pod.report.as_ref());
        reports.flat_map(|report| &report.ranks)
    }

    fn times(&self) -> impl Iterator<Item = &'a PhaseTimes> {
        self.reports().map(|rank| &rank.times)
    }
}

/// A step that was over at a time; none takes less than nothing, however much clocks differ.
fn until(step: StartStepName, begun: Millis, over: Millis) -> StartStep {
    StartStep {
        at: Some(time::to_time(over)),
        ..took(step, over.saturating_sub(begun))
    }
}

fn took(step: StartStepName, millis: Millis) -> StartStep {
    StartStep {
        step,
        millis: millis.max(0),
        at: None,
        bytes: None,
        rate: None,
    }
}
