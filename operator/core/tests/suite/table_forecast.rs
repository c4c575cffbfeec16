//! What `kubectl llamero plan` is told: the decisions of the operator, ahead of time.

use llamero_core::{
    forecast::{Forecast, alternatives::alternatives, forecasts},
    observed::Observed,
    plan::{Acceptance, Key},
    resources::Resources,
};
use serde_json::json;

use crate::build::*;

fn key() -> Key {
    Key {
        namespace: "ns".into(),
        name: "llama".into(),
    }
}

fn foretold(observed: &Observed) -> Forecast {
    forecasts(observed.clone(), &[key()], NOW).remove(&key()).unwrap()
}

/// Name, nodes and what is missing of each group.
fn lines(forecast: &Forecast) -> Vec<String> {
    let line = |group: &llamero_core::forecast::ForecastGroup| {
        let nodes: Vec<&str> = group
            .nodes
            .iter()
            .map(|node| node.as_deref().unwrap_or("-"))
            .collect();
        let missing = group.missing.as_deref().unwrap_or_default();
        let new = if group.new { " new" } else { "" };
        format!("{}{new}: {} {missing}", group.name, nodes.join(","))
    };
    forecast
        .groups
        .iter()
        .map(|group| line(group).trim().to_owned())
        .collect()
}

#[test]
fn groups_get_nodes_as_the_operator_would_give_them() {
    let mut observed = observed(deployment(|d| d["spec"]["replicas"] = json!(2)));
    observed.nodes.push(node("d", 1));
    let forecast = foretold(&observed);
    assert_eq!(forecast.acceptance, Acceptance::Accepted);
    assert_eq!(lines(&forecast), ["llama-0 new: a,b", "llama-1 new: c,d"]);
    assert!(forecast.sizing.is_some_and(|plan| plan.fits));
}

#[test]
fn what_is_there_keeps_its_nodes_and_the_next_group_is_told_what_it_lacks() {
    let observed = with(|deployment| {
        deployment.groups = vec![serving(deployment, "llama-0", ["a", "b"])];
        std::sync::Arc::make_mut(&mut deployment.object).spec.replicas = 2;
    });
    let forecast = foretold(&observed);
    let shown = lines(&forecast);
    assert_eq!(shown[0], "llama-0: a,b");
    assert!(
        shown[1].starts_with("llama-1 new: -,- needs 2 nodes"),
        "{shown:?}"
    );
}

#[test]
fn a_checkpoint_that_nobody_has_read_is_placed_by_the_specification_alone() {
    let mut unread = deployment(|_| {});
    let object = std::sync::Arc::make_mut(&mut unread.object);
    object.status = None;
    unread.revisions.clear();
    let forecast = foretold(&observed(unread));
    assert_eq!(forecast.sizing, None);
    assert_eq!(lines(&forecast), ["llama-0 new: a,b"]);
}

#[test]
fn nobody_else_loses_nodes_to_a_forecast() {
    let before = observed(deployment(|_| {}));
    let after = before.clone();
    let _ = foretold(&after);
    assert_eq!(
        before.deployments[0].groups.len(),
        after.deployments[0].groups.len()
    );
    assert!(forecasts(after, &[Key::default()], NOW).is_empty());
}

#[test]
fn a_model_that_does_not_fit_is_told_which_split_has_room() {
    let mut observed = observed(deployment(|d| d["spec"]["accelerator"]["memory"] = json!("5Gi")));
    observed.nodes = vec![node("big", 8)];
    let forecast = foretold(&observed);
    assert!(
        matches!(forecast.acceptance, Acceptance::Refused(_)),
        "{forecast:?}"
    );
    let found = alternatives(&observed, &key());
    let first = found.first().unwrap();
    assert_eq!((first.tensor, first.per_node, first.groups), (4, Some(4), 1));
    assert!(found.iter().all(|one| one.tensor >= 4), "{found:?}");
}

#[test]
fn fewer_groups_are_an_alternative_and_no_room_has_none() {
    let mut observed = observed(deployment(|d| d["spec"]["replicas"] = json!(2)));
    let same = alternatives(&observed, &key());
    assert_eq!(
        (same[0].tensor, same[0].per_node, same[0].groups),
        (2, Some(1), 1)
    );
    for node in &mut observed.nodes {
        node.used.insert(0, Resources::new().with(GPU, 1));
    }
    assert_eq!(alternatives(&observed, &key()), []);
}
