//! The one condition, object and number that say why a deployment is not ready.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use llamero_api::{
    LlamaDeployment, LlamaDeploymentStatus, LlamaGroup,
    deployment::condition,
    group::{GroupPhase, RankPhase, RankStatus},
};
use llamero_core::time::Millis;

use super::{operator::Operator, way_out::way_out};
use crate::{
    observe::owned,
    status::tree::{at_rest, observed},
    words::{age, count, loaded},
};

/// What is told about a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// `namespace/name`.
    pub name: String,
    /// Groups that serve.
    pub ready: i32,
    /// Groups that are wanted.
    pub wanted: i32,
    /// Why it is not ready; nothing where it is.
    pub trouble: Option<Trouble>,
}

/// Why it is not ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// `Type=Status (Reason)`.
    pub condition: String,
    /// Since when, as an age.
    pub since: String,
    /// Kind and name of what holds it up.
    pub object: String,
    /// How far that is, or how much is missing.
    pub number: String,
    /// Why, in the operator's words.
    pub why: String,
    /// What to do.
    pub way_out: String,
}

/// The order in which conditions are looked at: what must hold first, first.
const ORDER: [&str; 8] = [
    condition::ACCEPTED,
    condition::STALLED,
    condition::DEGRADED,
    condition::PLACED,
    condition::ROUTABLE,
    condition::READY,
    condition::SCALABLE,
    condition::PROGRESSING,
];

/// Why the deployment is not ready.
#[must_use]
pub fn explain(
    object: &LlamaDeployment,
    groups: &[LlamaGroup],
    operator: &Operator,
    now: Millis,
) -> Explanation {
    let groups: Vec<&LlamaGroup> = groups.iter().filter(|group| owned(*group, object)).collect();
    let status = object.status.as_ref();
    Explanation {
        name: format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()),
        ready: status.map_or(0, |status| status.ready_replicas),
        wanted: status.map_or(object.spec.replicas, |status| status.desired_replicas),
        trouble: trouble(object, &groups, operator, now),
    }
}

fn trouble(
    object: &LlamaDeployment,
    groups: &[&LlamaGroup],
    operator: &Operator,
    now: Millis,
) -> Option<Trouble> {
    let Some(status) = observed(object) else {
        return Some(unseen(object, operator, now));
    };
    let found = ORDER.iter().find_map(|type_| {
        let mut conditions = status.conditions.iter();
        conditions.find(|condition| condition.type_ == *type_ && !at_rest(condition))
    });
    let Some(found) = found else {
        // Ready as far as anybody knows; an operator that is away would not say otherwise.
        let (why, way_out) = operator.trouble(now)?;
        return Some(Trouble {
            condition: "none".to_owned(),
            object: "the operator".to_owned(),
            why: format!("the status may be old: {why}"),
            way_out,
            ..Trouble::default()
        });
    };
    // The least advanced group holds everything up.
    let group = groups
        .iter()
        .copied()
        .filter(|group| !serves(group))
        .min_by_key(|group| (phase(group) != GroupPhase::Failed, phase(group), group.name_any()));
    let (object_name, number) = held_up_by(object, group, status, found);
    Some(Trouble {
        condition: format!("{}={} ({})", found.type_, found.status, found.reason),
        since: age(Some(&found.last_transition_time), now),
        object: object_name,
        number,
        why: why(found, group),
        way_out: way_out(object, group, &found.reason),
    })
}

fn phase(group: &LlamaGroup) -> GroupPhase {
    group
        .status
        .as_ref()
        .map(|status| status.phase)
        .unwrap_or_default()
}

fn serves(group: &LlamaGroup) -> bool {
    group.status.as_ref().is_some_and(|status| status.ready)
}

/// The condition's own words, and those of the group that it is about where they say more.
fn why(condition: &Condition, group: Option<&LlamaGroup>) -> String {
    let own = condition.message.as_str();
    let group = group.and_then(|group| {
        let message = &group.status.as_ref()?.message;
        (!message.is_empty() && !own.contains(message.as_str()))
            .then(|| format!("{}: {message}", group.name_any()))
    });
    match (own.is_empty(), group) {
        (true, Some(group)) => group,
        (false, Some(group)) => format!("{own}; {group}"),
        (_, None) => own.to_owned(),
    }
}

/// What holds it up, and how far that is.
fn held_up_by(
    object: &LlamaDeployment,
    group: Option<&LlamaGroup>,
    status: &LlamaDeploymentStatus,
    condition: &Condition,
) -> (String, String) {
    let ready = format!(
        "{} of {} ready",
        status.ready_replicas,
        count(i64::from(status.desired_replicas), "group")
    );
    let about_deployment = matches!(
        condition.type_.as_str(),
        condition::ACCEPTED | condition::ROUTABLE | condition::SCALABLE
    );
    let Some(group) = group.filter(|_| !about_deployment) else {
        return (format!("LlamaDeployment {}", object.name_any()), ready);
    };
    let name = group.name_any();
    let ranks = group.status.iter().flat_map(|status| &status.ranks);
    let slowest = ranks
        .clone()
        .filter(|rank| rank.phase != RankPhase::Serving)
        .min_by_key(|rank| order(rank));
    match (phase(group), slowest) {
        (GroupPhase::Pending | GroupPhase::Placing, _) | (_, None) => {
            let members = &group.spec.members;
            let placed = members.iter().filter(|member| member.node.is_some()).count();
            (
                format!("LlamaGroup {name}"),
                format!("{placed} of {} pods have nodes; {ready}", members.len()),
            )
        }
        (_, Some(rank)) => {
            let pod = if rank.pod.is_empty() { "no pod" } else { &rank.pod };
            let node = rank.node.as_deref().unwrap_or("no node");
            (
                format!("rank {} of LlamaGroup {name} (pod {pod} on {node})", rank.rank),
                format!(
                    "{:?}, {}; {ready}",
                    rank.phase,
                    loaded(rank.loaded_bytes, rank.total_bytes)
                ),
            )
        }
    }
}

/// A rank whose process is gone comes first, then the one that is least far, then the one that has read least.
fn order(rank: &RankStatus) -> (bool, RankPhase, i64, i32) {
    (
        rank.phase != RankPhase::Failed,
        rank.phase,
        rank.loaded_bytes,
        rank.rank,
    )
}

/// The operator has not looked at the object as it is now.
fn unseen(object: &LlamaDeployment, operator: &Operator, now: Millis) -> Trouble {
    let seen = object
        .status
        .as_ref()
        .map_or(0, |status| status.observed_generation);
    let (why, way_out) = operator.trouble(now).unwrap_or_else(|| {
        let held = match operator {
            Operator::Held { by, .. } => format!("the operator {by} runs"),
            Operator::Absent(_) | Operator::Unknown(_) => "whether an operator runs is not known".to_owned(),
        };
        (
            format!("{held}, but has not looked at this object"),
            "wait some seconds; then see whether the operator serves this namespace (--namespace), and its log".to_owned(),
        )
    });
    Trouble {
        condition: "none yet".to_owned(),
        since: age(object.metadata.creation_timestamp.as_ref(), now),
        object: format!("LlamaDeployment {}", object.name_any()),
        number: format!(
            "generation {} of {} seen",
            seen,
            object.metadata.generation.unwrap_or_default()
        ),
        why,
        way_out,
    }
}
