//! The operator's clock was ahead and is right again. What was written meanwhile counts as of now: each wait lasts as long as any, no failure is
//! forgotten, and nothing waits for tomorrow.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use llamero_api::{
    deployment::AutoscalingState,
    group::{Intent, LlamaGroupSpec, Provision, RankPhase, Successor},
};
use llamero_core::{
    autoscaling, decide,
    observed::{Demand, Deployment, Load, Observed},
    replicas,
    time::{self, Millis},
};
use serde_json::{Value, json};

use crate::build::*;

const DAY: Millis = 86_400_000;
const MINUTE: Millis = 60_000;

fn tomorrow() -> Time {
    time::to_time(NOW + DAY)
}

/// The first thing that is written about `llama-0`, written.
fn put_right(observed: &mut Observed) -> LlamaGroupSpec {
    let plan = decide(observed, NOW);
    assert_eq!(words(&plan), ["write llama-0: ClockChanged"]);
    let right = written(&plan, "llama-0").clone();
    spec(&mut observed.deployments[0].groups[0], |old| *old = right.clone());
    assert!(!words(&decide(observed, NOW)).contains(&"write llama-0: ClockChanged".to_owned()));
    right
}

/// The time at which the plan is first one that begins with `word`, looked for where plans say that there is something to be seen.
fn first(observed: &Observed, word: &str) -> Millis {
    let mut now = NOW;
    loop {
        let plan = decide(observed, now);
        if words(&plan).iter().any(|one| one.starts_with(word)) {
            return now - NOW;
        }
        now = plan.next_at.unwrap().max(now + 1);
        assert!(now < NOW + DAY, "{word} would wait for tomorrow");
    }
}

fn placed(times: [Millis; 2]) -> Observed {
    with(|d| {
        let members = [(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))];
        d.groups = vec![group(d, "llama-0", &members)];
        spec(&mut d.groups[0], |s| {
            for (member, at) in s.members.iter_mut().zip(times) {
                member.placed_at = Some(time::to_time(NOW + at));
            }
        });
        let mut bound = gated("llama-0", 0, 0, "u0");
        (bound.gated, bound.node) = (false, Some("a".into()));
        let mut unscheduled = gated("llama-0", 1, 0, "u1");
        unscheduled.gated = false;
        d.groups[0].pods = vec![bound, unscheduled];
    })
}

#[test]
fn a_placement_has_its_deadline_from_now_on() {
    let mut observed = placed([DAY, DAY]);
    put_right(&mut observed);
    assert_eq!(first(&observed, "write llama-0: RolledBack"), 2 * MINUTE);
}

#[test]
fn what_was_placed_at_different_times_stays_apart() {
    let mut observed = placed([DAY - 5 * MINUTE, DAY]);
    let right = put_right(&mut observed);
    let times: Vec<Millis> = right
        .members
        .iter()
        .filter_map(|m| m.placed_at.as_ref())
        .map(time::millis)
        .collect();
    assert_eq!(times, [NOW - 5 * MINUTE, NOW]);
}

#[test]
fn a_backoff_is_as_long_as_after_any_failure() {
    for (failures, wait) in [(0, 5_000), (1, 5_000), (3, 20_000), (i32::MAX, 120_000)] {
        let mut observed = with(|d| {
            d.groups = vec![group(d, "llama-0", &[(1, None, None), (1, None, None)])];
            spec(&mut d.groups[0], |s| {
                (s.place_after, s.placement_failures) = (Some(tomorrow()), failures);
            });
        });
        put_right(&mut observed);
        assert_eq!(first(&observed, "write llama-0: Reserved"), wait, "{failures}");
    }
}

#[test]
fn a_drain_has_its_grace_from_now_on() {
    let mut observed = with(|d| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        spec(&mut d.groups[0], |s| {
            (s.intent, s.drain_since) = (Intent::Drain, Some(tomorrow()));
        });
    });
    put_right(&mut observed);
    assert_eq!(words(&decide(&observed, NOW)), ["drain llama-0"]);
    assert_eq!(first(&observed, "delete group llama-0"), MINUTE);
}

/// Two failures of which the second came 20 s after the first: the third try is backed off, and the budget knows both.
#[test]
fn failures_are_not_forgotten() {
    let failure = |at: Millis| json!({"time": time::to_time(at), "index": 1, "attempt": 0, "node": "b", "reason": "Exited", "charged": true, "message": ""});
    let told = |shift: Millis| {
        with(|d| {
            d.groups = vec![group(
                d,
                "llama-0",
                &[(0, Some("a"), Some("u0")), (2, None, None)],
            )];
            spec(&mut d.groups[0], |s| {
                let failures = [NOW + shift - 20_000, NOW + shift].map(failure);
                s.failures = serde_json::from_value(Value::from(failures.to_vec())).unwrap();
            });
            d.groups[0].pods = vec![running("llama-0", 0, 0, "u0", "a", 1, RankPhase::Connecting)];
        })
    };
    let expected = told(0);
    let mut ahead = told(DAY);
    put_right(&mut ahead);
    let failures = |observed: &Observed| observed.deployments[0].groups[0].object.spec.failures.clone();
    assert_eq!(failures(&ahead), failures(&expected));
    let wait = first(&ahead, "write llama-0: Reserved");
    assert_eq!(wait, first(&expected, "write llama-0: Reserved"));
    assert!(wait > 0, "it is backed off");
}

#[test]
fn a_node_that_goes_is_waited_for_no_longer_than_any() {
    let disrupted = |d: &mut Deployment| {
        d.groups = vec![serving(d, "llama-0", ["a", "b"])];
        spec(&mut d.groups[0], |s| s.disrupted_since = Some(tomorrow()));
    };
    let mut observed = with(disrupted);
    observed.nodes.retain(|node| node.name != "c");
    observed.nodes[1].unschedulable = true;
    put_right(&mut observed);
    let deadline = observed.deployments[0].object.spec.disruption.deadline.millis();
    assert_eq!(first(&observed, "write llama-0: Draining"), deadline);

    let mut observed = with(|d| {
        disrupted(d);
        spec(&mut d.groups[0], |s| {
            s.members[1].successor = Some(Successor {
                attempt: 1,
                node: "c".into(),
                placed_at: tomorrow(),
                pod_uid: Some("s".into()),
            });
        });
        let mut pod = gated("llama-0", 1, 1, "s");
        pod.gated = false;
        d.groups[0].pods.push(pod);
    });
    observed.nodes[1].unschedulable = true;
    put_right(&mut observed);
    assert_eq!(first(&observed, "write llama-0: SuccessorDropped"), 2 * MINUTE);
}

#[test]
fn nodes_are_asked_for_and_waited_for_no_longer_than_ever() {
    let asking = |provision: Provision| {
        let mut deployment = deployment(|d| d["spec"]["placement"] = json!({"whenFull": "Provision"}));
        let mut group = group(&deployment, "llama-0", &[(0, None, None), (0, None, None)]);
        spec(&mut group, |s| s.provision = Some(provision));
        deployment.groups = vec![group];
        let mut observed = observed(deployment);
        observed.nodes.clear();
        put_right(&mut observed);
        observed
    };
    let asks = asking(Provision {
        since: Some(tomorrow()),
        ..Provision::default()
    });
    assert_eq!(first(&asks, "write llama-0: NotProvisioned"), 20 * MINUTE);
    let pauses = asking(Provision {
        failures: 2,
        not_before: Some(tomorrow()),
        ..Provision::default()
    });
    let pause = first(&pauses, "write llama-0: Provisioning");
    assert!((20 * MINUTE..=25 * MINUTE).contains(&pause), "{pause}");
}

#[test]
fn a_checkpoint_is_looked_into_again_after_a_minute() {
    let mut observed = observed(deployment(|d| {
        let spec = serde_json::from_value(d["spec"].clone()).unwrap();
        d["status"] = json!({"checkpoint": {
            "key": llamero_core::revision::inspect_key(&spec), "podUID": "i", "inspectedAt": tomorrow(), "error": "no config.json in /model"
        }});
    }));
    let status = status_at(&observed, NOW);
    assert_eq!(
        status.checkpoint.as_ref().unwrap().inspected_at,
        time::to_time(NOW)
    );
    Arc::make_mut(&mut observed.deployments[0].object).status = Some(status);
    assert_eq!(first(&observed, "create inspect pod"), MINUTE);
}

#[test]
fn a_rollout_is_overdue_when_any_would_be() {
    let image = |d: &mut Value| d["spec"]["worker"] = json!({"image": "worker:2"});
    let mut observed = observed(deployment(image));
    let mut older = deployment(|_| {});
    older.groups = vec![serving(&older, "llama-0", ["a", "b"])];
    observed.deployments[0].groups = older.groups;
    let mut status = status_at(&observed, NOW);
    status.rollout.as_mut().expect("it rolls").since = tomorrow();
    for condition in &mut status.conditions {
        condition.last_transition_time = tomorrow();
    }
    Arc::make_mut(&mut observed.deployments[0].object).status = Some(status);
    let status = status_at(&observed, NOW);
    assert_eq!(status.rollout.unwrap().since, time::to_time(NOW));
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.last_transition_time == time::to_time(NOW))
    );
}

#[test]
fn fewer_groups_come_when_they_would_anyway() {
    let policy = serde_json::from_value(json!({
        "minReplicas": 0, "maxReplicas": 8, "targetRequestsPerGroup": 10,
        "scaleDownStabilization": "60s", "idleTimeoutToZero": "100s"
    }))
    .unwrap();
    let see = |state: AutoscalingState, last: i32, requests: u32, at: Millis| {
        let input = autoscaling::AutoscalerInput {
            last,
            state,
            loads: vec![Some(Load {
                running: requests,
                waiting: 0,
                received_at: at,
            })],
            starting: false,
            demand: Some(Demand {
                held: 0,
                in_flight: requests,
                total: 7,
                received_at: at,
            }),
        };
        autoscaling::recommend(&policy, &input, at)
    };
    let state = AutoscalingState {
        lower_since: Some(tomorrow()),
        lower_peak: Some(1),
        idle_since: Some(tomorrow()),
        idle_total: Some(7),
        ..AutoscalingState::default()
    };
    let lower = see(state.clone(), 5, 10, NOW);
    assert_eq!((lower.groups, lower.next_at), (5, Some(NOW + MINUTE)));
    assert_eq!(see(lower.state, 5, 10, NOW + MINUTE).groups, 1);
    let idle = see(state, 1, 0, NOW);
    assert_eq!((idle.groups, idle.next_at), (1, Some(NOW + 100_000)));
    assert_eq!(see(idle.state, 1, 0, NOW + 100_000).groups, 0);

    // What came while the clock was ahead is not of now: nothing is decided by it.
    let input = autoscaling::AutoscalerInput {
        last: 3,
        loads: vec![Some(Load {
            running: 90,
            waiting: 0,
            received_at: NOW + DAY,
        })],
        ..autoscaling::AutoscalerInput::default()
    };
    assert_eq!(autoscaling::recommend(&policy, &input, NOW).groups, 3);
}

#[test]
fn who_wrote_the_number_is_told_for_some_minutes() {
    let mut state = AutoscalingState {
        foreign_writer: Some("kubectl".into()),
        foreign_write_at: Some(tomorrow()),
        ..AutoscalingState::default()
    };
    replicas::remember(&mut state, None, NOW);
    assert_eq!(state.foreign_write_at, Some(time::to_time(NOW)));
    replicas::remember(&mut state, None, NOW + 10 * MINUTE);
    assert_eq!((state.foreign_writer, state.foreign_write_at), (None, None));
}

/// When everybody is due was reckoned by the clock that was ahead.
#[test]
fn a_clock_that_goes_back_puts_nobody_off() {
    let observed = with(|d| d.groups = vec![serving(d, "llama-0", ["a", "b"])]);
    let mut planner = planner(&observed);
    let deployment = observed.deployments[0].clone();
    planner.set_deployment(deployment);
    assert_eq!(planner.pass(NOW + DAY).verdicts.len(), 1);
    assert!(planner.pass(NOW + DAY + 1).verdicts.is_empty());
    assert_eq!(planner.pass(NOW).verdicts.len(), 1);
    let due = planner.next_due().unwrap();
    assert!(due <= NOW + 2 * MINUTE, "{}", due - NOW);
}
