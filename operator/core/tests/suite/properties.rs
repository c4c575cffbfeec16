//! Properties of the planner over a simulated cluster. Sixty-four cases each, the same every time; `PROPTEST_CASES=5000` for a long run
//! over others.

use llamero_api::deployment::RolloutStrategy;
use proptest::prelude::*;

use crate::sim::{Fault, Shared, World};

fn config() -> ProptestConfig {
    ProptestConfig {
        max_shrink_iters: 2000,
        ..crate::config(64)
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => (0usize..8).prop_map(Fault::Crash),
        3 => (0usize..8).prop_map(Fault::Delete),
        2 => (0usize..8).prop_map(Fault::Evict),
        1 => (0usize..8).prop_map(Fault::Pressure),
        2 => (0usize..8).prop_map(Fault::Stall),
        1 => (0usize..6).prop_map(Fault::RemoveNode),
        2 => (0usize..6).prop_map(Fault::AddNode),
        2 => (0usize..6, 0i64..=2).prop_map(|(node, gpus)| Fault::Foreign(node, gpus)),
        1 => (0i32..4).prop_map(Fault::Scale),
        1 => (1u8..3).prop_map(Fault::Image),
        2 => (1u8..40).prop_map(Fault::Wait),
        3 => (0usize..6, any::<bool>()).prop_map(|(node, on)| Fault::Cordon(node, on)),
        1 => prop_oneof![0usize..6, Just(usize::MAX)].prop_map(Fault::Quota),
        2 => Just(Fault::Restart),
        2 => (0usize..6).prop_map(Fault::Unreachable),
        2 => (0usize..6, any::<bool>()).prop_map(|(node, anew)| Fault::Back(node, anew)),
        1 => (0usize..6, any::<bool>()).prop_map(|(node, up)| Fault::Kubelet(node, up)),
        1 => (0usize..6, prop::option::of(0u8..3)).prop_map(|(node, taint)| Fault::Taint(node, taint)),
        2 => Just(Fault::Stale),
    ]
}

fn autoscaling_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => (0u32..20).prop_map(Fault::Requests),
        1 => (0i32..5).prop_map(Fault::Meddle),
        2 => (1u8..60).prop_map(Fault::Wait),
        1 => (0usize..8).prop_map(Fault::Crash),
    ]
}

fn fault_of_clocks() -> impl Strategy<Value = Fault> {
    let shift = prop_oneof![Just(0i16), -5i16..=5, -1500i16..=1500].prop_map(Fault::Clock);
    prop_oneof![2 => shift, 1 => fault(), 1 => autoscaling_fault()]
}

/// What is applied of a plan: which steps, and whether the status is written.
fn pass() -> impl Strategy<Value = (u64, bool)> {
    prop_oneof![
        4 => Just((u64::MAX, true)),
        // Cut after k steps.
        2 => (0u32..8).prop_map(|k| ((1u64 << k) - 1, false)),
        // Any subset.
        2 => (any::<u64>(), any::<bool>()),
    ]
}

/// Somebody writes over a number whose second group is not made yet: what was decided stands in the status, and holds.
#[test]
fn a_decision_outlives_a_foreign_number() {
    let mut world = World::autoscaled(2);
    world.pass(u64::MAX, true);
    world.pass(0, true);
    world.fault(&Fault::Requests(5));
    world.pass(u64::MAX, true);
    world.pass(14_316_235_682_886_154_785, false);
    world.pass(0, true);
    world.fault(&Fault::Meddle(0));
    world.pass(u64::MAX, true);
    world.settle();
}

proptest! {
    #![proptest_config(config())]

    /// In a fair environment every group serves, or waits holding nothing because there is no room, and then the plan is empty.
    #[test]
    fn comes_to_rest(nodes in 0usize..6, replicas in 0i32..4) {
        let mut world = World::new(nodes, replicas);
        world.settle();
    }

    /// Whatever subset of plans was applied, and whatever went wrong meanwhile: invariants hold at each step, and deciding again converges.
    #[test]
    fn converges_after_faults_and_cut_plans(
        nodes in 1usize..6,
        replicas in 1i32..4,
        recreate in prop::bool::weighted(0.25),
        script in prop::collection::vec((pass(), prop::option::weighted(0.3, fault())), 1..60),
    ) {
        let mut world = World::new(nodes, replicas);
        if recreate {
            world.object.spec.rollout.strategy = RolloutStrategy::Recreate;
        }
        for ((mask, write_status), fault) in script {
            world.pass(mask, write_status);
            if let Some(fault) = fault {
                world.fault(&fault);
            }
        }
        world.settle();
    }

    /// Whatever an operator with a wrong clock has written: as soon as the clock is right nothing is held longer than by one that always was.
    #[test]
    fn a_wrong_clock_holds_nobody_up(
        nodes in 1usize..6,
        replicas in 1i32..4,
        kind in 0u8..3,
        script in prop::collection::vec((pass(), prop::option::weighted(0.4, fault_of_clocks())), 1..60),
    ) {
        let mut world = match kind {
            0 => World::new(nodes, replicas),
            1 => World::provisioned(nodes, replicas, nodes + 2),
            _ => World::autoscaled(nodes),
        };
        for ((mask, write_status), fault) in script {
            world.pass(mask, write_status);
            if let Some(fault) = fault {
                world.fault(&fault);
            }
        }
        world.settle();
    }

    /// The same where nodes are asked for: what an autoscaler of the cluster can add is added, placeholders are never left, and no more groups ask
    /// than are wanted.
    #[test]
    fn asks_for_nodes_and_comes_to_rest(
        nodes in 0usize..4,
        most in 0usize..6,
        replicas in 1i32..4,
        script in prop::collection::vec((pass(), prop::option::weighted(0.3, fault())), 1..60),
    ) {
        let mut world = World::provisioned(nodes, replicas, most);
        for ((mask, write_status), fault) in script {
            world.pass(mask, write_status);
            if let Some(fault) = fault {
                world.fault(&fault);
            }
        }
        world.settle();
        world.check_provisioned();
    }

    /// The number of groups is written before any effect, whatever subset of plans and statuses was written; nobody who asks is forgotten.
    #[test]
    fn autoscaling_forgets_no_decision(
        nodes in 2usize..7,
        script in prop::collection::vec((pass(), prop::option::weighted(0.3, autoscaling_fault())), 1..60),
    ) {
        let mut world = World::autoscaled(nodes);
        for ((mask, write_status), fault) in script {
            world.pass(mask, write_status);
            if let Some(fault) = fault {
                world.fault(&fault);
            }
        }
        world.settle();
    }

    /// A canary comes to rest beside as many older groups as it was told to leave, and goes all the way when it is told.
    #[test]
    fn a_canary_comes_to_rest(
        nodes in 2usize..9,
        replicas in 1i32..4,
        script in prop::collection::vec(
            prop_oneof![
                2 => (0i32..4).prop_map(Fault::Partition),
                2 => (1u8..4).prop_map(Fault::Image),
                1 => (0usize..8).prop_map(Fault::Crash),
                1 => (1i32..4).prop_map(Fault::Scale),
                1 => (0usize..8).prop_map(Fault::RemoveNode),
            ],
            1..8,
        ),
    ) {
        let mut world = World::new(nodes, replicas);
        world.settle();
        for fault in script {
            world.fault(&fault);
            world.settle();
        }
        world.fault(&Fault::Partition(0));
        world.settle();
    }

    /// A group on CPUs goes on without its second member while there is no room, and with it when there is.
    #[test]
    fn goes_on_without_members_and_takes_them_back(
        nodes in 1usize..4,
        script in prop::collection::vec(
            (
                pass(),
                prop_oneof![
                    2 => (0usize..4).prop_map(Fault::RemoveNode),
                    3 => (0usize..4).prop_map(Fault::AddNode),
                    2 => (0usize..4).prop_map(Fault::Crash),
                    2 => (0usize..4).prop_map(Fault::Delete),
                    3 => (1u8..40).prop_map(Fault::Wait),
                ],
            ),
            1..60,
        ),
    ) {
        let mut world = World::degradable(nodes);
        for ((mask, write_status), fault) in script {
            world.pass(mask, write_status);
            world.fault(&fault);
            world.one_pod_each();
        }
        // Longer than any backoff.
        for _ in 0..500 {
            world.pass(u64::MAX, true);
        }
        world.check_degraded();
    }

    /// Faults strike a cluster at rest, one after another, and each time it comes to rest again.
    #[test]
    fn heals_from_rest(nodes in 2usize..6, faults in prop::collection::vec(fault(), 1..6)) {
        let mut world = World::new(nodes, 2);
        for fault in faults {
            world.settle();
            world.fault(&fault);
        }
        world.settle();
    }

    /// A planner that is told of changes decides about dirty deployments what is decided from scratch, and leaves alone only those about
    /// which nothing would be decided.
    #[test]
    fn changes_alone_lead_to_the_same_decisions(
        deployments in 2usize..4,
        nodes in 1usize..8,
        replicas in 0i32..3,
        script in prop::collection::vec((pass(), prop::option::weighted(0.3, (0usize..4, fault()))), 1..40),
    ) {
        let mut shared = Shared::new(deployments, nodes, replicas);
        for ((mask, write_status), fault) in script {
            shared.pass(mask, write_status);
            if let Some((at, fault)) = fault {
                shared.fault(at, &fault);
            }
        }
        let mut left_alone = false;
        for _ in 0..90 {
            left_alone |= shared.pass(u64::MAX, true) == 0;
        }
        prop_assert!(left_alone || !shared.serves(), "what serves is left alone");
    }
}
