//! What would be decided about a deployment, without doing it: the same decisions, taken over a copy of what was observed.
//!
//! ```text
//! Observed --decide--> revisions kept, groups made, nodes reserved --written into the copy--> Observed --decide--> …  until nothing of that is left
//! ```
//! Pods are not played: a rollout is foretold as far as its first groups, those for which room is looked for now.

pub mod alternatives;

use std::{collections::BTreeMap, sync::Arc};

use llamero_api::{
    LlamaGroup,
    deployment::PlanStatus,
    group::{Intent, LlamaGroupSpec},
};

use crate::{
    decide,
    observed::{Deployment, Group, Observed, Revision},
    plan::{Acceptance, Action, Key, Plan, Verdict},
    revision, sizing,
    time::Millis,
};

/// Passes until everything stands still: one keeps the revision, one makes the groups, one reserves nodes.
const PASSES: usize = 8;

/// What would be decided about a deployment.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Whether its specification can be served.
    pub acceptance: Acceptance,
    /// What sizing found; absent where nobody has read the checkpoint's headers. Groups are then placed by what the specification itself
    /// asks for, and nobody knows whether the model fits.
    pub sizing: Option<PlanStatus>,
    /// Groups that are wanted.
    pub wanted: i32,
    /// Its groups by name.
    pub groups: Vec<ForecastGroup>,
    /// Why no group goes although the new revision has no room beside the old one.
    pub trial: Option<String>,
    /// Another, older deployment that the model name belongs to.
    pub name_owner: Option<Key>,
    /// Why a step was refused the last time it was tried.
    pub refusal: Option<String>,
}

/// A group, as it would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForecastGroup {
    /// Its name.
    pub name: String,
    /// Digest of its revision.
    pub revision: String,
    /// It is not there yet.
    pub new: bool,
    /// It would go.
    pub goes: bool,
    /// Nodes of its pods by index; absent where there is no room.
    pub nodes: Vec<Option<String>>,
    /// What is missing for its placement.
    pub missing: Option<String>,
}

impl ForecastGroup {
    /// Whether all its pods have nodes.
    #[must_use]
    pub fn placed(&self) -> bool {
        self.nodes.iter().all(Option::is_some)
    }
}

/// What would be decided about the deployments with these keys, all of them at once; nothing about those that are not there.
#[must_use]
pub fn forecasts(mut observed: Observed, keys: &[Key], now: Millis) -> BTreeMap<Key, Forecast> {
    let known: BTreeMap<&Key, Vec<String>> = keys
        .iter()
        .filter_map(|key| Some((key, group_specs(&observed, key)?.into_keys().collect())))
        .collect();
    for key in keys {
        pretend(&mut observed, key);
    }
    let mut plan = Plan::default();
    for _ in 0..PASSES {
        plan = decide(&observed, now);
        let mut changed = false;
        for step in &plan.steps {
            changed |= play(&mut observed, &step.action);
        }
        if !changed {
            break;
        }
    }
    let told = known.into_iter().filter_map(|(key, known)| {
        let verdict = plan.verdicts.remove(key)?;
        let groups = group_specs(&observed, key)?
            .into_iter()
            .map(|(name, spec)| shown(&known, &verdict, name, spec));
        let groups = groups.collect();
        Some((key.clone(), told(verdict, groups)))
    });
    told.collect()
}

fn told(verdict: Verdict, groups: Vec<ForecastGroup>) -> Forecast {
    Forecast {
        acceptance: verdict.acceptance,
        sizing: verdict.plan,
        wanted: verdict.desired,
        groups,
        trial: verdict.trial,
        name_owner: verdict.name_owner,
        refusal: verdict.refusal,
    }
}

fn shown(known: &[String], verdict: &Verdict, name: String, spec: &LlamaGroupSpec) -> ForecastGroup {
    ForecastGroup {
        new: !known.contains(&name),
        goes: spec.intent == Intent::Drain,
        revision: spec.revision.clone(),
        nodes: spec.members.iter().map(|member| member.node.clone()).collect(),
        missing: verdict.no_room.get(&name).cloned(),
        name,
    }
}

fn group_specs<'a>(observed: &'a Observed, key: &Key) -> Option<BTreeMap<String, &'a LlamaGroupSpec>> {
    let mut deployments = observed.deployments.iter();
    let deployment = deployments.find(|d| Key::of(&d.object.metadata) == *key)?;
    let groups = deployment.groups.iter();
    Some(
        groups
            .map(|group| (Key::of(&group.object.metadata).name, &group.object.spec))
            .collect(),
    )
}

fn find<'a>(observed: &'a mut Observed, key: &Key) -> Option<&'a mut Deployment> {
    let mut deployments = observed.deployments.iter_mut();
    deployments.find(|d| Key::of(&d.object.metadata) == *key)
}

/// Where nobody has read the checkpoint's headers, groups are placed by what the specification itself asks for: a kept revision stands in for
/// the one that sizing would give.
fn pretend(observed: &mut Observed, key: &Key) {
    let settings = observed.settings.clone();
    let Some(deployment) = find(observed, key) else {
        return;
    };
    let object = &deployment.object;
    let summary = known_summary(deployment);
    if summary || object.spec.rollout.revision.is_some() {
        return;
    }
    let plan = unsized_plan(deployment);
    let digest = revision::digest(&object.spec, object.model_name());
    let kept = Revision {
        name: digest.clone(),
        uid: digest.clone(),
        number: i64::MAX,
        template: Some(revision::template(object, &plan, None, &settings)),
        digest: digest.clone(),
    };
    deployment.revisions.retain(|revision| revision.digest != digest);
    deployment.revisions.push(kept);
    Arc::make_mut(&mut deployment.object).spec.rollout.revision = Some(digest);
}

fn known_summary(deployment: &Deployment) -> bool {
    let object = &deployment.object;
    let checkpoint = object
        .status
        .as_ref()
        .and_then(|status| status.checkpoint.as_ref());
    checkpoint.is_some_and(|checkpoint| checkpoint.key == revision::inspect_key(&object.spec))
}

fn unsized_plan(deployment: &Deployment) -> PlanStatus {
    let spec = &deployment.object.spec;
    PlanStatus {
        ranks: spec.ranks(),
        nodes: spec.pods(),
        ranks_per_pod: spec.ranks_per_pod(),
        max_context_length: spec.model.max_context_length.unwrap_or_default(),
        ..PlanStatus::default()
    }
}

/// Writes into the copy what a step would write that decides about rooms; returns whether it did.
fn play(observed: &mut Observed, action: &Action) -> bool {
    match action {
        Action::CreateRevision {
            deployment,
            name,
            digest,
            number,
            template,
            ..
        } => find(observed, deployment).is_some_and(|deployment| {
            deployment.revisions.push(Revision {
                name: name.clone(),
                uid: name.clone(),
                digest: digest.clone(),
                number: *number,
                template: Some((**template).clone()),
            });
            true
        }),
        Action::CreateGroup {
            deployment: key,
            name,
            spec,
            ..
        } => find(observed, key).is_some_and(|deployment| {
            deployment.groups.push(made(key, name, spec));
            true
        }),
        Action::WriteGroup { group, spec, .. } => write(observed, group, spec),
        _ => false,
    }
}

fn made(deployment: &Key, name: &str, spec: &LlamaGroupSpec) -> Group {
    let mut object = LlamaGroup::new(name, spec.clone());
    object.metadata.namespace = Some(deployment.namespace.clone());
    object.metadata.uid = Some(name.to_owned());
    Group {
        object: Arc::new(object),
        writing: None,
        pods: Vec::new(),
        placeholders: Vec::new(),
        budget: None,
        refusals: Vec::new(),
        load: None,
    }
}

/// Only what reserves nodes or lets a group go: what became of pods cannot be foretold.
fn write(observed: &mut Observed, key: &Key, spec: &LlamaGroupSpec) -> bool {
    let mut groups = observed.deployments.iter_mut().flat_map(|d| &mut d.groups);
    let Some(group) = groups.find(|group| Key::of(&group.object.metadata) == *key) else {
        return false;
    };
    let nodes = |spec: &LlamaGroupSpec| spec.members.iter().filter(|member| member.node.is_some()).count();
    let before = &group.object.spec;
    if nodes(spec) <= nodes(before) && spec.intent == before.intent {
        return false;
    }
    Arc::make_mut(&mut group.object).spec = spec.clone();
    true
}

/// What sizing says where the deployment's checkpoint is known.
fn sized(observed: &Observed, deployment: &Deployment) -> PlanStatus {
    let status = deployment.object.status.as_ref();
    let summary = status
        .and_then(|status| status.checkpoint.as_ref())
        .and_then(|checkpoint| checkpoint.summary.as_ref());
    match summary {
        Some(summary) => sizing::plan(&deployment.object.spec, summary, &observed.nodes),
        None => PlanStatus {
            fits: true,
            ..unsized_plan(deployment)
        },
    }
}
