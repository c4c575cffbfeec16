//! What would fit where a deployment does not: other splits of the same model, and fewer groups.

use std::collections::BTreeSet;

use llamero_api::{LlamaDeploymentSpec, deployment::Accelerator, group::Intent};

use crate::{
    backends,
    observed::{Deployment, Observed},
    placement::{Ledger, Native, PlacementRequest, Placer as _},
    plan::Key,
    resources, revision,
    volumes::Mounts,
};

use super::sized;

/// Most alternatives that are told.
const MOST: usize = 4;
/// Splits that are looked at where nobody knows which ones the checkpoint allows.
const USUAL_SPLITS: [i64; 6] = [1, 2, 4, 8, 16, 32];

/// Another specification that has room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// `parallelism.tensor`.
    pub tensor: i32,
    /// `accelerator.perNode`; absent without an accelerator.
    pub per_node: Option<i32>,
    /// `model.maxContextLength`, where a shorter one makes it fit.
    pub max_context_length: Option<i64>,
    /// Groups that have room, at most as many as are wanted.
    pub groups: i32,
}

/// Alternatives to a deployment's specification, those that change least first. The room that its own groups hold counts as taken only
/// for those that have all their nodes.
#[must_use]
pub fn alternatives(observed: &Observed, key: &Key) -> Vec<Alternative> {
    let mut cluster = observed.clone();
    let mut of_key = cluster.deployments.iter_mut();
    let Some(deployment) = of_key.find(|d| Key::of(&d.object.metadata) == *key) else {
        return Vec::new();
    };
    deployment.groups.retain(|group| {
        let spec = &group.object.spec;
        spec.intent == Intent::Run && spec.members.iter().all(|member| member.node.is_some())
    });
    let deployment = deployment.clone();
    let there = i32::try_from(deployment.groups.len()).unwrap_or(i32::MAX);
    let wanted = deployment.object.spec.replicas.saturating_sub(there).max(1);
    let mut found: Vec<(u8, Alternative)> = Vec::new();
    for spec in variants(&deployment) {
        if let Some(alternative) = tried(&cluster, &deployment, &spec, wanted) {
            let changes = distance(&deployment.object.spec, &spec);
            found.push((changes, alternative));
        }
    }
    let asked = deployment.object.spec.parallelism.tensor;
    found.sort_by_key(|(changes, one)| (*changes, -one.groups, one.tensor.abs_diff(asked)));
    // A shorter context is worth telling only where it gives room to a split that has none with the whole one.
    let split = |one: &Alternative| (one.tensor, one.per_node);
    let mut splits = BTreeSet::new();
    found.retain(|(_, one)| splits.insert(split(one)));
    found
        .into_iter()
        .map(|(_, alternative)| alternative)
        .take(MOST)
        .collect()
}

/// How many groups of this specification have room now, if any has.
fn tried(
    cluster: &Observed,
    deployment: &Deployment,
    spec: &LlamaDeploymentSpec,
    wanted: i32,
) -> Option<Alternative> {
    let mut changed = deployment.clone();
    let mut object = (*deployment.object).clone();
    object.spec = spec.clone();
    changed.object = object.into();
    let plan = sized(cluster, &changed);
    if !plan.fits {
        return None;
    }
    let template = revision::template(&changed.object, &plan, None, &cluster.settings);
    let class = spec.worker.priority_class_name.as_ref();
    let priority = class.map_or(cluster.default_priority, |class| {
        cluster.priority_classes.get(class).copied().unwrap_or_default()
    });
    let request = PlacementRequest {
        amounts: resources::of_template(&template),
        indices: (0..template.pods()).collect(),
        template: &template,
        priority,
        occupied: Vec::new(),
        avoid: BTreeSet::new(),
        successors: false,
        volumes: Mounts::of(&changed).needs(&template, None),
    };
    let mut ledger = Ledger::of(cluster);
    let mut groups = 0;
    while groups < wanted {
        let Ok(assignments) = Native.place(&ledger, &request) else {
            break;
        };
        for assignment in &assignments {
            ledger.reserve(&assignment.node, &request.amounts);
        }
        groups += 1;
    }
    let shorter = spec.model.max_context_length != deployment.object.spec.model.max_context_length;
    (groups > 0).then(|| Alternative {
        tensor: spec.parallelism.tensor,
        per_node: spec.accelerator.as_ref().map(|accelerator| accelerator.per_node),
        max_context_length: spec.model.max_context_length.filter(|_| shorter),
        groups,
    })
}

/// The specification itself and its neighbours: each usable split, each number of ranks on a node that divides it, and half and a quarter of
/// the context.
fn variants(deployment: &Deployment) -> Vec<LlamaDeploymentSpec> {
    let spec = &deployment.object.spec;
    let status = deployment.object.status.as_ref();
    let summary = status
        .and_then(|status| status.checkpoint.as_ref())
        .and_then(|checkpoint| checkpoint.summary.as_ref());
    let splits = match summary {
        Some(summary) => summary.plans.iter().map(|shard| shard.tensor).collect(),
        None => USUAL_SPLITS.to_vec(),
    };
    let context = spec
        .model
        .max_context_length
        .or(summary.map(|summary| summary.max_position_embeddings));
    let mut contexts = vec![spec.model.max_context_length];
    contexts.extend([2, 4].map(|part| context.map(|tokens| (tokens / part).max(16))));
    let mut variants = Vec::new();
    for tensor in splits.iter().filter_map(|split| i32::try_from(*split).ok()) {
        for accelerator in accelerators(spec.accelerator.as_ref(), (tensor, spec.parallelism.pipeline)) {
            for context in &contexts {
                let mut variant = spec.clone();
                variant.parallelism.tensor = tensor;
                variant.accelerator.clone_from(&accelerator);
                variant.model.max_context_length = *context;
                if summary.is_none_or(|summary| backends::check(&variant, summary).is_ok()) {
                    variants.push(variant);
                }
            }
        }
    }
    variants
}

/// The accelerator with each number of ranks on a node that the split allows: a part of a stage, or whole stages.
fn accelerators(
    accelerator: Option<&Accelerator>,
    (tensor, pipeline): (i32, i32),
) -> Vec<Option<Accelerator>> {
    let Some(accelerator) = accelerator else {
        return vec![None];
    };
    let counts = [1, 2, 4, 8, accelerator.per_node];
    let usable: BTreeSet<i32> = counts
        .into_iter()
        .filter(|count| {
            let is_part = tensor % count.max(&1) == 0;
            let is_whole = count % tensor.max(1) == 0 && count / tensor.max(1) <= pipeline;
            is_part || is_whole
        })
        .collect();
    usable
        .into_iter()
        .map(|per_node| {
            Some(Accelerator {
                per_node,
                ..accelerator.clone()
            })
        })
        .collect()
}

/// How much of what the user asked for is different.
fn distance(asked: &LlamaDeploymentSpec, variant: &LlamaDeploymentSpec) -> u8 {
    let per_node = |spec: &LlamaDeploymentSpec| spec.accelerator.as_ref().map(|a| a.per_node);
    u8::from(asked.model.max_context_length != variant.model.max_context_length) * 4
        + u8::from(asked.parallelism != variant.parallelism) * 2
        + u8::from(per_node(asked) != per_node(variant))
}
