//! The answer for people and for programs.

use llamero_api::quantity::human;
use llamero_core::{
    forecast::{ForecastGroup, alternatives::Alternative},
    plan::Acceptance,
};
use serde_json::{Value, json};

use super::{Planned, name};
use crate::{
    paint::{Mood, Paint, harmless},
    words::{count, table},
};

/// For people.
#[must_use]
pub fn text(planned: &[Planned], paint: Paint) -> String {
    let texts: Vec<String> = planned.iter().map(|one| deployment(one, paint)).collect();
    texts.join("\n")
}

fn deployment(planned: &Planned, paint: Paint) -> String {
    let forecast = &planned.forecast;
    let (mood, verdict) = verdict(planned);
    let name = paint.paint(Mood::Bold, &name(&planned.object));
    let mut text = format!("{name}: {}\n", paint.paint(mood, &verdict));
    text.push_str(&format!("  {}\n", split(planned)));
    match &forecast.sizing {
        Some(plan) if plan.fits => text.push_str(&format!(
            "  a rank takes {}: weights {}, keys and values {} for {}\n",
            human(plan.memory_bytes_per_rank),
            human(plan.weight_bytes_per_rank),
            human(plan.kv_bytes_per_rank),
            count(plan.kv_tokens, "token"),
        )),
        Some(_) => {}
        None => text.push_str(
            "  nobody has read the checkpoint's headers yet, so whether the model fits into memory is not known: \
             apply it, or give --checkpoint-summary\n",
        ),
    }
    let rows: Vec<Vec<String>> = forecast.groups.iter().map(group).collect();
    text.push_str(&table(&rows));
    let mut note = |words: Option<&str>| {
        if let Some(words) = words.filter(|words| !words.is_empty()) {
            text.push_str(&format!("  {}\n", paint.paint(Mood::Busy, &harmless(words))));
        }
    };
    note(
        forecast
            .sizing
            .as_ref()
            .filter(|plan| plan.fits)
            .map(|plan| plan.message.as_str()),
    );
    note(forecast.trial.as_deref());
    note(forecast.refusal.as_deref());
    let taken = forecast.name_owner.as_ref();
    let taken = taken.map(|owner| {
        format!("the model name belongs to {owner}, which is older: give spec.model.name another one")
    });
    note(taken.as_deref());
    if !planned.has_room() {
        text.push_str(&would_fit(planned));
    }
    text
}

fn verdict(planned: &Planned) -> (Mood, String) {
    let forecast = &planned.forecast;
    let why = match &forecast.acceptance {
        Acceptance::Accepted => None,
        Acceptance::Inspecting(_) => Some("its checkpoint is being read".to_owned()),
        Acceptance::Unreadable(why) => Some(format!("its checkpoint cannot be read: {why}")),
        Acceptance::Refused(why) => Some(format!("does not fit: {why}")),
        Acceptance::NoBackend(why) | Acceptance::NoRevision(why) | Acceptance::PolicyRefused(why) => {
            Some(why.clone())
        }
    };
    if let Some(why) = why {
        return (Mood::Bad, harmless(&why));
    }
    let placed = forecast
        .groups
        .iter()
        .filter(|group| group.placed() && !group.goes);
    let placed = i64::try_from(placed.count())
        .unwrap_or(i64::MAX)
        .min(i64::from(forecast.wanted));
    let mood = if planned.has_room() { Mood::Good } else { Mood::Bad };
    (
        mood,
        format!(
            "{placed} of {} would have room",
            count(i64::from(forecast.wanted), "group")
        ),
    )
}

fn split(planned: &Planned) -> String {
    let spec = &planned.object.spec;
    let device = spec.accelerator.as_ref().and_then(|a| a.resource.as_deref());
    format!(
        "a group is {} in {}, {} in each",
        count(i64::from(spec.ranks()), "rank"),
        count(i64::from(spec.pods()), "pod"),
        match device {
            Some(device) => format!("{} {device}", spec.ranks_per_pod()),
            None => count(i64::from(spec.ranks_per_pod()), "CPU rank"),
        }
    )
}

fn group(group: &ForecastGroup) -> Vec<String> {
    let state = match (group.new, group.goes) {
        (_, true) => "goes",
        (true, false) => "new",
        (false, false) => "there",
    };
    let nodes: Vec<&str> = group.nodes.iter().filter_map(Option::as_deref).collect();
    let place = match (&group.missing, group.placed()) {
        (_, true) => nodes.join(", "),
        (Some(missing), false) => format!("no room: {}", harmless(missing)),
        (None, false) => "waits before the next try".to_owned(),
    };
    vec![format!("  {}", group.name), state.to_owned(), place]
}

fn would_fit(planned: &Planned) -> String {
    if planned.alternatives.is_empty() {
        return "  nothing smaller has room either: add nodes, or free some\n".to_owned();
    }
    let mut text = "  what would fit now:\n".to_owned();
    for one in &planned.alternatives {
        text.push_str(&format!("    {}\n", alternative(one, planned)));
    }
    text
}

fn alternative(one: &Alternative, planned: &Planned) -> String {
    let spec = &planned.object.spec;
    let mut changes = Vec::new();
    if one.tensor != spec.parallelism.tensor {
        changes.push(format!("parallelism.tensor {}", one.tensor));
    }
    let per_node = one.per_node;
    if let Some(ranks) = per_node.filter(|_| per_node != spec.accelerator.as_ref().map(|a| a.per_node)) {
        changes.push(format!("accelerator.perNode {ranks}"));
    }
    if let Some(tokens) = one.max_context_length {
        changes.push(format!("model.maxContextLength {tokens}"));
    }
    let groups = count(i64::from(one.groups), "group");
    if changes.is_empty() {
        return format!("as it is: {groups}");
    }
    format!("{}: {groups}", changes.join(" and "))
}

/// For programs.
#[must_use]
pub fn json(planned: &[Planned]) -> Value {
    let one = |planned: &Planned| {
        let forecast = &planned.forecast;
        let groups = forecast.groups.iter().map(|group| {
            json!({"name": group.name, "revision": group.revision, "new": group.new, "goes": group.goes,
                "nodes": group.nodes, "missing": group.missing})
        });
        let alternatives = planned.alternatives.iter().map(|one| {
            json!({"tensor": one.tensor, "perNode": one.per_node, "maxContextLength": one.max_context_length, "groups": one.groups})
        });
        json!({
            "deployment": name(&planned.object),
            "hasRoom": planned.has_room(),
            "verdict": verdict(planned).1,
            "wanted": forecast.wanted,
            "sizing": forecast.sizing,
            "groups": groups.collect::<Vec<_>>(),
            "whatWouldFit": alternatives.collect::<Vec<_>>(),
        })
    };
    Value::Array(planned.iter().map(one).collect())
}
