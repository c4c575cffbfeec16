use serde_json::{Value, json};

use super::*;

const NOW: i64 = 1_767_225_600_000;

fn deployment(status: Value) -> LlamaDeployment {
    serde_json::from_value(json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment",
        "metadata": {"name": "llama", "namespace": "chat", "uid": "u", "generation": 2, "creationTimestamp": "2025-12-31T22:00:00Z"},
        "spec": {"model": {"source": {"hostPath": {"path": "/m"}}}, "parallelism": {"tensor": 2}},
        "status": status}))
    .unwrap()
}

fn group(name: &str, status: Value) -> LlamaGroup {
    serde_json::from_value(json!({"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaGroup",
        "metadata": {"name": name, "namespace": "chat", "uid": name,
            "ownerReferences": [{"apiVersion": "llamero.dev/v1alpha1", "kind": "LlamaDeployment", "name": "llama", "uid": "u", "controller": true}]},
        "spec": {"deployment": "llama", "revision": "8f2c", "generation": 3, "members": [{"index": 0, "attempt": 0}],
            "template": {"modelName": "m", "source": {"hostPath": {"path": "/m"}}, "maxContextLength": 2048, "tensor": 2, "pipeline": 1,
                "ranksPerPod": 1, "kvBytesPerRank": 1, "weightBytesPerRank": 1, "stallTimeout": "30s"}},
        "status": status}))
    .unwrap()
}

fn loading(loaded: i64) -> LlamaGroup {
    let rank = |rank: i32, phase: &str, loaded: i64| {
        json!({"rank": rank, "pod": format!("llama-1-{rank}-0"), "node": format!("node-{rank}"), "phase": phase,
            "loadedBytes": loaded, "totalBytes": 4_i64 << 30})
    };
    group(
        "llama-1",
        json!({"phase": "Loading", "message": "ranks read their shards",
            "ranks": [rank(0, "Loading", loaded), rank(1, "Connecting", 4 << 30)]}),
    )
}

fn half_ready() -> LlamaDeployment {
    let condition = |type_: &str, status: &str, reason: &str, message: &str| json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2025-12-31T23:55:00Z"});
    deployment(
        json!({"observedGeneration": 2, "phase": "Loading", "model": "org/llama", "readyReplicas": 1, "desiredReplicas": 2,
        "revision": "8f2c", "conditions": [
            condition("Accepted", "True", "AsWanted", ""),
            condition("Placed", "True", "AsWanted", ""),
            condition("Ready", "False", "Starting", "1 of 2 groups serve"),
            condition("Progressing", "True", "Starting", "groups start"),
            condition("Degraded", "False", "AsWanted", "")]}),
    )
}

#[test]
fn a_tree_of_groups_and_ranks_with_what_is_loaded() {
    let start = json!([
        {"step": "Placed", "millis": 1000, "at": "2025-12-31T22:00:02Z"},
        {"step": "Started", "millis": 2000, "at": "2025-12-31T22:00:05Z"},
        {"step": "Checked", "millis": 210},
        {"step": "Loaded", "millis": 1200, "bytes": 4_i64 << 30, "rate": "3.58 GB/s"},
        {"step": "Serving", "millis": 5120, "at": "2025-12-31T22:00:06Z"},
    ]);
    let serving = json!({"phase": "Serving", "ready": true, "start": start, "ranks": [{"rank": 0, "pod": "p", "node": "node-2", "phase": "Serving",
        "loadedBytes": 4_i64 << 30, "totalBytes": 4_i64 << 30}]});
    let (deployments, groups) = ([half_ready()], [loading(1 << 30), group("llama-0", serving)]);
    let tree = Tree::of(&deployments, &groups);
    let mut rates = Rates::default();
    rates.look([loading(1 << 29)].iter(), NOW - 500);
    rates.look(groups.iter(), NOW);
    insta::assert_snapshot!(render::text(&tree, &rates, NOW, Paint::plain()), @r#"
    chat/llama  Loading  1/2 groups ready  org/llama  revision 8f2c  2h
    │ Accepted, Placed
    │ Ready=False (Starting) for 5m: 1 of 2 groups serve
    │ Progressing=True (Starting) for 5m: groups start
    ├─ llama-0  Serving  generation 3  revision 8f2c
    │    rank 0  node-2  Serving  ████████████████ 100 %  4.0 GiB
    │    start: placed 1.00s, started 2.00s, checked 0.21s, loaded 1.20s (4.0 GiB at 3.58 GB/s); served after 5.12s
    └─ llama-1  Loading  generation 3  revision 8f2c: ranks read their shards
         rank 0  node-0  Loading     ████░░░░░░░░░░░░  25 %  1.0 GiB of 4.0 GiB, 1.0 GB/s
         rank 1  node-1  Connecting  ████████████████ 100 %  4.0 GiB
    "#);
    let json = tree.json();
    assert_eq!(json[0]["groups"][1]["status"]["ranks"][0]["loadedBytes"], 1 << 30);
    assert!(render::text(&tree, &rates, NOW, Paint::coloured()).contains("\x1b[33mLoading\x1b[0m"));
}

#[test]
fn what_no_operator_has_seen_is_said() {
    let mut unseen = deployment(json!(null));
    let text = |object: &LlamaDeployment| {
        let deployments = [object.clone()];
        render::text(
            &Tree::of(&deployments, &[]),
            &Rates::default(),
            NOW,
            Paint::plain(),
        )
    };
    assert_eq!(
        text(&unseen),
        "chat/llama  no operator has looked at it yet  2h\n"
    );
    unseen = half_ready();
    unseen.metadata.generation = Some(3);
    assert!(text(&unseen).contains("has not seen the latest change"));
}

#[test]
fn rates_come_from_two_looks_that_differ() {
    let mut rates = Rates::default();
    let mut at = |loaded: i64, now: i64| {
        let group = loading(loaded);
        rates.look([group.clone()].iter(), now);
        rates.of(&group, 0)
    };
    assert_eq!(at(1000, 0), None);
    assert_eq!(at(3000, 1000), Some(2000));
    assert_eq!(at(3000, 1500), Some(2000), "the operator writes once a second");
    assert_eq!(at(3000, 60_000), None, "it stands still");
    assert_eq!(at(0, 61_000), None, "it begins anew");
}

#[test]
fn names_are_chosen_or_refused() {
    let all = || vec![deployment(json!(null))];
    assert_eq!(named(all(), &[]).unwrap().len(), 1);
    assert!(
        named(all(), &["other".into()])
            .unwrap_err()
            .to_string()
            .contains("status -A")
    );
}

#[test]
fn text_of_others_does_not_steer_the_terminal() {
    let mut object = half_ready();
    object.status.as_mut().unwrap().conditions[2].message = "\x1b]0;title\x07".into();
    let deployments = [object];
    let text = render::text(
        &Tree::of(&deployments, &[]),
        &Rates::default(),
        NOW,
        Paint::plain(),
    );
    assert!(!text.contains('\x1b') && !text.contains('\x07'));
}
