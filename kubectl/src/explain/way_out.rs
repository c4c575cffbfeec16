//! What to do about a reason.

use kube::ResourceExt as _;
use llamero_api::{LlamaDeployment, LlamaGroup, deployment::reason};

/// What to do, with the commands for it.
#[must_use]
pub fn way_out(object: &LlamaDeployment, group: Option<&LlamaGroup>, why: &str) -> String {
    let name = object.name_any();
    let namespace = object.namespace().unwrap_or_default();
    let here = format!("-n {namespace}");
    let group = group.map_or_else(|| name.clone(), |group| group.name_any());
    match why {
        reason::INSPECTING => format!(
            "wait; if it takes minutes, see kubectl get pods {here} -l llamero.dev/inspect,llamero.dev/deployment={name}"
        ),
        reason::SOURCE_UNREADABLE => {
            "correct spec.model.source, or what it names; it is read again every minute".to_owned()
        }
        reason::DOES_NOT_FIT => format!(
            "change what the sentence names; kubectl llamero plan {name} {here} shows what would fit"
        ),
        reason::POLICY_REFUSED => "use what the installation allows, or have it added to tenants of the chart's values".to_owned(),
        reason::NO_BACKEND => "use a worker image with this backend (spec.worker.image), or leave spec.accelerator out".to_owned(),
        reason::REFUSED => "allow it (quota, Pod Security, admission), or change the specification; it is tried again by itself".to_owned(),
        reason::DEFINITIONS_OUTDATED => "apply the CustomResourceDefinitions of this release: kubectl apply --server-side -k crds".to_owned(),
        reason::MODEL_NAME_TAKEN => format!("give spec.model.name another one, or ask for {namespace}/{}", object.model_name()),
        reason::FOREIGN_WRITER => "let nobody but the operator write spec.replicas while spec.autoscaling is there".to_owned(),
        reason::NO_ROOM | reason::DEADLINE_EXCEEDED | reason::PLACING => format!(
            "add nodes or free some; kubectl llamero plan {name} {here} shows what would fit now"
        ),
        reason::PROVISIONING => format!(
            "see why no nodes are added, in the events of the placeholders and in the autoscaler's log: kubectl describe pods {here} -l llamero.dev/placeholder-of={group}"
        ),
        reason::PODS_NOT_STARTING => format!(
            "correct what the pod lacks (image, pull secret, volume): kubectl describe pods {here} -l llamero.dev/group={group}"
        ),
        reason::RESTART_BUDGET_SPENT | reason::WORKER_UNUSABLE | reason::RANKS_DIFFER | reason::STALLED => format!(
            "read what the ranks said: kubectl logs {here} -l llamero.dev/group={group} --all-containers --prefix; \
             then correct it, or go back: kubectl llamero rollback {name} {here}"
        ),
        reason::REVISION_UNKNOWN => format!("choose a kept one: kubectl llamero rollback {name} {here}"),
        reason::PROGRESS_DEADLINE_EXCEEDED => format!(
            "it goes on being tried; to give up: kubectl llamero rollback {name} {here} --to previous"
        ),
        reason::PAUSED => "set spec.rollout.paused to false".to_owned(),
        reason::CANARY => "set spec.rollout.partition to 0 when the canary has proved itself".to_owned(),
        reason::SCALED_TO_ZERO => "ask it something, or set spec.replicas".to_owned(),
        reason::RECOVERING | reason::MOVING | reason::ROLLING_OUT | reason::SCALING_DOWN | reason::STARTING => format!(
            "nothing to do; watch it: kubectl llamero status {name} {here} -w"
        ),
        _ => format!("watch it: kubectl llamero status {name} {here} -w"),
    }
}
