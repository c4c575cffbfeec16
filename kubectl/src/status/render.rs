//! The tree as text.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use llamero_api::{
    LlamaDeployment, LlamaGroup,
    group::{GroupPhase, RankPhase, RankStatus, StartStep, StartStepName},
    quantity::human,
};
use llamero_core::time::Millis;

use super::{
    rates::Rates,
    tree::{Tree, at_rest, is_wrong, observed},
};
use crate::{
    paint::{Mood, Paint, harmless},
    words::{age, bar, loaded, percent, seconds, speed, table},
};

/// Cells of a bar.
const BAR: usize = 16;

/// The tree for people.
#[must_use]
pub fn text(tree: &Tree<'_>, rates: &Rates, now: Millis, paint: Paint) -> String {
    let view = View { rates, now, paint };
    let texts: Vec<String> = tree
        .deployments
        .iter()
        .map(|(object, groups)| view.deployment(object, groups))
        .collect();
    texts.join("\n")
}

struct View<'a> {
    rates: &'a Rates,
    now: Millis,
    paint: Paint,
}

impl View<'_> {
    fn deployment(&self, object: &LlamaDeployment, groups: &[&LlamaGroup]) -> String {
        let name = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
        let age = age(object.metadata.creation_timestamp.as_ref(), self.now);
        let name = self.paint.paint(Mood::Bold, &name);
        let Some(status) = &object.status else {
            let words = self.paint.paint(Mood::Bad, "no operator has looked at it yet");
            return format!("{name}  {words}  {age}\n");
        };
        let mood = match status.ready_replicas >= status.desired_replicas {
            true => Mood::Good,
            false => Mood::Busy,
        };
        let head = [
            self.paint.paint(mood, &status.phase),
            format!(
                "{}/{} groups ready",
                status.ready_replicas, status.desired_replicas
            ),
            harmless(&status.model),
            format!("revision {}", status.revision),
            age,
        ];
        let mut text = format!("{name}  {}\n", head.join("  "));
        if observed(object).is_none() {
            let words = "the operator has not seen the latest change yet";
            text.push_str(&format!("│ {}\n", self.paint.paint(Mood::Busy, words)));
        }
        text.push_str(&self.conditions(&status.conditions));
        for (at, group) in groups.iter().enumerate() {
            text.push_str(&self.group(group, at + 1 == groups.len()));
        }
        text
    }

    /// Those that are as they should be in one line, each other one in a line of its own.
    fn conditions(&self, conditions: &[Condition]) -> String {
        let fine: Vec<&str> = conditions
            .iter()
            .filter(|condition| at_rest(condition) && condition.status == "True")
            .map(|condition| condition.type_.as_str())
            .collect();
        let mut text = String::new();
        if !fine.is_empty() {
            text.push_str(&format!("│ {}\n", self.paint.paint(Mood::Good, &fine.join(", "))));
        }
        for condition in conditions.iter().filter(|condition| !at_rest(condition)) {
            let mood = if is_wrong(condition) {
                Mood::Bad
            } else {
                Mood::Busy
            };
            let what = format!("{}={} ({})", condition.type_, condition.status, condition.reason);
            let since = age(Some(&condition.last_transition_time), self.now);
            text.push_str(&format!("│ {} for {since}", self.paint.paint(mood, &what)));
            if !condition.message.is_empty() {
                text.push_str(&format!(": {}", harmless(&condition.message)));
            }
            text.push('\n');
        }
        text
    }

    fn group(&self, group: &LlamaGroup, last: bool) -> String {
        let (branch, below) = if last {
            ("└─", "  ")
        } else {
            ("├─", "│ ")
        };
        let default = llamero_api::LlamaGroupStatus::default();
        let status = group.status.as_ref().unwrap_or(&default);
        let phase = self.paint.paint(mood(status.phase), status.phase.as_str());
        let mut text = format!(
            "{branch} {}  {phase}  generation {}  revision {}",
            group.name_any(),
            group.spec.generation,
            group.spec.revision
        );
        if status.restarts > 0 {
            text.push_str(&format!("  {} restarts in the window", status.restarts));
        }
        if !status.message.is_empty() {
            text.push_str(&format!(": {}", harmless(&status.message)));
        }
        text.push('\n');
        let rows: Vec<Vec<String>> = status.ranks.iter().map(|rank| self.rank(group, rank)).collect();
        for line in table(&rows).lines() {
            text.push_str(&format!("{below}   {line}\n"));
        }
        if !status.start.is_empty() {
            text.push_str(&format!("{below}   start: {}\n", start(&status.start)));
        }
        text
    }

    fn rank(&self, group: &LlamaGroup, rank: &RankStatus) -> Vec<String> {
        let (part, whole) = (rank.loaded_bytes, rank.total_bytes);
        let rate = self.rates.of(group, rank.rank);
        let mut words = vec![loaded(part, whole)];
        words.extend(rate.map(|rate| speed(rate, 1000)));
        if rank.phase != RankPhase::Serving && !rank.message.is_empty() {
            words.push(harmless(&rank.message));
        }
        vec![
            format!("rank {}", rank.rank),
            rank.node.clone().unwrap_or_else(|| "no node".to_owned()),
            format!("{:?}", rank.phase),
            format!("{} {:>5}", bar(part, whole, BAR), percent(part, whole)),
            words.join(", "),
        ]
    }
}

/// `placed 1.0s, scheduled 0.0s, …; served after 5.0s`.
fn start(steps: &[StartStep]) -> String {
    let mut words = Vec::new();
    let mut served = String::new();
    for step in steps {
        let took = seconds(step.millis);
        let name = match step.step {
            StartStepName::Serving => {
                served = format!("; served after {took}");
                continue;
            }
            StartStepName::Sized => "sized",
            StartStepName::Placed => "placed",
            StartStepName::Scheduled => "scheduled",
            StartStepName::Started => "started",
            StartStepName::Checked => "checked",
            StartStepName::Loaded => "loaded",
            StartStepName::Formed => "formed",
        };
        let what = match (step.bytes, &step.rate) {
            (Some(bytes), Some(rate)) => format!(" ({} at {})", human(bytes), harmless(rate)),
            _ => String::new(),
        };
        words.push(format!("{name} {took}{what}"));
    }
    words.join(", ") + &served
}

const fn mood(phase: GroupPhase) -> Mood {
    match phase {
        GroupPhase::Serving => Mood::Good,
        GroupPhase::Failed => Mood::Bad,
        _ => Mood::Busy,
    }
}
