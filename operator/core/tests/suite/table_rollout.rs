//! How revisions follow each other: Recreate, going back, restarts, and rollouts that get stuck.

use llamero_api::{
    LlamaDeploymentStatus,
    deployment::{condition, reason},
    group::Intent,
};
use llamero_core::{decide, observed::Observed, plan::Acceptance, report, time};
use serde_json::{Value, json};

use crate::build::*;

/// Two serving groups of the first words, and a deployment with other words.
fn changed(change: impl FnOnce(&mut Value)) -> Observed {
    let first = deployment(|d| d["spec"]["replicas"] = json!(2));
    let groups = vec![
        serving(&first, "llama-0", ["a", "b"]),
        serving(&first, "llama-1", ["c", "d"]),
    ];
    let mut changed = deployment(|d| {
        d["spec"]["replicas"] = json!(2);
        d["spec"]["worker"] = json!({"image": "worker:2"});
        change(d);
    });
    changed.groups = groups;
    changed.revisions.extend(first.revisions);
    // The words changed last, so their revision is the newest.
    changed.revisions[0].number = 2;
    let mut observed = observed(changed);
    observed.nodes = ["a", "b", "c", "d", "e", "f"].map(|name| node(name, 1)).to_vec();
    count_usage(&mut observed);
    observed
}

fn first_revision() -> String {
    deployment(|d| d["spec"]["replicas"] = json!(2)).revisions[0]
        .digest
        .clone()
}

fn status_at(observed: &Observed, now: i64) -> LlamaDeploymentStatus {
    let plan = decide(observed, now);
    report(observed, &plan, now)
        .deployments
        .into_values()
        .next()
        .unwrap()
}

fn of<'a>(status: &'a LlamaDeploymentStatus, type_: &str) -> (&'a str, &'a str, &'a str) {
    let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
    (&found.status, &found.reason, &found.message)
}

/// Reports of pods are of this time.
fn hear(observed: &mut Observed, now: i64) {
    for report in observed.deployments[0]
        .groups
        .iter_mut()
        .flat_map(|group| &mut group.pods)
        .flat_map(|pod| &mut pod.report)
    {
        (report.received_at, report.alive_at) = (now, now);
    }
}

fn keep(observed: &mut Observed, status: LlamaDeploymentStatus) {
    let object = std::sync::Arc::make_mut(&mut observed.deployments[0].object);
    object.status = Some(status);
}

#[test]
fn recreate_lets_all_old_groups_go_before_it_makes_one() {
    let mut observed = changed(|d| d["spec"]["rollout"] = json!({"strategy": "Recreate"}));
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["write llama-1: Draining", "write llama-0: Draining"]
    );
    for group in &mut observed.deployments[0].groups {
        spec(group, |s| {
            s.intent = Intent::Drain;
            s.drain_since = Some(time::to_time(NOW));
        });
    }
    // One is gone, the other one still has its nodes.
    observed.deployments[0].groups.pop();
    assert_eq!(words(&decide(&observed, NOW)), ["drain llama-0"]);
    observed.deployments[0].groups.clear();
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["create group llama-0", "create group llama-1"]
    );
}

#[test]
fn a_paused_recreate_takes_nothing_down_and_still_scales() {
    let mut observed = changed(|d| d["spec"]["rollout"] = json!({"strategy": "Recreate", "paused": true}));
    assert!(decide(&observed, NOW).steps.is_empty());
    observed.deployments[0].groups.pop();
    assert_eq!(words(&decide(&observed, NOW)), ["create group llama-1"]);
}

#[test]
fn a_named_revision_is_gone_back_to_whatever_the_words_say() {
    let observed = changed(|d| {
        d["spec"]["rollout"] = json!({"revision": first_revision()});
        // The words of today do not fit.
        d["spec"]["accelerator"]["memory"] = json!("5Gi");
    });
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = status_at(&observed, NOW);
    assert_eq!(status.revision, first_revision());
    let (accepted, _, message) = of(&status, condition::ACCEPTED);
    assert_eq!(accepted, "True");
    assert!(message.contains(&first_revision()), "{message}");

    let mut fewer = observed;
    fewer.deployments[0].groups.pop();
    let plan = decide(&fewer, NOW);
    let llamero_core::Action::CreateGroup { spec, .. } = &plan.steps[0].action else {
        panic!("{:?}", words(&plan))
    };
    assert_eq!(spec.revision, first_revision());
    assert_eq!(spec.template.worker.image.as_deref(), Some("worker:1"));
}

#[test]
fn a_revision_that_is_not_kept_is_refused_with_those_that_are() {
    let observed = changed(|d| d["spec"]["rollout"] = json!({"revision": "0123456789"}));
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let Acceptance::NoRevision(why) = &plan.verdicts.values().next().unwrap().acceptance else {
        panic!()
    };
    assert!(
        why.contains("0123456789, which is not kept") && why.contains(&first_revision()),
        "{why}"
    );
    let status = status_at(&observed, NOW);
    assert_eq!(of(&status, condition::STALLED).1, reason::REVISION_UNKNOWN);
    assert_eq!(of(&status, condition::READY).0, "True", "what serves serves on");
}

#[test]
fn a_restart_reads_the_checkpoint_again_before_anything_goes() {
    let mut observed = changed(|_| {});
    let known = observed.deployments[0].object.status.clone();
    let mut restarted = deployment(|d| {
        d["spec"]["replicas"] = json!(2);
        d["spec"]["rollout"] = json!({"restartedAt": "2026-03-01T00:00:00Z"});
        d["status"] = serde_json::to_value(known).unwrap();
    });
    restarted.groups = observed.deployments[0].groups.clone();
    observed.deployments = vec![restarted];
    assert_eq!(words(&decide(&observed, NOW)), ["create inspect pod"]);
    // Once it was read, the groups are replaced although not a word about them changed.
    let mut read = deployment(|d| {
        d["spec"]["replicas"] = json!(2);
        d["spec"]["rollout"] = json!({"restartedAt": "2026-03-01T00:00:00Z"});
    });
    read.groups = observed.deployments[0].groups.clone();
    observed.deployments = vec![read];
    count_usage(&mut observed);
    assert_eq!(words(&decide(&observed, NOW)), ["create group llama-2"]);
}

#[test]
fn a_rollout_that_gets_no_further_is_told_and_one_that_loads_is_not() {
    let deadline = 60_000;
    let mut observed = changed(|d| d["spec"]["rollout"] = json!({"progressDeadline": "60s"}));
    let mut loading = serving(&observed.deployments[0], "llama-2", ["e", "f"]);
    loading.pods[0].report.as_mut().unwrap().serving = false;
    crate::build::status(&mut loading, |status| status.ready = false);
    observed.deployments[0].groups.push(loading);
    count_usage(&mut observed);
    let first = status_at(&observed, NOW);
    assert!(first.rollout.is_some());
    assert_eq!(of(&first, condition::PROGRESSING).0, "True");
    assert_eq!(of(&first, condition::RECONCILING).0, "True");
    keep(&mut observed, first);
    assert!(decide(&observed, NOW).next_at.unwrap() <= NOW + deadline);

    // Bytes were loaded meanwhile: the clock begins anew.
    hear(&mut observed, NOW + deadline - 1000);
    let rank = &mut observed.deployments[0].groups[2].pods[0]
        .report
        .as_mut()
        .unwrap()
        .ranks[0];
    rank.loaded_bytes += 1;
    let second = status_at(&observed, NOW + deadline - 1000);
    keep(&mut observed, second);
    hear(&mut observed, NOW + deadline);
    assert_eq!(
        of(&status_at(&observed, NOW + deadline), condition::PROGRESSING).0,
        "True"
    );

    hear(&mut observed, NOW + 2 * deadline);
    let late = status_at(&observed, NOW + 2 * deadline);
    let (status, why, message) = of(&late, condition::PROGRESSING);
    assert_eq!((status, why), ("False", reason::PROGRESS_DEADLINE_EXCEEDED));
    assert!(message.contains("set rollout.revision to go back"), "{message}");
    assert_eq!(of(&late, condition::STALLED).0, "True");
    assert_eq!(of(&late, condition::RECONCILING).0, "False");
    assert_eq!(of(&late, condition::READY).0, "True");

    // It serves after all.
    let group = &mut observed.deployments[0].groups[2];
    group.pods[0].report.as_mut().unwrap().serving = true;
    let served = status_at(&observed, NOW + 2 * deadline);
    assert_eq!(of(&served, condition::STALLED).0, "False");
}

#[test]
fn nothing_of_a_rollout_is_kept_once_it_is_over() {
    let mut whole = deployment(|d| d["spec"]["replicas"] = json!(1));
    whole.groups = vec![serving(&whole, "llama-0", ["a", "b"])];
    let mut observed = observed(whole);
    count_usage(&mut observed);
    let status = status_at(&observed, NOW);
    assert_eq!(status.rollout, None);
    for type_ in [condition::RECONCILING, condition::STALLED] {
        assert_eq!(of(&status, type_).0, "False", "{type_}");
    }
    let generations: Vec<_> = status.conditions.iter().map(|c| c.observed_generation).collect();
    assert!(
        generations.iter().all(|generation| *generation == Some(1)),
        "{generations:?}"
    );
}
