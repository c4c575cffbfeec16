//! Which groups come and go.

use llamero_api::group::Transport;
use llamero_core::{
    decide,
    observed::{Demand, Deployment, InspectPod, Load, Observed, PodPhase},
    plan::Acceptance,
    time,
};
use serde_json::{Value, json};

use crate::build::*;

fn fleet(change: impl FnOnce(&mut Value), groups: &[(&str, [&str; 2])]) -> Observed {
    let mut deployment = deployment(change);
    deployment.groups = groups
        .iter()
        .map(|(name, nodes)| serving(&deployment, name, *nodes))
        .collect();
    let mut observed = observed(deployment);
    observed.nodes = ["a", "b", "c", "d", "e", "f"].map(|name| node(name, 1)).to_vec();
    count_usage(&mut observed);
    observed
}

fn one(observed: &mut Observed) -> &mut Deployment {
    &mut observed.deployments[0]
}

#[test]
fn scaling_up_fills_the_lowest_free_numbers() {
    let mut observed = fleet(|d| d["spec"]["replicas"] = json!(4), &[("llama-1", ["a", "b"])]);
    std::sync::Arc::make_mut(&mut one(&mut observed).names_in_use).insert("llama-2".into());
    assert_eq!(
        words(&decide(&observed, NOW)),
        [
            "create group llama-0",
            "create group llama-3",
            "create group llama-4"
        ]
    );
}

#[test]
fn scaling_down_takes_the_group_that_serves_nobody() {
    let mut observed = fleet(
        |d| d["spec"]["replicas"] = json!(1),
        &[("llama-0", ["a", "b"]), ("llama-1", ["c", "d"])],
    );
    one(&mut observed).groups[0].pods[0]
        .report
        .as_mut()
        .unwrap()
        .serving = false;
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-0: Draining"]);
}

/// Two serving groups of a deployment that wants `replicas` of them with another image.
fn outdated(replicas: i32, surge: i32) -> Observed {
    let mut observed = fleet(
        |d| d["spec"]["replicas"] = json!(replicas),
        &[("llama-0", ["a", "b"]), ("llama-1", ["c", "d"])],
    );
    let mut changed = deployment(|d| {
        d["spec"]["replicas"] = json!(replicas);
        d["spec"]["rollout"] = json!({"maxSurge": surge});
        d["spec"]["worker"] = json!({"image": "worker:2"});
    });
    changed.groups = one(&mut observed).groups.clone();
    observed.deployments = vec![changed];
    observed
}

#[test]
fn a_changed_template_replaces_groups_one_by_one() {
    let mut observed = outdated(2, 0);
    assert_eq!(words(&decide(&observed, NOW)), ["try the revision on c"]);
    trial(one(&mut observed), PodPhase::Succeeded);
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-1: Draining"]);
    // A group that does not serve goes at once and does not block.
    one(&mut observed).groups[0].pods[0]
        .report
        .as_mut()
        .unwrap()
        .serving = false;
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-0: Draining"]);
}

#[test]
fn a_serving_group_goes_only_when_its_replacement_serves() {
    let mut observed = outdated(2, 1);
    assert_eq!(words(&decide(&observed, NOW)), ["create group llama-2"]);
    let changed = one(&mut observed);
    let mut surge = serving(changed, "llama-2", ["e", "f"]);
    surge.pods[0].report.as_mut().unwrap().serving = false;
    changed.groups.push(surge);
    count_usage(&mut observed);
    assert!(
        decide(&observed, NOW).steps.is_empty(),
        "it loads: {:?}",
        words(&decide(&observed, NOW))
    );
    one(&mut observed).groups[2].pods[0]
        .report
        .as_mut()
        .unwrap()
        .serving = true;
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-1: Draining"]);
}

#[test]
fn a_mistyped_image_takes_no_serving_group_down() {
    let mut observed = outdated(2, 1);
    let changed = one(&mut observed);
    let mut stuck = serving(changed, "llama-2", ["e", "f"]);
    for pod in &mut stuck.pods {
        (pod.report, pod.ready, pod.waiting) = (None, false, Some("ImagePullBackOff".into()));
    }
    status(&mut stuck, |status| status.ready = false);
    changed.groups.push(stuck);
    let plan = decide(&observed, NOW);
    assert!(
        words(&plan).iter().all(|word| !word.contains("Draining")),
        "{:?}",
        words(&plan)
    );
}

#[test]
fn where_a_surge_finds_no_room_one_group_goes_first() {
    let mut observed = outdated(2, 1);
    observed.nodes.truncate(4);
    let changed = one(&mut observed);
    let surge = group(changed, "llama-2", &[(0, None, None), (0, None, None)]);
    changed.groups.push(surge);
    assert!(
        decide(&observed, NOW).steps.is_empty(),
        "nobody has looked for room yet"
    );
    status(&mut one(&mut observed).groups[2], |status| {
        status.unplaceable_since = Some(time::to_time(NOW))
    });
    trial(one(&mut observed), PodPhase::Succeeded);
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-1: Draining"]);
}

#[test]
fn a_rollout_waits_when_too_few_serve_and_says_so() {
    let mut observed = outdated(3, 0);
    let changed = one(&mut observed);
    let third = group(changed, "llama-2", &[(0, None, None), (0, None, None)]);
    changed.groups.push(third);
    observed.nodes.truncate(4);
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = status_at(&observed, NOW);
    let (_, why, message) = condition(&status, "Progressing");
    assert_eq!(why, "RollingOut");
    assert!(
        message.contains("2 of 3 groups serve, so replacing more waits"),
        "{message}"
    );
}

#[test]
fn a_paused_rollout_replaces_nothing() {
    let mut observed = fleet(|d| d["spec"]["replicas"] = json!(1), &[("llama-0", ["a", "b"])]);
    let mut changed = deployment(|d| {
        d["spec"]["worker"] = json!({"image": "worker:2"});
        d["spec"]["rollout"] = json!({"paused": true});
    });
    changed.groups = one(&mut observed).groups.clone();
    observed.deployments = vec![changed];
    assert!(decide(&observed, NOW).steps.is_empty());
}

#[test]
fn another_default_image_of_the_operator_rolls_nobody() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    observed.settings.worker_image = "worker:99".into();
    assert!(decide(&observed, NOW).steps.is_empty());
}

#[test]
fn a_going_group_counts_until_it_is_gone() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    spec(&mut one(&mut observed).groups[0], |s| {
        s.intent = llamero_api::group::Intent::Drain;
        s.drain_since = Some(time::to_time(NOW));
    });
    assert_eq!(words(&decide(&observed, NOW)), ["drain llama-0"]);
}

#[test]
fn a_checkpoint_is_looked_into_before_any_group_is_made() {
    let unknown = |d: &mut Value| {
        d["status"] =
            json!({"checkpoint": {"key": "other", "inspectedAt": "2026-01-01T00:00:00Z", "error": "x"}})
    };
    let mut observed = observed(deployment(unknown));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["create inspect pod"]);
    let llamero_core::Action::CreateInspectPod { key, name, .. } = plan.steps[0].action.clone() else {
        panic!()
    };
    one(&mut observed).inspect = vec![InspectPod {
        name,
        uid: "i".into(),
        key: key.clone(),
        ..InspectPod::default()
    }];
    assert!(decide(&observed, NOW).steps.is_empty());

    let pod = &mut one(&mut observed).inspect[0];
    pod.phase = PodPhase::Succeeded;
    pod.result = Some(serde_json::to_string(&summary()).unwrap());
    let plan = decide(&observed, NOW + 2000);
    assert_eq!(words(&plan), ["create group llama-0"]);
    assert_eq!(
        plan.verdicts
            .values()
            .next()
            .unwrap()
            .checkpoint
            .as_ref()
            .unwrap()
            .key,
        key
    );
}

#[test]
fn an_unreadable_checkpoint_is_told_and_tried_again() {
    let failed = |d: &mut Value| {
        let spec = serde_json::from_value(d["spec"].clone()).unwrap();
        d["status"] = json!({"checkpoint": {
            "key": llamero_core::revision::inspect_key(&spec), "podUID": "i", "inspectedAt": time::to_time(NOW), "error": "no config.json in /model"
        }});
    };
    let mut observed = observed(deployment(failed));
    let plan = decide(&observed, NOW + 1000);
    assert!(plan.steps.is_empty());
    assert_eq!(plan.next_at, Some(NOW + 60_000));
    assert_eq!(
        plan.verdicts.values().next().unwrap().acceptance,
        Acceptance::Unreadable("no config.json in /model".into())
    );
    assert_eq!(words(&decide(&observed, NOW + 60_000)), ["create inspect pod"]);
    // The pod of the recorded inspection is cleared away.
    let key = llamero_core::revision::inspect_key(&one(&mut observed).object.spec);
    one(&mut observed).inspect = vec![InspectPod {
        name: "i".into(),
        uid: "i".into(),
        key,
        phase: PodPhase::Failed,
        ..InspectPod::default()
    }];
    assert_eq!(words(&decide(&observed, NOW + 1000)), ["delete pod i in 0"]);
}

#[test]
fn a_corrected_setting_heals_an_inspect_pod_that_cannot_start() {
    let unknown = |image: &'static str| {
        move |d: &mut Value| {
            d["spec"]["worker"] = json!({"image": image});
            d["status"] =
                json!({"checkpoint": {"key": "other", "inspectedAt": "2026-01-01T00:00:00Z", "error": "x"}});
        }
    };
    let mut observed = observed(deployment(unknown("worker:typo")));
    let object = one(&mut observed).object.clone();
    one(&mut observed).inspect = vec![InspectPod {
        name: "i".into(),
        uid: "i".into(),
        key: llamero_core::revision::inspect_key(&object.spec),
        settings: llamero_core::revision::settings_digest(&object.spec.worker),
        waiting: Some("ImagePullBackOff".into()),
        ..InspectPod::default()
    }];
    assert!(decide(&observed, NOW).steps.is_empty());
    let mut corrected = deployment(unknown("worker:1"));
    corrected.inspect = one(&mut observed).inspect.clone();
    observed.deployments = vec![corrected];
    assert_eq!(words(&decide(&observed, NOW)), ["delete pod i in 0"]);
    one(&mut observed).inspect.clear();
    assert_eq!(words(&decide(&observed, NOW)), ["create inspect pod"]);
}

#[test]
fn what_does_not_fit_takes_no_accelerator() {
    let observed = observed(deployment(|d| d["spec"]["accelerator"]["memory"] = json!("5Gi")));
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty());
    let Acceptance::Refused(why) = &plan.verdicts.values().next().unwrap().acceptance else {
        panic!()
    };
    assert!(why.contains("what would fit: parallelism.tensor 4"), "{why}");
}

/// An autoscaled deployment with `spec.replicas`, written by `manager`, that was last decided to have `decided` groups.
fn autoscaled(
    replicas: i32,
    manager: Option<&str>,
    decided: Option<i32>,
    groups: &[(&str, [&str; 2])],
) -> Observed {
    let mut observed = fleet(
        |d| {
            d["metadata"]["resourceVersion"] = json!("41");
            d["spec"]["replicas"] = json!(replicas);
            d["spec"]["autoscaling"] =
                json!({"minReplicas": 0, "maxReplicas": 3, "targetRequestsPerGroup": 4});
            if let Some(decided) = decided {
                d["status"] = json!({"desiredReplicas": decided, "autoscaling": {}});
            }
        },
        groups,
    );
    one(&mut observed).replicas_manager = manager.map(str::to_owned);
    observed
}

fn demand(held: u32) -> Option<Demand> {
    Some(Demand {
        held,
        in_flight: 0,
        total: 1,
        received_at: NOW,
    })
}

const OURS: Option<&str> = Some("llamero-operator");

#[test]
fn what_autoscaling_recommends_is_written_before_a_group_is_made() {
    let mut observed = autoscaled(0, OURS, Some(0), &[]);
    assert!(decide(&observed, NOW).steps.is_empty());
    one(&mut observed).demand = demand(1);
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["scale to 1"]);
    let llamero_core::Action::ScaleDeployment { resource_version, .. } = &plan.steps[0].action else {
        panic!()
    };
    assert_eq!(resource_version, "41");
    // Another operator takes over before any status is written: the decision is in the specification.
    let mut written = autoscaled(1, OURS, Some(0), &[]);
    one(&mut written).demand = demand(0);
    assert_eq!(words(&decide(&written, NOW)), ["create group llama-0"]);
}

#[test]
fn autoscaling_follows_the_load() {
    let mut observed = autoscaled(1, OURS, Some(1), &[("llama-0", ["a", "b"])]);
    one(&mut observed).groups[0].load = Some(Load {
        running: 4,
        waiting: 5,
        received_at: NOW,
    });
    assert_eq!(words(&decide(&observed, NOW)), ["scale to 3"]);
}

#[test]
fn the_first_pass_after_an_upgrade_takes_what_was_decided_not_the_default() {
    let mut observed = autoscaled(
        1,
        None,
        Some(2),
        &[("llama-0", ["a", "b"]), ("llama-1", ["c", "d"])],
    );
    for group in &mut one(&mut observed).groups {
        group.load = Some(Load {
            running: 4,
            waiting: 0,
            received_at: NOW,
        });
    }
    assert_eq!(words(&decide(&observed, NOW)), ["scale to 2"]);
}

#[test]
fn a_foreign_writer_is_told_and_written_over() {
    let mut observed = autoscaled(3, Some("kubectl-edit"), Some(1), &[("llama-0", ["a", "b"])]);
    one(&mut observed).groups[0].load = Some(Load {
        running: 1,
        waiting: 0,
        received_at: NOW,
    });
    // First it is told: once the number is written back, nobody knows any more who wrote it.
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), Vec::<String>::new());
    let status = status_at(&observed, NOW);
    let (scalable, why, message) = condition(&status, "Scalable");
    assert_eq!((scalable, why), ("False", "ForeignWriter"));
    assert!(message.contains("kubectl-edit wrote spec.replicas"), "{message}");
    std::sync::Arc::make_mut(&mut one(&mut observed).object).status = Some(status);
    assert_eq!(words(&decide(&observed, NOW)), ["scale to 1"]);
}

#[test]
fn a_foreign_writer_who_guesses_right_is_followed() {
    // The decision was written, then somebody wrote the same number again before any status told it.
    let mut observed = autoscaled(1, Some("kubectl-scale"), Some(0), &[]);
    one(&mut observed).demand = demand(1);
    assert_eq!(words(&decide(&observed, NOW)), ["create group llama-0"]);
}

#[test]
fn a_new_deployment_begins_with_the_replicas_it_was_made_with() {
    let observed = autoscaled(2, Some("kubectl-client-side-apply"), None, &[]);
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["create group llama-0", "create group llama-1"]
    );
}

#[test]
fn a_model_name_belongs_to_the_older_deployment() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    let mut younger = deployment(|d| {
        d["metadata"] = json!({"name": "other", "namespace": "elsewhere", "uid": "uid-other", "creationTimestamp": "2026-02-01T00:00:00Z"});
        d["spec"]["model"]["name"] = json!("llama");
    });
    younger.groups.clear();
    observed.deployments.push(younger);
    let plan = decide(&observed, NOW);
    let reports = llamero_core::report(&observed, &plan, NOW).deployments;
    let routable: Vec<(&str, &str)> = reports
        .values()
        .map(|status| condition(status, "Routable"))
        .map(|(status, _, message)| (status, message))
        .collect();
    assert_eq!(routable[0].0, "False");
    assert!(
        routable[0].1.contains("LlamaDeployment ns/llama is older"),
        "{}",
        routable[0].1
    );
    assert!(
        routable[0].1.contains("ask for elsewhere/llama"),
        "{}",
        routable[0].1
    );
    assert_eq!(routable[1], ("True", ""));
}

#[test]
fn a_name_that_looks_like_another_s_in_its_namespace_is_not_taken() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    let mimic = deployment(|d| {
        d["metadata"] = json!({"name": "mimic", "namespace": "elsewhere", "uid": "uid-mimic", "creationTimestamp": "2025-01-01T00:00:00Z"});
        d["spec"]["model"]["name"] = json!("ns/llama");
    });
    observed.deployments.push(mimic);
    let reports = llamero_core::report(&observed, &decide(&observed, NOW), NOW).deployments;
    let routable: Vec<&str> = reports
        .values()
        .map(|status| condition(status, "Routable").0)
        .collect();
    assert_eq!(routable, ["False", "True"]);
}

#[test]
fn a_service_that_somebody_changed_is_put_right() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    assert!(decide(&observed, NOW).steps.is_empty());
    let service = std::sync::Arc::make_mut(one(&mut observed).service.as_mut().unwrap());
    service.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].port = 1;
    assert_eq!(words(&decide(&observed, NOW)), ["apply service"]);
}

#[test]
fn a_revision_is_kept_before_a_group_is_made_from_it() {
    let mut observed = fleet(|_| {}, &[]);
    one(&mut observed).revisions.clear();
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["keep revision 1"]);
    let llamero_core::Action::CreateRevision { name, digest, .. } = &plan.steps[0].action else {
        panic!()
    };
    assert_eq!(*name, format!("llama-{digest}"));
}

#[test]
fn an_operator_that_kept_no_revisions_left_its_snapshot_in_the_groups() {
    let mut observed = fleet(|_| {}, &[("llama-0", ["a", "b"])]);
    one(&mut observed).revisions.clear();
    observed.settings.worker_image = "worker:99".into();
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["keep revision 1"]);
    let llamero_core::Action::CreateRevision { template, .. } = &plan.steps[0].action else {
        panic!()
    };
    assert_eq!(template.worker.image.as_deref(), Some("worker:1"));
}

#[test]
fn a_group_made_after_an_upgrade_is_like_the_others_of_its_revision() {
    let mut observed = fleet(|d| d["spec"]["replicas"] = json!(2), &[("llama-0", ["a", "b"])]);
    observed.settings.worker_image = "worker:99".into();
    let plan = decide(&observed, NOW);
    let llamero_core::Action::CreateGroup { spec, .. } = &plan.steps[0].action else {
        panic!("{:?}", words(&plan))
    };
    assert_eq!(spec.template.worker.image.as_deref(), Some("worker:1"));
}

#[test]
fn going_back_finds_the_old_revision_and_history_has_a_limit() {
    let mut observed = fleet(
        |d| d["spec"]["revisionHistoryLimit"] = json!(1),
        &[("llama-0", ["a", "b"])],
    );
    let deployment = one(&mut observed);
    for (name, number) in [("old", 2), ("older", 0)] {
        let mut revision = deployment.revisions[0].clone();
        (revision.name, revision.digest, revision.number) = (name.into(), name.into(), number);
        deployment.revisions.push(revision);
    }
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["forget older", "number revision 3"]
    );
}

#[test]
fn another_image_is_asked_anew_for_its_backends() {
    let mut observed = observed(deployment(|_| {}));
    let object = std::sync::Arc::make_mut(&mut one(&mut observed).object);
    let checkpoint = object.status.as_mut().unwrap().checkpoint.as_mut().unwrap();
    checkpoint.summary.as_mut().unwrap().backends.clear();
    checkpoint.image = Some("worker:1".into());
    assert!(decide(&observed, NOW).steps.is_empty());
    observed.settings.worker_image = "worker:2".into();
    assert_eq!(words(&decide(&observed, NOW)), ["create inspect pod"]);
}

#[test]
fn another_image_is_asked_anew_whether_it_has_kv_caches_in_fp8() {
    for (dtype, steps) in [("fp8", &["create inspect pod"][..]), ("auto", &[])] {
        let mut observed = fleet(
            |object| object["spec"]["engine"] = json!({"kvCache": {"dtype": dtype}}),
            &[("llama-0", ["a", "b"])],
        );
        let object = std::sync::Arc::make_mut(&mut one(&mut observed).object);
        let checkpoint = object.status.as_mut().unwrap().checkpoint.as_mut().unwrap();
        checkpoint.summary.as_mut().unwrap().fp8_kv_backends = vec!["cpu".into()];
        checkpoint.image = Some("worker:2".into());
        observed.settings.worker_image = "worker:1".into();
        let said = words(&decide(&observed, NOW));
        let inspects: Vec<_> = said.iter().filter(|step| step.contains("inspect")).collect();
        assert_eq!(inspects, steps, "{dtype}: {said:?}");
    }
}

#[test]
fn an_image_without_the_backend_takes_no_accelerator() {
    let mut observed = observed(deployment(|_| {}));
    let object = std::sync::Arc::make_mut(&mut one(&mut observed).object);
    let checkpoint = object.status.as_mut().unwrap().checkpoint.as_mut().unwrap();
    checkpoint.summary.as_mut().unwrap().backends.clear();
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = status_at(&observed, NOW);
    let (accepted, why, message) = condition(&status, "Accepted");
    assert_eq!((accepted, why), ("False", "NoBackend"));
    assert!(message.contains("computes on cpu only"), "{message}");
}

#[test]
fn a_deployment_that_is_being_deleted_is_left_to_the_garbage_collector() {
    let observed = fleet(
        |d| d["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        &[("llama-0", ["a", "b"])],
    );
    assert_eq!(decide(&observed, NOW), llamero_core::Plan::default());
}

/// The installation's bounds are asked before any pod is made, and bind groups to come; what serves goes on.
#[test]
fn what_the_installation_does_not_allow_makes_no_pod_and_takes_none() {
    let mut observed = with(|deployment| {
        deployment.groups = vec![serving(deployment, "llama-0", ["a", "b"])];
        let object = std::sync::Arc::make_mut(&mut deployment.object);
        object.spec.worker.image = Some("elsewhere/worker:2".into());
        object.spec.replicas = 2;
    });
    observed.settings.policy.images = vec!["ours/*".into()];
    let plan = decide(&observed, NOW);
    let harmful = words(&plan);
    let harmful: Vec<&String> = harmful
        .iter()
        .filter(|word| word.contains("create") || word.contains("write"))
        .collect();
    assert!(harmful.is_empty(), "{harmful:?}");
    let (status, reason, message) = {
        let status = status_at(&observed, NOW);
        let (status, reason, message) = condition(&status, "Accepted");
        (status.to_owned(), reason.to_owned(), message.to_owned())
    };
    assert_eq!((status.as_str(), reason.as_str()), ("False", "PolicyRefused"));
    assert!(message.contains("worker.image elsewhere/worker:2"), "{message}");

    // A kept revision is no way around it.
    let digest = observed.deployments[0].revisions[0].digest.clone();
    let deployment = &mut observed.deployments[0];
    let object = std::sync::Arc::make_mut(&mut deployment.object);
    object.spec.worker.image = None;
    object.spec.rollout.revision = Some(digest);
    let template = deployment.revisions[0].template.as_mut().unwrap();
    template.worker.image = Some("elsewhere/worker:1".into());
    assert_eq!(
        condition(&status_at(&observed, NOW), "Accepted").1,
        "PolicyRefused"
    );
}

fn made_from(observed: &Observed) -> Vec<Transport> {
    let plan = decide(observed, NOW);
    let made = plan.steps.iter().filter_map(|step| match &step.action {
        llamero_core::Action::CreateGroup { spec, .. } => Some(spec.template.transport),
        llamero_core::Action::CreateRevision { template, .. } => Some(template.transport),
        _ => None,
    });
    made.collect()
}

#[test]
fn no_new_group_has_plain_text_where_links_are_authenticated_unless_it_joins_others() {
    let two = |d: &mut Value| d["spec"]["replicas"] = json!(2);
    let mut joining = fleet(two, &[("llama-0", ["a", "b"])]);
    joining.settings.transport = Transport::Mutual;
    assert_eq!(
        made_from(&joining),
        [Transport::Plain],
        "an upgrade changes nothing"
    );

    // Nobody runs it any more: it is made anew.
    let mut alone = fleet(two, &[]);
    alone.settings.transport = Transport::Mutual;
    let digest = one(&mut alone).revisions[0].digest.clone();
    assert_eq!(words(&decide(&alone, NOW)), [format!("forget llama-{digest}")]);
    one(&mut alone).revisions.clear();
    assert_eq!(made_from(&alone), [Transport::Mutual]);

    // Going back to it while some of its groups are left.
    let newer = |observed: &mut Observed| {
        let mut revision = one(observed).revisions[0].clone();
        (revision.name, revision.digest, revision.number) = ("new".into(), "new".into(), 2);
        one(observed).revisions.push(revision);
    };
    newer(&mut joining);
    let back = words(&decide(&joining, NOW));
    assert!(back.contains(&format!("forget llama-{digest}")), "{back:?}");
    one(&mut joining).revisions.remove(0);
    assert_eq!(made_from(&joining), [Transport::Mutual]);

    // The same by its name.
    let mut named = fleet(|d| d["spec"]["rollout"] = json!({"revision": digest}), &[]);
    one(&mut named).revisions[0].digest.clone_from(&digest);
    newer(&mut named);
    assert_eq!(made_from(&named), [Transport::Plain]);
    named.settings.transport = Transport::Mutual;
    assert_eq!(made_from(&named), [Transport::Mutual]);
}
