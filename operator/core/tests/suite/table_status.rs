//! What is reported.

use std::sync::Arc;

use llamero_api::{
    LlamaDeploymentStatus,
    deployment::{Inference, InferenceAuth, condition as kind, reason},
    group::{GroupPhase, RankPhase, Transport},
};
use llamero_core::{decide, observed::Observed, report, resources::Resources};
use serde_json::json;

use crate::build::*;

fn status(observed: &Observed) -> LlamaDeploymentStatus {
    status_at(observed, NOW)
}

#[test]
fn all_is_well() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    let status = status(&observed);
    assert_eq!(
        (
            status.phase.as_str(),
            status.ready.as_str(),
            status.loaded.as_str()
        ),
        ("Serving", "1/1", "2.0/8.0 GiB")
    );
    assert_eq!(
        status.selector,
        "llamero.dev/deployment=llama,llamero.dev/role=leader"
    );
    assert_eq!(status.message, "");
    for (type_, expected) in [
        (kind::ACCEPTED, "True"),
        (kind::PLACED, "True"),
        (kind::READY, "True"),
        (kind::PROGRESSING, "False"),
        (kind::DEGRADED, "False"),
    ] {
        assert_eq!(condition(&status, type_).0, expected, "{type_}");
    }
}

#[test]
fn groups_that_need_certificates_say_when_none_are_given_out() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    observed.settings.unenrollable = Some("switch it on again".to_owned());
    assert_eq!(
        condition(&status(&observed), kind::DEGRADED).0,
        "False",
        "links in plain text"
    );
    let group = &mut observed.deployments[0].groups[0];
    Arc::make_mut(&mut group.object).spec.template.transport = Transport::Mutual;
    let told = status(&observed);
    let (degraded, why, message) = condition(&told, kind::DEGRADED);
    assert_eq!((degraded, why), ("True", reason::LINKS_UNREACHABLE));
    assert!(
        message.contains("llama-0") && message.contains("switch it on again"),
        "{message}"
    );
}

#[test]
fn switching_authenticated_links_on_rolls_nothing_and_names_what_is_still_plain() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    let has_condition = |status: &LlamaDeploymentStatus| {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == kind::INSECURE_LINKS)
    };
    assert!(!has_condition(&status(&observed)), "nobody asked for it");
    let before = words(&decide(&observed, NOW));

    observed.settings.transport = Transport::Mutual;
    assert_eq!(words(&decide(&observed, NOW)), before);
    let told = status(&observed);
    let (insecure, why, message) = condition(&told, kind::INSECURE_LINKS);
    assert_eq!((insecure, why), ("True", reason::OLDER_REVISION));
    assert!(
        message.contains("llama-0") && message.contains("restartedAt"),
        "{message}"
    );
    assert_eq!(condition(&told, kind::READY).0, "True");

    let group = &mut observed.deployments[0].groups[0];
    Arc::make_mut(&mut group.object).spec.template.transport = Transport::Mutual;
    assert_eq!(condition(&status(&observed), kind::INSECURE_LINKS).0, "False");

    let inference = Inference {
        auth: Some(InferenceAuth::None),
        client_ca_bundle: None,
        adapter_clients: vec![],
    };
    let group = &mut observed.deployments[0].groups[0];
    Arc::make_mut(&mut group.object).spec.template.worker.inference = Some(inference);
    let told = status(&observed);
    let (insecure, why, message) = condition(&told, kind::INSECURE_LINKS);
    assert_eq!((insecure, why), ("True", reason::AS_WANTED));
    assert!(
        message.contains("llama-0") && message.contains("a mesh"),
        "{message}"
    );
}

#[test]
fn definitions_that_drop_fields_are_told_everywhere() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    observed.settings.definitions = Some("of release 0.0.1".into());
    let status = status(&observed);
    let (degraded, why, message) = condition(&status, kind::DEGRADED);
    assert_eq!((degraded, why), ("True", reason::DEFINITIONS_OUTDATED));
    assert_eq!(
        (message, condition(&status, kind::READY).0),
        ("of release 0.0.1", "True")
    );
}

#[test]
fn the_phases_of_a_start() {
    let mut deployment = deployment(|_| {});
    let members = [(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))];
    let mut seen = Vec::new();
    for phase in [
        RankPhase::Preflight,
        RankPhase::Loading,
        RankPhase::Connecting,
        RankPhase::Warming,
        RankPhase::Serving,
    ] {
        let mut group = group(&deployment, "llama-0", &members);
        group.pods = vec![
            running("llama-0", 0, 0, "u0", "a", 1, RankPhase::Connecting),
            running("llama-0", 1, 0, "u1", "b", 1, phase),
        ];
        group.pods[0].report.as_mut().unwrap().serving = phase == RankPhase::Serving;
        deployment.groups = vec![group];
        seen.push(status(&observed(deployment.clone())).phase);
    }
    assert_eq!(seen, ["Starting", "Loading", "Forming", "Forming", "Serving"]);
}

#[test]
fn no_room_says_what_is_missing() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![group(&deployment, "llama-0", &[(0, None, None), (0, None, None)])];
    let mut observed = observed(deployment);
    for node in &mut observed.nodes {
        node.used.insert(0, Resources::new().with(GPU, 1));
    }
    let status = status(&observed);
    let (placed, why, message) = condition(&status, kind::PLACED);
    assert_eq!((placed, why), ("False", reason::NO_ROOM));
    assert_eq!(
        message,
        "group llama-0 needs 2 nodes with 2.0 GiB memory, 1 nvidia.com/gpu each; too few have room: some are short of nvidia.com/gpu"
    );
    assert_eq!(
        (status.phase.as_str(), status.message.as_str()),
        ("Pending", message)
    );
    assert_eq!(condition(&status, kind::READY).0, "False");
}

#[test]
fn a_lost_member_degrades_and_tells_the_last_words() {
    let mut deployment = deployment(|_| {});
    let mut hurt = serving(&deployment, "llama-0", ["a", "b"]);
    hurt.pods[0].report.as_mut().unwrap().serving = false;
    hurt.pods.remove(1);
    spec(&mut hurt, |s| {
        s.members[1] = serde_json::from_value(
            json!({"index": 1, "attempt": 1, "node": "c", "placedAt": "2026-01-01T00:00:00Z"}),
        )
        .unwrap();
        s.failures = vec![
            serde_json::from_value(json!({
                "time": "2026-01-01T00:00:00Z", "index": 1, "attempt": 0, "node": "b", "reason": "Exited", "exitCode": 139, "message": "signal 11", "charged": true
            }))
            .unwrap(),
        ];
    });
    deployment.groups = vec![hurt];
    let status = status(&observed(deployment));
    assert_eq!(status.phase, "Recovering");
    let (degraded, why, message) = condition(&status, kind::DEGRADED);
    assert_eq!((degraded, why), ("True", reason::RECOVERING));
    assert!(
        message.contains("member 1 on b exited with code 139: signal 11"),
        "{message}"
    );
    assert_eq!(
        status.groups[0].last_failure.as_ref().unwrap().exit_code,
        Some(139)
    );
}

#[test]
fn a_condition_keeps_its_time_while_its_status_stays() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    let first = status(&observed);
    std::sync::Arc::make_mut(&mut observed.deployments[0].object).status = Some(first.clone());
    let plan = decide(&observed, NOW + 90_000);
    // Reports are stale by then; the probe of the leader still counts.
    observed.deployments[0].groups[0].pods[0].ready = true;
    let later = report(&observed, &plan, NOW + 90_000)
        .deployments
        .into_values()
        .next()
        .unwrap();
    assert_eq!(later.conditions, first.conditions);
}

#[test]
fn an_image_that_cannot_be_pulled_is_told() {
    let mut deployment = deployment(|_| {});
    let mut group = group(
        &deployment,
        "llama-0",
        &[(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))],
    );
    group.pods = vec![
        running("llama-0", 0, 0, "u0", "a", 1, RankPhase::Connecting),
        running("llama-0", 1, 0, "u1", "b", 0, RankPhase::Unknown),
    ];
    group.pods[1].report = None;
    group.pods[1].waiting = Some("ImagePullBackOff: no such image worker:1".into());
    deployment.groups = vec![group];
    let status = status(&observed(deployment));
    let (degraded, why, message) = condition(&status, kind::DEGRADED);
    assert_eq!((degraded, why), ("True", reason::PODS_NOT_STARTING));
    assert!(message.contains("no such image worker:1"), "{message}");
}

#[test]
fn a_serving_group_does_not_write_its_counters_every_second() {
    let mut deployment = deployment(|_| {});
    deployment.groups = vec![serving(&deployment, "llama-0", ["a", "b"])];
    let mut observed = observed(deployment);
    count_usage(&mut observed);
    let plan = decide(&observed, NOW);
    let first = report(&observed, &plan, NOW).groups.into_values().next().unwrap();
    let group = &mut observed.deployments[0].groups[0];
    crate::build::status(group, |status| *status = first.clone());
    for pod in &mut group.pods {
        let report = pod.report.as_mut().unwrap();
        report.ranks[0].entered += 1000;
    }
    let second = report(&observed, &plan, NOW + 1000)
        .groups
        .into_values()
        .next()
        .unwrap();
    assert_eq!((second.phase, &second), (GroupPhase::Serving, &first));
}
