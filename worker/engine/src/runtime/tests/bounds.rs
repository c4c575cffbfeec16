//! What is bounded, and how a rank ends: slow steps, the queue, memory, errors that cannot heal.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::group::{Group, LONG, Rank, config, greedy, in_step, read_on, rest, token};
use super::model::reference;
use crate::backend::BackendError;
use crate::runtime::{Event, FinishReason, Phase, RankConfig, SubmitError};
use crate::sampling::SamplingParams;

/// One step whose layers move takes half as long again as a group may stand still, on rank `slow`.
fn a_slow_step_is_not_a_hang(world: u32, slow: usize) {
    // Long enough that a busy machine, which runs this thread late, is not taken for a hang either.
    let stall = Duration::from_secs(4);
    let mut group = Group::start(0);
    // In a real model peers exchange in every layer, here once a step: that must not end by the time-out.
    let patient = |rank| Rank::start_patient(config(rank, world, stall), Arc::default(), LONG);
    group.ranks = (0..world).map(patient).collect();
    group.form();
    let (leader, slow) = (group.leader(), &group.ranks[slow]);
    leader.wait_for(|state| state.phase == Phase::Serving);
    slow.faults.stall(true);
    slow.faults.deepen(1000);
    let (_submission, events) = leader.engine.submit_channel(greedy(&[1, 2], 3)).unwrap();
    // What was in flight before is over, so from here on it is one step.
    slow.faults.one_layer();
    let entered = slow.control.state().entered;
    let began = Instant::now();
    while began.elapsed() < stall * 3 / 2 {
        let before = slow.control.state().layers;
        slow.faults.one_layer();
        slow.wait_for(|state| state.layers > before);
    }
    assert!(slow.control.state().entered <= entered + 1, "the step was slow");
    slow.faults.deepen(1);
    slow.faults.stall(false);
    assert_eq!(rest(&events).0, reference(&[1, 2], &SamplingParams::greedy(), 3));
    assert_eq!(leader.control.state().era.epoch, 1, "no era was lost");
}

#[test]
fn a_slow_step_of_a_rank_alone_is_not_a_hang() {
    a_slow_step_is_not_a_hang(1, 0);
}

#[test]
fn a_slow_step_of_another_rank_is_not_a_hang() {
    a_slow_step_is_not_a_hang(2, 1);
}

#[test]
fn a_rank_that_hangs_alone_is_found_by_its_leader() {
    let group = Group::of(1, |rank| config(rank, 1, Duration::from_millis(400)));
    let rank = group.leader();
    rank.wait_for(|state| state.phase == Phase::Serving);
    rank.faults.stall(true);
    rank.wait_for(|state| state.last_failure == "rank 0 did not answer within 400 ms");
    rank.faults.stall(false);
    rank.wait_for(|state| state.era.epoch > 1 && state.phase == Phase::Serving);
}

#[test]
fn a_busy_group_of_one_takes_a_new_membership() {
    let mut group = Group::start(1);
    let (_submission, events) = in_step(&group.leader().engine, greedy(&[6, 7], 40));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let head = token(&events);
    group.leader().faults.stall(true);
    let reading = read_on(events);
    group.form();
    group.leader().wait_for(|state| state.era.generation == 2);
    group.leader().faults.stall(false);
    group
        .leader()
        .wait_for(|state| state.era.generation == 2 && state.phase == Phase::Serving);
    assert_eq!(
        [vec![head], reading.join().unwrap().0].concat(),
        reference(&[6, 7], &SamplingParams::greedy(), 40)
    );
}

#[test]
fn the_queue_is_bounded_and_says_so_at_once() {
    let limited = |tokens| RankConfig {
        max_queued_requests: 2,
        max_queued_tokens: tokens,
        ..config(0, 1, LONG)
    };
    // Not formed yet, so that requests wait.
    let rank = Rank::start_with(limited(None), Arc::default());
    let streams: Vec<_> = (0..2)
        .map(|_| rank.engine.submit_channel(greedy(&[1, 2], 2)).unwrap())
        .collect();
    let full = rank.engine.submit_channel(greedy(&[1, 2], 2)).err();
    match full {
        Some(SubmitError::Full { message, retry_after }) => {
            assert!(message.contains("2 requests wait already"), "{message}");
            assert!((Duration::from_secs(1)..=Duration::from_secs(60)).contains(&retry_after));
        }
        other => panic!("{other:?}"),
    }
    let mut group = Group::start(0);
    group.ranks.push(rank);
    group.form();
    for (_submission, events) in &streams {
        assert_eq!(rest(events).1, FinishReason::Length);
    }
    let rank = group.leader();
    assert!(
        rank.engine.submit_channel(greedy(&[1, 2], 2)).is_ok(),
        "there is room again"
    );

    let rank = Rank::start_with(limited(Some(10)), Arc::default());
    let mut interrupted = greedy(&[1; 4], 20);
    interrupted.resume = vec![1; 4];
    let (_submission, _events) = rank.engine.submit_channel(interrupted).unwrap();
    match rank.engine.submit_channel(greedy(&[1; 3], 2)).err() {
        Some(SubmitError::Full { message, .. }) => {
            assert!(message.contains("8 tokens wait already, and 10 may"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_hears_that_a_request_is_accepted_finds_it_counted() {
    // Not formed, so that it waits.
    let rank = Rank::start_with(config(0, 1, LONG), Arc::default());
    let (engine, (sender, counted)) = (rank.engine.clone(), mpsc::channel());
    let sink = Box::new(move |event| {
        let accepted = matches!(event, Event::Accepted { .. });
        !accepted || sender.send(engine.load().waiting).is_ok()
    });
    let _submission = rank.engine.submit(greedy(&[1, 2], 2), sink).unwrap();
    assert_eq!(counted.recv_timeout(LONG), Ok(1));
}

#[test]
fn cancelled_requests_leave_the_queue() {
    let limited = RankConfig {
        max_queued_requests: 1,
        ..config(0, 1, LONG)
    };
    let rank = Rank::start_with(limited, Arc::default());
    for _ in 0..5 {
        let (submission, events) = rank.engine.submit_channel(greedy(&[1, 2], 2)).unwrap();
        submission.cancel();
        assert_eq!(rest(&events).1, FinishReason::Cancelled);
    }
}

#[test]
fn memory_that_cannot_suffice_is_found_before_weights_are_read() {
    let small = RankConfig {
        kv_bytes: 1000,
        ..config(0, 1, LONG)
    };
    let rank = Rank::start_with(small, Arc::default());
    let (control, faults) = (rank.control.clone(), Arc::clone(&rank.faults));
    match rank.ended() {
        Err(BackendError::Unusable(why)) => {
            assert!(
                why.contains("needs 23 KV blocks of 400 bytes, 9200 bytes in all"),
                "{why}"
            );
            assert_eq!(control.state().message, why);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(faults.loads(), 0);
}

#[test]
fn a_plan_beyond_the_limit_names_its_parts() {
    let limited = |limit| RankConfig {
        kv_bytes: 10_000,
        memory_limit: Some(limit),
        ..config(0, 1, LONG)
    };
    let total = 5000 + 16 * 50 + 30 + 4 + 10_000;
    let rank = Rank::start_with(limited(total - 1), Arc::default());
    let faults = Arc::clone(&rank.faults);
    match rank.ended() {
        Err(BackendError::Unusable(why)) => {
            assert!(
                why.starts_with(
                    "rank 0 needs 15834 bytes and may use 15833: weights 5000, workspace for 16 tokens a step 800, logits 30, \
                     rotary angles 4, KV blocks 10000; raise"
                ),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(faults.loads(), 0);
    let rank = Rank::start_with(limited(total), Arc::default());
    rank.wait_for(|state| state.phase == Phase::Connecting);
}

#[test]
fn no_memory_for_the_cache_is_refused_and_not_taken_for_a_default() {
    let none = RankConfig {
        kv_bytes: 0,
        ..config(0, 1, LONG)
    };
    match Rank::start_with(none, Arc::default()).ended() {
        Err(BackendError::Unusable(why)) => assert!(why.contains("may use 0"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_heal_ends_the_rank_and_the_leader_knows_why() {
    let mut group = Group::start(3);
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    // Held, so that the answer is not finished before the group breaks.
    group.ranks[1].faults.stall(true);
    let (_submission, events) = group.leader().engine.submit_channel(greedy(&[6, 7], 60)).unwrap();
    group.ranks[1]
        .faults
        .unusable("the device has no memory left: free some");
    group.ranks[2].faults.cut();
    group.ranks[1].faults.stall(false);
    let broken = group.ranks.remove(1);
    let control = broken.control.clone();
    match broken.ended() {
        Err(BackendError::Unusable(why)) => assert!(why.contains("free some")),
        other => panic!("{other:?}"),
    }
    assert!(control.state().message.contains("free some"));
    group.leader().wait_for(|state| {
        state
            .last_failure
            .contains("lost rank 1: the device has no memory left: free some")
    });
    group.ranks.insert(1, Rank::start(1, 3, LONG));
    group.form();
    assert_eq!(rest(&events).0, reference(&[6, 7], &SamplingParams::greedy(), 60));
}

#[test]
fn a_leader_whose_own_compute_cannot_work_ends_too() {
    let mut group = Group::start(2);
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    group.leader().faults.unusable("another device is needed");
    group.ranks[1].faults.cut();
    let leader = group.ranks.remove(0);
    match leader.ended() {
        Err(BackendError::Unusable(why)) => assert_eq!(why, "another device is needed"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_leader_says_what_a_slow_member_does_while_it_forms() {
    let ranks = (0..2).map(|rank| Rank::start(rank, 2, LONG)).collect();
    let mut group = Group::start(0);
    group.ranks = ranks;
    group.ranks[1].faults.hold_forming(true);
    group.form();
    let state = group
        .leader()
        .wait_for(|state| state.message == "rank 1: makes room");
    assert_eq!(state.phase, Phase::Warming);
    group.ranks[1].faults.hold_forming(false);
    let state = group.leader().wait_for(|state| state.phase == Phase::Serving);
    assert_eq!(state.message, "");
}

#[test]
fn a_member_with_other_weights_ends_the_leader_with_its_words() {
    let mut group = Group::of(2, |rank| RankConfig {
        content: format!("weights {rank}"),
        backoff: (Duration::from_millis(1), Duration::from_millis(1)),
        ..config(rank, 2, LONG)
    });
    match group.ranks.remove(0).ended() {
        Err(BackendError::Unusable(why)) => {
            assert!(
                why.contains("rank 0 has other weights (weights 0) than rank 1 (weights 1)"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn invalid_answers_of_two_eras_in_a_row_are_a_bug() {
    let mut group = Group::start(2);
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    // Held, so that the answer is not finished before its rows are garbled.
    group.ranks[1].faults.stall(true);
    let (_submission, events) = group.leader().engine.submit_channel(greedy(&[6, 7], 60)).unwrap();
    group.ranks[1].faults.garble();
    group.ranks[1].faults.stall(false);
    let leader = group.ranks.remove(0);
    let control = leader.control.clone();
    match leader.ended() {
        Err(BackendError::Bug(why)) => {
            assert!(
                why.contains("two eras in a row") && why.contains("rank 1 sent an invalid frame: row 99"),
                "{why}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(control.state().era.epoch, 2);
    assert!(matches!(events.iter().last(), Some(Event::Failed { .. })));
}
