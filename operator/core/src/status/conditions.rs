//! Accepted, Placed, Ready, Progressing, Degraded and their likes: reason and a message that a human can act on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use llamero_api::{
    LlamaDeploymentSpec,
    deployment::{condition, reason},
    group::{GroupPhase, GroupTemplate, RankPhase},
};

use super::{Row, kstatus, progressing::progressing};
use crate::{
    groups::{MemberView, losses},
    observed::Deployment,
    plan::{Acceptance, Verdict},
    refusals,
    time::{self, Millis},
};

/// What conditions are made from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What was observed.
    pub deployment: &'a Deployment,
    /// What was decided.
    pub verdict: &'a Verdict,
    /// Its groups.
    pub rows: &'a [Row<'a>],
    /// Groups that serve.
    pub ready: i32,
    /// The rollout got no further within its deadline.
    pub overdue: bool,
}

/// Status, reason and message of a condition.
#[derive(Clone, Debug)]
pub(super) struct Finding(
    pub(super) &'static str,
    pub(super) &'static str,
    pub(super) String,
);

pub(super) fn yes(reason: &'static str, message: impl Into<String>) -> Finding {
    Finding("True", reason, message.into())
}

pub(super) fn no(reason: &'static str, message: impl Into<String>) -> Finding {
    Finding("False", reason, message.into())
}

/// All conditions; the time of a transition is kept while the status of a condition stays.
#[must_use]
pub fn all(facts: &Facts<'_>, previous: &[Condition], now: Millis) -> Vec<Condition> {
    let generation = facts.deployment.object.metadata.generation;
    let (ready, progressing) = (ready(facts), progressing(facts));
    let (reconciling, stalled) = kstatus::of(&ready, &progressing);
    [
        (condition::ACCEPTED, accepted(facts)),
        (condition::PLACED, placed(facts)),
        (condition::READY, ready),
        (condition::PROGRESSING, progressing),
        (condition::RECONCILING, reconciling),
        (condition::STALLED, stalled),
        (condition::DEGRADED, degraded(facts)),
        (condition::ROUTABLE, routable(facts)),
        (condition::SCALABLE, scalable(facts)),
    ]
    .into_iter()
    .chain(insecure_links(facts).map(|finding| (condition::INSECURE_LINKS, finding)))
    .chain(unpinned(facts).map(|finding| (condition::UNPINNED, finding)))
    .map(|(type_, Finding(status, reason, message))| {
        let kept = previous.iter().find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            // The API server takes 32768 characters.
            message: message.chars().take(4096).collect(),
            observed_generation: generation,
            last_transition_time: kept.map_or_else(
                || time::to_time(now),
                |c| time::not_ahead(&c.last_transition_time, now),
            ),
        }
    })
    .collect()
}

/// What a human should read first.
#[must_use]
pub fn headline(conditions: &[Condition]) -> String {
    const ORDER: [(&str, &str); 8] = [
        (condition::ACCEPTED, "False"),
        (condition::DEGRADED, "True"),
        (condition::STALLED, "True"),
        (condition::PLACED, "False"),
        (condition::READY, "False"),
        (condition::PROGRESSING, "True"),
        (condition::ROUTABLE, "False"),
        (condition::SCALABLE, "False"),
    ];
    ORDER
        .iter()
        .find_map(|(type_, status)| {
            conditions
                .iter()
                .find(|c| c.type_ == *type_ && c.status == *status && !c.message.is_empty())
        })
        .map(|c| c.message.clone())
        .unwrap_or_default()
}

fn accepted(facts: &Facts<'_>) -> Finding {
    match &facts.verdict.acceptance {
        Acceptance::Accepted if facts.deployment.object.spec.rollout.revision.is_some() => yes(
            reason::AS_WANTED,
            format!(
                "rollout.revision keeps all groups at {}; remove it to follow the specification again",
                facts.verdict.revision
            ),
        ),
        Acceptance::Accepted if facts.verdict.outgrown.is_some() => {
            let why = facts.verdict.outgrown.as_deref().unwrap_or_default();
            yes(
                reason::AS_WANTED,
                format!("it is served as it was accepted before; looked at anew it would be refused: {why}"),
            )
        }
        Acceptance::Accepted => {
            let plan = facts.verdict.plan.as_ref();
            yes(
                reason::AS_WANTED,
                plan.map(|plan| plan.message.clone()).unwrap_or_default(),
            )
        }
        Acceptance::Inspecting(waiting) if waiting.is_empty() => Finding(
            "Unknown",
            reason::INSPECTING,
            "reading the checkpoint's headers".to_owned(),
        ),
        Acceptance::Inspecting(waiting) => Finding(
            "Unknown",
            reason::INSPECTING,
            format!("the pod that reads the checkpoint's headers does not start: {waiting}"),
        ),
        Acceptance::Unreadable(error) => no(reason::SOURCE_UNREADABLE, error.clone()),
        Acceptance::Refused(why) => no(reason::DOES_NOT_FIT, why.clone()),
        Acceptance::NoBackend(why) => no(reason::NO_BACKEND, why.clone()),
        Acceptance::PolicyRefused(why) => no(reason::POLICY_REFUSED, why.clone()),
        Acceptance::NoRevision(why) => no(reason::REVISION_UNKNOWN, why.clone()),
    }
}

pub(super) fn wanted<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = &'a Row<'a>> {
    facts.rows.iter().filter(|row| row.view.wanted())
}

fn placed(facts: &Facts<'_>) -> Finding {
    if facts.verdict.desired == 0 {
        return yes(reason::SCALED_TO_ZERO, "no group is wanted");
    }
    if let Some((group, missing)) = facts.verdict.no_room.iter().next() {
        let why = match facts.verdict.provisioning.contains(group) {
            true => reason::PROVISIONING,
            false => reason::NO_ROOM,
        };
        let mut rows = facts.rows.iter().filter(|row| row.view.key.name == *group);
        let refusal = rows.find_map(|row| refusals::latest(&row.view.group.refusals));
        return no(
            why,
            format!("group {group} {}", refusal.as_ref().unwrap_or(missing)),
        );
    }
    let open = |row: &&Row<'_>| {
        row.view
            .members
            .iter()
            .any(|m: &MemberView<'_>| m.unplaced() || !m.scheduled())
    };
    if let Some(row) = wanted(facts).find(open) {
        let rolled_back =
            row.view.spec().placement_failures > 0 && row.view.members.iter().any(MemberView::unplaced);
        let reason = if rolled_back {
            reason::DEADLINE_EXCEEDED
        } else {
            reason::PLACING
        };
        return no(
            reason,
            format!("group {}: {}", row.view.key.name, row.status.message),
        );
    }
    if wanted(facts).count() < usize::try_from(facts.verdict.desired).unwrap_or(0) {
        return no(reason::PLACING, not_yet(facts));
    }
    yes(reason::AS_WANTED, "")
}

/// Why a group has given up.
pub(super) fn failed(row: &Row<'_>) -> &'static str {
    match row.view.spec().failures.last() {
        Some(failure) if failure.reason == losses::UNUSABLE => reason::WORKER_UNUSABLE,
        _ => reason::RESTART_BUDGET_SPENT,
    }
}

/// Why there are fewer groups than are wanted.
fn not_yet(facts: &Facts<'_>) -> String {
    match facts.verdict.acceptance {
        Acceptance::Accepted => "groups are being created".to_owned(),
        _ => "no group is made before the checkpoint is known to fit".to_owned(),
    }
}

/// What becomes of a request while there are no groups.
const fn at_zero(spec: &LlamaDeploymentSpec) -> &'static str {
    if spec.autoscaling.is_some() {
        "a request wakes a group"
    } else if spec.hold_at_zero {
        "requests wait at the gateway until spec.replicas is more than 0"
    } else {
        "requests are refused until spec.replicas is more than 0 (spec.holdAtZero would hold them)"
    }
}

fn ready(facts: &Facts<'_>) -> Finding {
    let desired = facts.verdict.desired;
    if facts.ready >= desired {
        return if desired == 0 {
            yes(reason::SCALED_TO_ZERO, at_zero(&facts.deployment.object.spec))
        } else {
            yes(reason::AS_WANTED, "")
        };
    }
    let row = wanted(facts).find(|row| !row.status.ready);
    let reason = match row.map(|row| row.status.phase) {
        Some(GroupPhase::Failed) => row.map_or(reason::RESTART_BUDGET_SPENT, failed),
        Some(GroupPhase::Recovering) => reason::RECOVERING,
        Some(GroupPhase::Pending | GroupPhase::Placing) => reason::PLACING,
        Some(_) => reason::STARTING,
        None if matches!(facts.verdict.acceptance, Acceptance::Inspecting(_)) => reason::INSPECTING,
        None => reason::PLACING,
    };
    let detail = row.map_or_else(
        || not_yet(facts),
        |row| {
            format!(
                "group {} is {}: {}",
                row.view.key.name,
                row.status.phase.as_str(),
                row.status.message
            )
        },
    );
    no(
        reason,
        format!("{} of {desired} groups serve; {detail}", facts.ready),
    )
}

/// Requests that name the model reach this deployment.
fn routable(facts: &Facts<'_>) -> Finding {
    let Some(owner) = &facts.verdict.name_owner else {
        return yes(reason::AS_WANTED, "");
    };
    let object = &facts.deployment.object;
    let (model, namespace) = (object.model_name(), &owner.namespace);
    let own = object.metadata.namespace.as_deref().unwrap_or_default();
    let way_out = if own == namespace {
        "choose another model.name".to_owned()
    } else {
        format!("ask for {own}/{model}, which comes here, or choose another model.name")
    };
    no(
        reason::MODEL_NAME_TAKEN,
        format!(
            "LlamaDeployment {owner} is older and serves the model name {model}, so requests for it go there: {way_out}"
        ),
    )
}

/// The operator alone writes spec.replicas, or leaves it to its owner.
fn scalable(facts: &Facts<'_>) -> Finding {
    let writer = facts
        .verdict
        .autoscaling
        .as_ref()
        .and_then(|state| state.foreign_writer.as_ref());
    match writer {
        None => yes(reason::AS_WANTED, ""),
        Some(writer) => no(
            reason::FOREIGN_WRITER,
            format!(
                "{writer} wrote spec.replicas although spec.autoscaling decides it, so it is written back: let {writer} leave the field alone, or remove spec.autoscaling"
            ),
        ),
    }
}

/// Groups that are reached in plain text. Nothing is said where links are not authenticated at all.
fn insecure_links(facts: &Facts<'_>) -> Option<Finding> {
    if !facts.verdict.authenticated {
        return None;
    }
    let named = |is_meant: fn(&GroupTemplate) -> bool| {
        let rows = facts.rows.iter();
        let meant = rows.filter(|row| is_meant(&row.view.spec().template));
        let names: Vec<&str> = meant.map(|row| row.view.key.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(groups) = named(|template| template.transport.is_plain()) {
        return Some(yes(
            reason::OLDER_REVISION,
            format!(
                "the links of {groups} are plain text, as their revision was made before links were authenticated: set spec.rollout.restartedAt to now, and new groups take their place"
            ),
        ));
    }
    if let Some(groups) = named(|template| template.inference_transport().is_plain()) {
        return Some(yes(
            reason::AS_WANTED,
            format!(
                "the inference port of {groups} is plain text, as worker.inference.auth is None: a mesh is to know and encrypt who calls"
            ),
        ));
    }
    Some(no(reason::AS_WANTED, ""))
}

/// The scheduler alone chooses nodes. Nothing is said where the operator does.
fn unpinned(facts: &Facts<'_>) -> Option<Finding> {
    facts.verdict.unpinned.then(|| {
        yes(
            reason::NODES_UNREADABLE,
            "the operator may not list and watch nodes, pods of all namespaces and priority classes, so the scheduler chooses the node of each pod by itself: no room is \
             reserved for whole groups, nobody moves ahead of a drain, and accelerator.memory must be given; set rbac.clusterReader of the chart and restart the operator",
        )
    })
}

fn degraded(facts: &Facts<'_>) -> Finding {
    if let Some(refusal) = &facts.verdict.refusal {
        return yes(reason::REFUSED, refusal.clone());
    }
    if let Some(problem) = &facts.verdict.definitions {
        return yes(reason::DEFINITIONS_OUTDATED, problem.clone());
    }
    let authenticated = |row: &&Row<'_>| !row.view.spec().template.transport.is_plain();
    if let Some((why, row)) = facts
        .verdict
        .unenrollable
        .as_ref()
        .zip(facts.rows.iter().find(authenticated))
    {
        let group = &row.view.key.name;
        let told =
            format!("the links of {group} are authenticated, and no certificates are given out: {why}");
        return yes(reason::LINKS_UNREACHABLE, told);
    }
    let of = |row: &Row<'_>| format!("group {}: {}", row.view.key.name, row.status.message);
    let find = |phase| wanted(facts).find(|row| row.status.phase == phase);
    if let Some(row) = find(GroupPhase::Failed) {
        return yes(failed(row), of(row));
    }
    let refused = |row: &&Row<'_>| {
        let last = row.view.spec().failures.last();
        !row.view.group.refusals.is_empty()
            || (row.view.members.iter().any(MemberView::unplaced)
                && last.is_some_and(|f| f.reason == "Refused"))
    };
    if let Some(row) = wanted(facts).find(refused) {
        return yes(reason::REFUSED, of(row));
    }
    if let Some(row) = wanted(facts).find(|row| super::group::difference(&row.view).is_some()) {
        return yes(reason::RANKS_DIFFER, of(row));
    }
    if let Some(row) = find(GroupPhase::Recovering) {
        return yes(reason::RECOVERING, of(row));
    }
    let short = |row: &&Row<'_>| row.view.ready && !row.view.spec().without.is_empty();
    if let Some(row) = wanted(facts).find(short) {
        return yes(reason::MEMBERS_MISSING, of(row));
    }
    let stuck = |row: &&Row<'_>| {
        let trouble = |words: &String| {
            [
                "ImagePull",
                "ErrImage",
                "CreateContainer",
                "InvalidImage",
                "RunContainer",
            ]
            .iter()
            .any(|w| words.contains(w))
        };
        row.view
            .members
            .iter()
            .filter_map(|m| m.pod?.waiting.as_ref())
            .any(trouble)
    };
    if let Some(row) = wanted(facts).find(stuck) {
        return yes(reason::PODS_NOT_STARTING, of(row));
    }
    if let Some(row) = wanted(facts).find(|row| {
        row.status
            .ranks
            .iter()
            .any(|rank| rank.phase == RankPhase::Failed)
    }) {
        return yes(reason::STARTING, of(row));
    }
    no(reason::AS_WANTED, "")
}
