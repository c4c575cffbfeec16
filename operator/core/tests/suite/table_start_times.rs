//! How long a group took to serve, as its status tells it.

use std::sync::Arc;

use llamero_api::{
    LlamaGroupStatus,
    deployment::CheckpointStatus,
    group::{GroupPhase, RankPhase, StartStepName as Name},
};
use llamero_core::{
    decide,
    observed::{Deployment, PhaseTimes},
    report,
    time::{self, Millis},
};

use crate::build::*;

/// A pod's times: bound and running so many seconds before now, and what its rank took.
type Told = (i64, i64, [Option<Millis>; 4]);

/// A group of two that was made nine seconds ago, whose ranks are in these phases.
fn starting(phases: [RankPhase; 2], told: [Told; 2]) -> Deployment {
    let mut deployment = deployment(|object| {
        object["metadata"]["creationTimestamp"] = serde_json::json!(time::to_time(NOW - 12_000));
    });
    let object = Arc::make_mut(&mut deployment.object);
    let checkpoint: &mut CheckpointStatus = object.status.as_mut().unwrap().checkpoint.as_mut().unwrap();
    checkpoint.inspected_at = time::to_time(NOW - 10_000);
    let members = [(0, Some("a"), Some("u0")), (0, Some("b"), Some("u1"))];
    let mut group = group(&deployment, "llama-0", &members);
    Arc::make_mut(&mut group.object).metadata.creation_timestamp = Some(time::to_time(NOW - 9_000));
    spec(&mut group, |spec| {
        spec.members[0].placed_at = Some(time::to_time(NOW - 8_000));
        spec.members[1].placed_at = Some(time::to_time(NOW - 8_000));
    });
    for (index, (phase, (bound, ran, times))) in phases.into_iter().zip(told).enumerate() {
        let uid = format!("u{index}");
        let mut pod = running(
            "llama-0",
            i32::try_from(index).unwrap(),
            0,
            &uid,
            ["a", "b"][index],
            1,
            phase,
        );
        (pod.scheduled_at, pod.started_at) = (Some(NOW - bound * 1000), Some(NOW - ran * 1000));
        let report = pod.report.as_mut().unwrap();
        let [preflight, loading, connecting, warming] = times;
        report.ranks[0].times = PhaseTimes {
            preflight,
            loading,
            connecting,
            warming,
        };
        group.pods.push(pod);
    }
    deployment.groups = vec![group];
    deployment
}

fn status_at(deployment: &Deployment, now: Millis) -> LlamaGroupStatus {
    let observed = observed(deployment.clone());
    let reports = report(&observed, &decide(&observed, now), now).groups;
    reports.into_values().next().unwrap()
}

fn steps(status: &LlamaGroupStatus) -> Vec<(Name, Millis)> {
    status.start.iter().map(|step| (step.step, step.millis)).collect()
}

/// What the next pass finds written.
fn written(mut deployment: Deployment, status: LlamaGroupStatus) -> Deployment {
    Arc::make_mut(&mut deployment.groups[0].object).status = Some(status);
    deployment
}

const LOADED: [Told; 2] = [
    (7, 5, [Some(150), Some(900), Some(2_000), Some(80)]),
    (6, 4, [Some(250), Some(2_000), Some(400), None]),
];

#[test]
fn a_step_is_told_with_the_phase_that_follows_it() {
    let before = [
        (Name::Sized, 2_000),
        (Name::Placed, 1_000),
        (Name::Scheduled, 2_000),
    ];
    let cases = [
        ([RankPhase::Loading, RankPhase::Preflight], vec![]),
        (
            [RankPhase::Loading, RankPhase::Connecting],
            vec![(Name::Started, 2_000), (Name::Checked, 250)],
        ),
        (
            [RankPhase::Connecting, RankPhase::Warming],
            vec![
                (Name::Started, 2_000),
                (Name::Checked, 250),
                (Name::Loaded, 2_000),
            ],
        ),
        (
            // The leader is the only one who is heard to the end.
            [RankPhase::Serving, RankPhase::Warming],
            vec![
                (Name::Started, 2_000),
                (Name::Checked, 250),
                (Name::Loaded, 2_000),
                (Name::Formed, 2_080),
                (Name::Serving, 9_000),
            ],
        ),
    ];
    for (phases, later) in cases {
        let status = status_at(&starting(phases, LOADED), NOW);
        let expected: Vec<_> = before.iter().copied().chain(later).collect();
        assert_eq!(steps(&status), expected, "{:?}", status.phase);
    }
    let status = status_at(&starting([RankPhase::Serving, RankPhase::Warming], LOADED), NOW);
    let loaded = status
        .start
        .iter()
        .find(|step| step.step == Name::Loaded)
        .unwrap();
    assert_eq!(
        (loaded.bytes, loaded.rate.as_deref()),
        (Some(2 << 30), Some("1.07 GB/s"))
    );
    let serving = status.start.last().unwrap();
    assert_eq!(serving.at, Some(time::to_time(NOW)));
}

/// Times alone make no status differ: what is written in a phase stays as it is until the next.
#[test]
fn time_that_passes_is_no_reason_to_write() {
    for phases in [
        [RankPhase::Preflight, RankPhase::Preflight],
        [RankPhase::Loading, RankPhase::Loading],
        [RankPhase::Warming, RankPhase::Connecting],
        [RankPhase::Serving, RankPhase::Serving],
    ] {
        let deployment = starting(phases, LOADED);
        let first = status_at(&deployment, NOW);
        let mut deployment = written(deployment, first.clone());
        for later in [700, 5_000] {
            for pod in &mut deployment.groups[0].pods {
                pod.report.as_mut().unwrap().alive_at = NOW + later;
            }
            assert_eq!(status_at(&deployment, NOW + later), first, "{phases:?}");
        }
    }
}

#[test]
fn what_the_first_start_took_stays_when_the_group_forms_again() {
    let deployment = starting([RankPhase::Serving, RankPhase::Serving], LOADED);
    let first = status_at(&deployment, NOW);
    let mut again = written(
        starting([RankPhase::Connecting, RankPhase::Loading], LOADED),
        first.clone(),
    );
    again.groups[0].pods[1].report.as_mut().unwrap().ranks[0]
        .times
        .loading = Some(77_000);
    let status = status_at(&again, NOW + 60_000);
    assert_eq!(status.phase, GroupPhase::Recovering);
    assert_eq!(status.start, first.start);
}

/// An operator that writes no times made it serve; this one was not there.
#[test]
fn a_group_that_served_before_has_no_start() {
    let deployment = starting([RankPhase::Serving, RankPhase::Serving], LOADED);
    let older = LlamaGroupStatus {
        start: vec![],
        ..status_at(&deployment, NOW)
    };
    let status = status_at(&written(deployment, older), NOW + 1_000);
    assert_eq!(steps(&status), []);
}

/// Nodes' clocks differ by seconds; older workers tell no durations.
#[test]
fn nothing_takes_less_than_nothing_and_what_is_not_known_is_absent() {
    let none = [None; 4];
    let skewed = starting(
        [RankPhase::Connecting, RankPhase::Connecting],
        [(2, 60, none), (3, 59, none)],
    );
    let status = status_at(&skewed, NOW);
    let expected = [
        (Name::Sized, 2_000),
        (Name::Placed, 1_000),
        (Name::Scheduled, 6_000),
        (Name::Started, 0),
    ];
    assert_eq!(steps(&status), expected);
}

/// Only then is the age of the deployment the time since somebody applied it.
#[test]
fn sizing_is_told_for_the_groups_that_a_deployment_began_with() {
    let mut changed = starting([RankPhase::Loading, RankPhase::Loading], LOADED);
    Arc::make_mut(&mut changed.object).metadata.generation = Some(2);
    let status = status_at(&changed, NOW);
    assert_eq!(steps(&status)[0], (Name::Placed, 1_000));
}
