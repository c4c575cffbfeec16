use llamero_core::time::Millis;
use serde_json::{Value, json};

use super::{operator::Operator, *};

const NOW: Millis = 1_767_225_600_000;

fn alive() -> Operator {
    Operator::Held {
        by: "llamero-operator-0".into(),
        renewed: Some(NOW - 2000),
        seconds: 15,
    }
}

fn deployment(conditions: &[(&str, &str, &str, &str)]) -> LlamaDeployment {
    let conditions = conditions.iter().map(|(type_, status, reason, message)| {
        json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2025-12-31T23:55:00Z"})
    });
    serde_json::from_value(json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "llama", "namespace": "chat", "uid": "u", "generation": 2},
        "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 2}},
        "status": {"observedGeneration": 2, "readyReplicas": 1, "desiredReplicas": 2, "conditions": conditions.collect::<Vec<_>>()}}))
    .unwrap()
}

fn group(status: Value) -> LlamaGroup {
    serde_json::from_value(json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
        "metadata": {"name": "llama-1", "namespace": "chat", "uid": "g",
            "ownerReferences": [{"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "name": "llama", "uid": "u", "controller": true}]},
        "spec": {"deployment": "llama", "revision": "8f2c", "generation": 0, "members": [{"index": 0, "attempt": 0}, {"index": 1, "attempt": 0}],
            "template": {"modelName": "m", "source": {"hostPath": {"path": "/m"}}, "maxContextLength": 2048, "tensor": 2, "pipeline": 1,
                "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "30s"}},
        "status": status}))
    .unwrap()
}

fn told(object: &LlamaDeployment, groups: &[LlamaGroup], operator: &Operator) -> String {
    render::text(&[explain(object, groups, operator, NOW)], Paint::plain())
}

const NO_ROOM: (&str, &str, &str, &str) = (
    "Placed",
    "False",
    "NoRoom",
    "llama-1 needs 2 nodes with 1 nvidia.com/gpu each; too few have room: some are short of nvidia.com/gpu",
);

#[test]
fn no_room_is_told_with_its_number_and_the_way_out() {
    let object = deployment(&[
        ("Accepted", "True", "AsWanted", ""),
        NO_ROOM,
        ("Ready", "False", "Starting", ""),
    ]);
    let waits = group(json!({"phase": "Pending", "message": NO_ROOM.3.strip_prefix("llama-1 ")}));
    insta::assert_snapshot!(told(&object, &[waits], &alive()), @r#"
    chat/llama is not ready: 1 of 2 groups serve
      condition  Placed=False (NoRoom), for 5m
      object     LlamaGroup llama-1
      number     0 of 2 pods have nodes; 1 of 2 groups ready
      why        llama-1 needs 2 nodes with 1 nvidia.com/gpu each; too few have room: some are short of nvidia.com/gpu
      way out    add nodes or free some; kubectl llamero plan llama -n chat shows what would fit now
    "#);
}

#[test]
fn the_rank_that_is_least_far_holds_a_group_up() {
    let object = deployment(&[("Ready", "False", "Starting", "1 of 2 groups serve")]);
    let rank = |rank: i32, phase: &str, loaded: i64| json!({"rank": rank, "pod": format!("llama-1-{rank}-0"), "node": "n", "phase": phase, "loadedBytes": loaded, "totalBytes": 4_i64 << 30});
    let loads = group(json!({"phase": "Loading", "message": "rank 1: waits for the Hub",
        "ranks": [rank(0, "Connecting", 4 << 30), rank(1, "Loading", 1 << 30)]}));
    insta::assert_snapshot!(told(&object, &[loads], &alive()), @r#"
    chat/llama is not ready: 1 of 2 groups serve
      condition  Ready=False (Starting), for 5m
      object     rank 1 of LlamaGroup llama-1 (pod llama-1-1-0 on n)
      number     Loading, 1.0 GiB of 4.0 GiB; 1 of 2 groups ready
      why        1 of 2 groups serve; llama-1: rank 1: waits for the Hub
      way out    nothing to do; watch it: kubectl llamero status llama -n chat -w
    "#);
}

#[test]
fn what_is_refused_comes_before_what_follows_from_it() {
    let refused = ("Accepted", "False", "DoesNotFit", "a rank needs 39.0 GiB");
    let object = deployment(&[("Ready", "False", "Starting", ""), NO_ROOM, refused]);
    let explained = explain(&object, &[], &alive(), NOW).trouble.unwrap();
    assert_eq!(explained.condition, "Accepted=False (DoesNotFit)");
    assert_eq!(explained.object, "LlamaDeployment llama");
    assert!(explained.way_out.contains("kubectl llamero plan llama -n chat"));
}

#[test]
fn an_operator_that_is_away_is_the_reason() {
    let mut object = deployment(&[("Ready", "True", "AsWanted", "")]);
    assert_eq!(explain(&object, &[], &alive(), NOW).trouble, None);
    let away = Operator::Held {
        by: "llamero-operator-0".into(),
        renewed: Some(NOW - 600_000),
        seconds: 15,
    };
    let stale = explain(&object, &[], &away, NOW).trouble.unwrap();
    assert!(stale.why.contains("600 s ago"), "{}", stale.why);
    object.metadata.generation = Some(3);
    let absent = Operator::Absent("llamero-system/llamero-operator".into());
    let unseen = explain(&object, &[], &absent, NOW).trouble.unwrap();
    assert_eq!(unseen.number, "generation 2 of 3 seen");
    assert!(unseen.way_out.contains("install the chart"));
    assert!(
        explain(&object, &[], &alive(), NOW)
            .trouble
            .unwrap()
            .why
            .contains("has not looked")
    );
}

#[test]
fn every_reason_has_a_way_out_of_its_own_words() {
    let object = deployment(&[]);
    let general = way_out::way_out(&object, None, "SomethingNew");
    for known in [
        "Inspecting",
        "NoRoom",
        "PodsNotStarting",
        "RestartBudgetSpent",
        "Paused",
        "ModelNameTaken",
    ] {
        assert_ne!(way_out::way_out(&object, None, known), general, "{known}");
    }
    let json = render::json(&[explain(&object, &[], &alive(), NOW)]);
    assert_eq!(json[0]["trouble"], Value::Null);
}
