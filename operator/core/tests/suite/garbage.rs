//! Totality: no sight, however absurd, makes a decision panic.

use std::sync::Arc;

use llamero_api::group::{Intent, Member, RankPhase};
use llamero_core::{
    decide,
    observed::{Demand, Load, Pod, PodPhase, Rank, Report},
    report,
    resources::Resources,
    time,
};
use proptest::prelude::*;

use crate::build::*;

fn member() -> impl Strategy<Value = Member> {
    (
        -1i32..4,
        prop_oneof![Just(0), Just(i32::MAX), -2i32..3],
        prop::option::of("[abz]"),
        prop::option::of("u[0-3]"),
        prop::option::of(any::<i64>()),
    )
        .prop_map(|(index, attempt, node, pod_uid, placed)| Member {
            index,
            attempt,
            node,
            pod_uid,
            placed_at: placed.map(time::to_time),
            successor: None,
        })
}

fn pod() -> impl Strategy<Value = Pod> {
    let phase = prop_oneof![
        Just(PodPhase::Pending),
        Just(PodPhase::Running),
        Just(PodPhase::Succeeded),
        Just(PodPhase::Failed)
    ];
    let rank = (
        -1i32..5,
        any::<i64>(),
        any::<i64>(),
        prop::option::of(any::<i32>()),
        any::<bool>(),
    )
        .prop_map(|(rank, loaded, entered, idle, serving)| Rank {
            rank,
            phase: if serving {
                RankPhase::Serving
            } else {
                RankPhase::Failed
            },
            loaded_bytes: loaded,
            total_bytes: loaded,
            entered,
            idle_millis: idle.map(i64::from),
            ..Rank::default()
        });
    let report = (
        prop::collection::vec(rank, 0..3),
        -1i64..3,
        any::<bool>(),
        any::<bool>(),
        -40_000i64..40_000,
    )
        .prop_map(|(ranks, generation, serving, draining, age)| Report {
            received_at: NOW - age,
            alive_at: NOW - age,
            generation,
            ranks,
            serving,
            draining,
            longest_sequence: age,
        });
    (
        (
            "u[0-3]",
            -1i32..4,
            -2i32..3,
            prop::option::of("[abz]"),
            any::<bool>(),
            phase,
        ),
        (
            prop::option::of(any::<i32>()),
            any::<bool>(),
            prop::option::of("[0-9.:]{0,9}"),
            any::<bool>(),
            prop::option::of(report),
        ),
    )
        .prop_map(
            |((uid, index, attempt, node, gated, phase), (deletion, ready, ip, evicted, report))| Pod {
                name: uid.clone(),
                uid,
                index,
                attempt,
                node,
                gated,
                phase,
                deletion: deletion.map(i64::from),
                ready,
                ip,
                evicted,
                report,
                ..Pod::default()
            },
        )
}

proptest! {
    #![proptest_config(crate::config(256))]

    #[test]
    fn nothing_panics(
        members in prop::collection::vec(member(), 0..4),
        pods in prop::collection::vec(pod(), 0..5),
        shape in (prop_oneof![-1i32..4, Just(i32::MAX)], prop_oneof![-1i32..4, Just(i32::MAX)], prop_oneof![-1i32..4, Just(i32::MAX)]),
        numbers in (any::<i64>(), any::<i32>(), any::<i32>(), any::<i64>()),
        drain in any::<bool>(),
        memory in "[0-9]{0,20}[KMGi.e-]{0,2}",
        loads in (any::<u32>(), any::<u32>(), any::<i32>()),
    ) {
        let mut deployment = deployment(|d| {
            d["spec"]["accelerator"]["memory"] = memory.clone().into();
            d["spec"]["worker"] = serde_json::json!({"resources": {"limits": {"memory": memory}}});
            if drain {
                d["spec"]["autoscaling"] = serde_json::json!({"minReplicas": numbers.1, "maxReplicas": numbers.2});
            }
        });
        {
            let object = Arc::make_mut(&mut deployment.object);
            object.spec.parallelism.tensor = shape.0;
            object.spec.recovery.restart_budget = numbers.1;
            object.spec.model.max_context_length = Some(numbers.0);
        }
        let mut group = serving(&deployment, "llama-0", ["a", "b"]);
        group.pods.extend(pods);
        group.load = Some(Load { running: loads.0, waiting: loads.1, received_at: NOW + i64::from(loads.2) });
        spec(&mut group, |s| {
            s.members.extend(members);
            (s.template.tensor, s.template.pipeline, s.template.ranks_per_pod) = shape;
            s.template.weight_bytes_per_rank = numbers.3;
            s.generation = numbers.0;
            s.placement_failures = numbers.1;
            s.intent = if drain { Intent::Drain } else { Intent::Run };
        });
        deployment.groups.push(group);
        deployment.demand = Some(Demand { held: loads.0, in_flight: loads.1, total: u64::from(loads.0), received_at: NOW });
        let mut observed = observed(deployment);
        observed.nodes[0].allocatable = Resources::new().with(GPU, numbers.0).with("memory", numbers.3);
        observed.nodes[0].used.insert(numbers.1, Resources::new().with(GPU, numbers.3));
        let plan = decide(&observed, NOW);
        prop_assert_eq!(&plan, &decide(&observed, NOW));
        prop_assert_eq!(report(&observed, &plan, NOW), report(&observed, &plan, NOW));
    }
}
