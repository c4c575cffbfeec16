//! What Argo CD makes of the statuses that are reported: its health check is run as Argo CD runs it, by Lua 5.1.

use llamero_core::{observed::Observed, time};
use mlua::{IntoLua as _, Lua};
use serde_json::{Value, json};

use crate::build::*;

const CHECK: &str = include_str!("../../../../manifests/argocd/health.lua");

/// JSON as Argo CD hands it over: what is null is not there.
fn to_lua(lua: &Lua, value: &Value) -> mlua::Value {
    match value {
        Value::Null => mlua::Value::Nil,
        Value::Bool(value) => mlua::Value::Boolean(*value),
        Value::Number(value) => value.as_f64().unwrap().into_lua(lua).unwrap(),
        Value::String(value) => value.as_str().into_lua(lua).unwrap(),
        Value::Array(items) => {
            let items = items.iter().map(|item| to_lua(lua, item));
            lua.create_sequence_from(items).unwrap().into_lua(lua).unwrap()
        }
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| (key.as_str(), to_lua(lua, value)));
            lua.create_table_from(entries).unwrap().into_lua(lua).unwrap()
        }
    }
}

/// Status and message.
fn health(object: &Value) -> (String, String) {
    let lua = Lua::new();
    lua.globals().set("obj", to_lua(&lua, object)).unwrap();
    let answer: mlua::Table = lua.load(CHECK).eval().unwrap();
    (answer.get("status").unwrap(), answer.get("message").unwrap())
}

/// After a pass whose status was written.
fn after(observed: &Observed) -> (String, String) {
    let mut object = observed.deployments[0].object.as_ref().clone();
    object.status = Some(status_at(observed, NOW));
    health(&serde_json::to_value(object).unwrap())
}

fn served(change: impl FnOnce(&mut Value)) -> Observed {
    let mut whole = deployment(change);
    whole.groups = vec![serving(&whole, "llama-0", ["a", "b"])];
    let mut observed = observed(whole);
    count_usage(&mut observed);
    observed
}

#[test]
fn what_serves_is_healthy_and_so_is_what_was_scaled_to_zero() {
    assert_eq!(after(&served(|_| {})), ("Healthy".to_owned(), String::new()));
    let zero = observed(deployment(|d| d["spec"]["replicas"] = json!(0)));
    assert_eq!(after(&zero).0, "Healthy");
}

#[test]
fn what_nobody_has_looked_at_yet_is_progressing() {
    let mut object = json!({"metadata": {"generation": 2}, "spec": {}});
    assert_eq!(health(&object).0, "Progressing");
    object["status"] = json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]});
    assert_eq!(health(&object).0, "Progressing");
}

#[test]
fn what_starts_or_waits_for_room_is_progressing_and_says_why() {
    let mut starting = observed(deployment(|_| {}));
    assert_eq!(after(&starting).0, "Progressing");
    let whole = &mut starting.deployments[0];
    whole.groups = vec![group(whole, "llama-0", &[(0, None, None), (0, None, None)])];
    starting.nodes.clear();
    let (health, message) = after(&starting);
    assert_eq!(health, "Progressing");
    assert!(message.contains("the cluster has no nodes"), "{message}");
}

#[test]
fn what_needs_somebody_is_degraded() {
    let too_small = observed(deployment(|d| d["spec"]["accelerator"]["memory"] = json!("5Gi")));
    let (health, message) = after(&too_small);
    assert_eq!(health, "Degraded");
    assert!(message.contains("what would fit"), "{message}");
    let unknown = served(|d| d["spec"]["rollout"] = json!({"revision": "0123456789"}));
    assert_eq!(after(&unknown).0, "Degraded");
    let mut late = served(|d| d["spec"]["worker"] = json!({"image": "worker:2"}));
    let first = served(|_| {});
    late.deployments[0].groups = first.deployments[0].groups.clone();
    let mut status = status_at(&late, NOW);
    status.rollout.as_mut().unwrap().since = time::to_time(NOW - 86_400_000);
    std::sync::Arc::make_mut(&mut late.deployments[0].object).status = Some(status);
    assert_eq!(after(&late).0, "Degraded");
}

#[test]
fn a_pause_is_suspended() {
    let mut paused = served(|d| {
        d["spec"]["worker"] = json!({"image": "worker:2"});
        d["spec"]["rollout"] = json!({"paused": true});
    });
    paused.deployments[0].groups = served(|_| {}).deployments[0].groups.clone();
    let (health, message) = after(&paused);
    assert_eq!(health, "Suspended");
    assert!(message.contains("set rollout.paused to false"), "{message}");
}
