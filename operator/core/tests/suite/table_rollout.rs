//! How revisions follow each other: Recreate, going back, restarts, and rollouts that get stuck.

use llamero_api::{
    LlamaDeploymentStatus,
    deployment::{condition as kind, reason},
    group::Intent,
};
use llamero_core::{
    decide,
    observed::{Observed, PodPhase},
    plan::Acceptance,
    time,
};
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
    assert_eq!(words(&decide(&observed, NOW)), ["try the revision on c"]);
    trial(&mut observed.deployments[0], PodPhase::Succeeded);
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
    // One is gone, the other one still has its nodes; what was tried is not needed any more.
    observed.deployments[0].groups.pop();
    assert_eq!(
        words(&decide(&observed, NOW)),
        [
            "delete pod llama-inspect-trial-TARGET in 0"
                .replace("TARGET", &observed.deployments[0].revisions[0].digest),
            "drain llama-0".into()
        ]
    );
    observed.deployments[0].inspect.clear();
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

/// Revisions of the groups that are made.
fn made(observed: &Observed) -> Vec<String> {
    let plan = decide(observed, NOW);
    let steps = plan.steps.into_iter();
    steps
        .filter_map(|step| match step.action {
            llamero_core::Action::CreateGroup { spec, .. } => Some(spec.revision),
            _ => None,
        })
        .collect()
}

/// Somebody pauses, mistypes the image, and then the number of groups grows, or one leaves with its node.
#[test]
fn while_a_rollout_is_paused_new_groups_are_like_the_old_ones() {
    let paused = |d: &mut Value| d["spec"]["rollout"] = json!({"paused": true});
    let first = first_revision();
    let mut observed = changed(paused);
    assert!(decide(&observed, NOW).steps.is_empty());
    observed.deployments[0].groups.pop();
    assert_eq!(made(&observed), [first_revision()]);

    // The paused words are not kept, so that what was kept last is what is served, also when no group is left to show it.
    let mut unkept = changed(paused);
    unkept.deployments[0].revisions.remove(0);
    assert!(
        decide(&unkept, NOW).steps.is_empty(),
        "{:?}",
        words(&decide(&unkept, NOW))
    );
    unkept.deployments[0].groups.clear();
    assert_eq!(made(&unkept), [first.clone(), first.clone()]);
    // Words that cannot be served change nothing about it.
    let mut unfit = changed(|d| {
        paused(d);
        d["spec"]["accelerator"]["memory"] = json!("5Gi");
    });
    unfit.deployments[0].revisions.remove(0);
    unfit.deployments[0].groups.pop();
    assert_eq!(made(&unfit), [first]);
    // Unless there is nothing else.
    let mut fresh = changed(paused);
    fresh.deployments[0].groups.clear();
    fresh.deployments[0].revisions.truncate(1);
    let new = fresh.deployments[0].revisions[0].digest.clone();
    assert_eq!(made(&fresh), [new.clone(), new]);
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
    let (accepted, _, message) = condition(&status, kind::ACCEPTED);
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
    assert_eq!(condition(&status, kind::STALLED).1, reason::REVISION_UNKNOWN);
    assert_eq!(condition(&status, kind::READY).0, "True", "what serves serves on");
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
    assert_eq!(condition(&first, kind::PROGRESSING).0, "True");
    assert_eq!(condition(&first, kind::RECONCILING).0, "True");
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
        condition(&status_at(&observed, NOW + deadline), kind::PROGRESSING).0,
        "True"
    );

    hear(&mut observed, NOW + 2 * deadline);
    let late = status_at(&observed, NOW + 2 * deadline);
    let (status, why, message) = condition(&late, kind::PROGRESSING);
    assert_eq!((status, why), ("False", reason::PROGRESS_DEADLINE_EXCEEDED));
    assert!(message.contains("set rollout.revision to go back"), "{message}");
    assert_eq!(condition(&late, kind::STALLED).0, "True");
    assert_eq!(condition(&late, kind::RECONCILING).0, "False");
    assert_eq!(condition(&late, kind::READY).0, "True");

    // It serves after all.
    let group = &mut observed.deployments[0].groups[2];
    group.pods[0].report.as_mut().unwrap().serving = true;
    let served = status_at(&observed, NOW + 2 * deadline);
    assert_eq!(condition(&served, kind::STALLED).0, "False");
}

#[test]
fn nothing_of_a_rollout_is_kept_once_it_is_over() {
    let mut whole = deployment(|d| d["spec"]["replicas"] = json!(1));
    whole.groups = vec![serving(&whole, "llama-0", ["a", "b"])];
    let mut observed = observed(whole);
    count_usage(&mut observed);
    let status = status_at(&observed, NOW);
    assert_eq!(status.rollout, None);
    for type_ in [kind::RECONCILING, kind::STALLED] {
        assert_eq!(condition(&status, type_).0, "False", "{type_}");
    }
    let generations: Vec<_> = status.conditions.iter().map(|c| c.observed_generation).collect();
    assert!(
        generations.iter().all(|generation| *generation == Some(1)),
        "{generations:?}"
    );
}

/// Two groups that are to be replaced and fill all nodes, and a new one that finds no room.
fn full() -> Observed {
    let mut observed = changed(|_| {});
    observed.nodes.truncate(4);
    let whole = &mut observed.deployments[0];
    let mut surge = group(whole, "llama-2", &[(0, None, None), (0, None, None)]);
    crate::build::status(&mut surge, |status| {
        status.unplaceable_since = Some(time::to_time(NOW))
    });
    whole.groups.push(surge);
    observed
}

#[test]
fn where_no_surge_fits_a_group_goes_when_a_pod_has_shown_that_the_new_revision_starts() {
    let mut observed = full();
    assert_eq!(words(&decide(&observed, NOW)), ["try the revision on c"]);
    trial(&mut observed.deployments[0], PodPhase::Pending);
    observed.deployments[0].inspect[0].waiting = Some("ImagePullBackOff: no such image worker:2".into());
    assert!(decide(&observed, NOW).steps.is_empty(), "it pulls");
    let status = status_at(&observed, NOW);
    let (progressing, why, message) = condition(&status, kind::PROGRESSING);
    assert_eq!((progressing, why), ("True", reason::ROLLING_OUT));
    assert!(message.contains("no such image worker:2"), "{message}");
    trial(&mut observed.deployments[0], PodPhase::Succeeded);
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-1: Draining"]);
    // It is remembered by its pod until nobody is left to replace.
    assert!(
        !words(&decide(&observed, NOW))
            .iter()
            .any(|word| word.contains("delete pod"))
    );
}

/// The nodes of what serves are not ready, so no kubelet says that it does; the operator has not had the time to ask.
#[test]
fn an_operator_that_has_just_started_replaces_nobody_as_if_it_served_nobody() {
    let mut observed = full();
    for group in &mut observed.deployments[0].groups[..2] {
        let pod = group.pods[0].name.clone();
        crate::build::status(group, |status| {
            status.loaded_bytes = 1;
            status.ranks = vec![llamero_api::group::RankStatus {
                pod,
                phase: llamero_api::group::RankPhase::Serving,
                ..Default::default()
            }];
        });
        for pod in &mut group.pods {
            (pod.report, pod.unheard_since) = (None, Some(NOW));
        }
    }
    for after in [0, 30_000] {
        let plan = decide(&observed, NOW + after);
        assert!(plan.steps.is_empty(), "{after}: {:?}", words(&plan));
    }
    assert_eq!(
        words(&decide(&observed, NOW + 30_001)),
        ["write llama-1: Draining", "write llama-0: Draining"]
    );
}

/// No group may go, and no new one has room: what is in the way is said, with the ways out.
#[test]
fn without_unavailability_and_room_a_rollout_says_why_it_waits() {
    let mut observed = full();
    let object = std::sync::Arc::make_mut(&mut observed.deployments[0].object);
    object.spec.rollout.max_unavailable = 0;
    let plan = decide(&observed, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = status_at(&observed, NOW);
    let (_, why, message) = condition(&status, kind::PROGRESSING);
    assert_eq!(why, reason::ROLLING_OUT);
    assert!(
        message.contains("rollout.maxUnavailable 0")
            && message.contains("add nodes or free some, or raise rollout.maxUnavailable"),
        "{message}"
    );
}

#[test]
fn a_revision_that_does_not_start_takes_nothing_down_and_is_tried_again() {
    let mut observed = full();
    trial(&mut observed.deployments[0], PodPhase::Failed);
    observed.deployments[0].inspect[0].result = Some(r#"{"error": "no config.json in /model"}"#.into());
    let plan = decide(&observed, NOW + 1000);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    assert_eq!(plan.next_at, Some(NOW + 60_000));
    let status = status_at(&observed, NOW + 1000);
    let message = condition(&status, kind::PROGRESSING).2;
    assert!(
        message.contains("does not start, so no group goes: no config.json in /model"),
        "{message}"
    );
    hear(&mut observed, NOW + 60_000);
    let plan = decide(&observed, NOW + 60_000);
    assert!(
        words(&plan)[0].starts_with("delete pod llama-inspect-trial-"),
        "{:?}",
        words(&plan)
    );
    // A node's clock that is ahead does not delay it: it was made a minute before at the most.
    observed.deployments[0].inspect[0].finished_at = Some(NOW + 9_000_000);
    observed.deployments[0].inspect[0].created_at = Some(NOW);
    assert_eq!(decide(&observed, NOW + 1000).next_at, Some(NOW + 60_000));
    let again = decide(&observed, NOW + 60_000);
    assert!(
        words(&again)[0].starts_with("delete pod llama-inspect-trial-"),
        "{:?}",
        words(&again)
    );
    // Other words are another revision, which is tried at once.
    observed.deployments[0].inspect[0].key = "trial-0123456789".into();
    let plan = decide(&observed, NOW + 1000);
    assert_eq!(words(&plan)[0], "try the revision on c");
    assert!(words(&plan)[1].starts_with("delete pod"), "{:?}", words(&plan));
}

#[test]
fn a_trial_goes_to_a_tainted_node_of_devices_and_where_there_is_room_for_it() {
    let mut observed = full();
    for node in &mut observed.nodes {
        node.taints = vec![serde_json::from_value(json!({"key": GPU, "effect": "NoSchedule"})).unwrap()];
    }
    assert_eq!(words(&decide(&observed, NOW)), ["try the revision on c"]);
    let cpu = observed.nodes[2].allocatable.get("cpu");
    let full = llamero_core::resources::Resources::new().with("cpu", cpu - 49);
    observed.nodes[2].used.entry(7).or_default().add(&full);
    assert_eq!(words(&decide(&observed, NOW)), ["try the revision on d"]);
    // Where no node has room the scheduler says so.
    for node in &mut observed.nodes {
        node.used.entry(7).or_default().add(&full);
    }
    assert_eq!(words(&decide(&observed, NOW)), ["try the revision on c"]);
}

#[test]
fn a_trial_that_stays_pending_or_never_ends_is_told_with_why_and_made_anew() {
    for (node, deadline, why, told) in [
        (None, 120_000, "0/4 nodes are available", "placement.deadline"),
        (
            Some("c"),
            120_000 + 1_800_000,
            "ImagePullBackOff",
            "placement.startDeadline",
        ),
    ] {
        let mut observed = full();
        trial(&mut observed.deployments[0], PodPhase::Pending);
        let pod = &mut observed.deployments[0].inspect[0];
        (pod.created_at, pod.node, pod.waiting) = (Some(NOW), node.map(str::to_owned), Some(why.into()));
        let early = decide(&observed, NOW + 1_000);
        assert!(early.steps.is_empty(), "{:?}", words(&early));
        let late = NOW + deadline;
        assert!(early.next_at.unwrap() <= late);
        hear(&mut observed, late - 1);
        assert!(decide(&observed, late - 1).steps.is_empty());
        hear(&mut observed, late);
        let plan = decide(&observed, late);
        assert!(
            words(&plan)[0].starts_with("delete pod llama-inspect-trial-"),
            "{:?}",
            words(&plan)
        );
        let status = status_at(&observed, late);
        let (_, _, message) = condition(&status, kind::PROGRESSING);
        assert!(
            message.contains(why) && message.contains(told) && message.contains("no group goes"),
            "{message}"
        );
        // A clock of the API server that is ahead delays it, and nothing is made twice.
        observed.deployments[0].inspect[0].created_at = Some(late + 1_000);
        assert!(decide(&observed, late).steps.is_empty());
        observed.deployments[0].inspect[0].created_at = Some(NOW);
        observed.deployments[0].inspect[0].terminating = true;
        assert!(decide(&observed, late).steps.is_empty());
    }
}

#[test]
fn groups_that_serve_nobody_need_no_trial() {
    let mut observed = full();
    for group in &mut observed.deployments[0].groups[..2] {
        group.pods[0].report.as_mut().unwrap().serving = false;
    }
    assert_eq!(
        words(&decide(&observed, NOW)),
        ["write llama-1: Draining", "write llama-0: Draining"]
    );
}

/// The deployment with four groups, of which the first `older` are of its first words; two are to stay so.
fn canary(older: usize, change: impl FnOnce(&mut Value)) -> Observed {
    let replicas = |d: &mut Value| d["spec"]["replicas"] = json!(4);
    let first = deployment(replicas);
    let mut changed = deployment(|d| {
        replicas(d);
        d["spec"]["worker"] = json!({"image": "worker:2"});
        d["spec"]["rollout"] = json!({"partition": 2});
        change(d);
    });
    let places = [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]];
    changed.groups = places
        .iter()
        .enumerate()
        .map(|(at, nodes)| {
            let of = if at < older { &first } else { &changed };
            serving(of, &format!("llama-{at}"), *nodes)
        })
        .collect();
    changed.revisions.extend(first.revisions);
    changed.revisions[0].number = 2;
    let mut observed = observed(changed);
    observed.nodes = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
        .map(|name| node(name, 1))
        .to_vec();
    count_usage(&mut observed);
    observed
}

#[test]
fn a_canary_leaves_the_oldest_groups_alone_and_is_at_rest() {
    // A surge, as in any rollout.
    assert_eq!(words(&decide(&canary(4, |_| {}), NOW)), ["create group llama-4"]);
    let mut surged = canary(4, |_| {});
    let fifth = serving(&surged.deployments[0], "llama-4", ["i", "j"]);
    surged.deployments[0].groups.push(fifth);
    assert_eq!(words(&decide(&surged, NOW)), ["write llama-3: Draining"]);

    let rest = canary(2, |_| {});
    let plan = decide(&rest, NOW);
    assert!(plan.steps.is_empty(), "{:?}", words(&plan));
    let status = status_at(&rest, NOW);
    assert_eq!(status.rollout, None, "nothing is overdue that is not to come");
    let (progressing, why, message) = condition(&status, kind::PROGRESSING);
    assert_eq!((progressing, why), ("False", reason::CANARY));
    assert!(message.contains("2 groups keep an older revision"), "{message}");
    for type_ in [kind::RECONCILING, kind::STALLED] {
        assert_eq!(condition(&status, type_).0, "False", "{type_}");
    }
    // It has proved itself.
    let on = canary(2, |d| d["spec"]["rollout"] = json!({"partition": 0}));
    assert_eq!(words(&decide(&on, NOW)), ["create group llama-4"]);
}

#[test]
fn a_group_that_a_canary_left_alone_comes_back_as_it_was() {
    let mut observed = canary(2, |_| {});
    observed.deployments[0].groups.remove(1);
    let plan = decide(&observed, NOW);
    let llamero_core::Action::CreateGroup { spec, name, .. } = &plan.steps[0].action else {
        panic!("{:?}", words(&plan))
    };
    assert_eq!((name.as_str(), plan.steps.len()), ("llama-1", 1));
    assert_eq!(spec.template.worker.image.as_deref(), Some("worker:1"));
    // One of the new revision comes back as that.
    let mut observed = canary(2, |_| {});
    observed.deployments[0].groups.remove(3);
    let plan = decide(&observed, NOW);
    let llamero_core::Action::CreateGroup { spec, .. } = &plan.steps[0].action else {
        panic!("{:?}", words(&plan))
    };
    assert_eq!(spec.template.worker.image.as_deref(), Some("worker:2"));
}

#[test]
fn a_canary_is_rolled_back_by_the_first_words_although_the_partition_stays() {
    // Two old groups, two of the canary; then the words of the first ones again.
    let back = |d: &mut Value| {
        d["spec"]["worker"] = json!({});
    };
    let mut observed = canary(2, back);
    let bad = canary(2, |_| {});
    observed.deployments[0].groups = bad.deployments[0].groups.clone();
    let newest = observed.deployments[0].revisions.iter().map(|r| r.number).max();
    observed.deployments[0].revisions.truncate(1);
    assert_eq!(newest, Some(2));
    let plan = decide(&observed, NOW);
    assert_eq!(words(&plan), ["create group llama-4"]);
    let fifth = serving(&observed.deployments[0], "llama-4", ["i", "j"]);
    observed.deployments[0].groups.push(fifth);
    assert_eq!(words(&decide(&observed, NOW)), ["write llama-3: Draining"]);
    // A lost group does not come back as one of the bad revision.
    observed.deployments[0].groups.truncate(3);
    observed.deployments[0].groups.remove(0);
    let plan = decide(&observed, NOW);
    for step in &plan.steps {
        if let llamero_core::Action::CreateGroup { spec, .. } = &step.action {
            assert_eq!(spec.template.worker.image.as_deref(), Some("worker:1"));
        }
    }
    assert!(
        words(&plan).contains(&"create group llama-0".to_owned()),
        "{:?}",
        words(&plan)
    );
}

#[test]
fn at_zero_by_hand_it_is_said_what_becomes_of_requests() {
    let ready = |change: &dyn Fn(&mut Value)| {
        let mut observed = changed(|d| {
            d["spec"]["replicas"] = json!(0);
            change(d);
        });
        observed.deployments[0].groups.clear();
        let status = status_at(&observed, NOW);
        condition(&status, kind::READY).2.to_owned()
    };
    assert!(ready(&|_| {}).contains("requests are refused"));
    assert!(ready(&|d| d["spec"]["holdAtZero"] = json!(true)).contains("requests wait at the gateway"));
}
