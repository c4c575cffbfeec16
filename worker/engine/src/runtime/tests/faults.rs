//! Ranks are lost, replaced and stalled; streams go on.

use std::time::Duration;

use super::group::{Group, LONG, Rank, greedy, in_step, read_on, rest, token};
use super::model::reference;
use crate::runtime::{Event, FailureKind, FinishReason, Outcome, Phase};
use crate::sampling::SamplingParams;

#[test]
fn a_lost_rank_costs_no_token() {
    for victim in 0..3 {
        let group = Group::start(3);
        let prompts: [&[u32]; 3] = [&[1, 2, 3], &[9; 30], &[5]];
        let engine = &group.leader().engine;
        // The first one holds up the others, which begin with it: nothing is computed before all are accepted.
        group.ranks[victim].faults.stall(true);
        let mut streams = vec![in_step(engine, greedy(prompts[0], 50))];
        for prompt in &prompts[1..] {
            streams.push(engine.submit_channel(greedy(prompt, 50)).unwrap());
        }
        for (_, events) in &streams {
            assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
        }
        group.ranks[victim].faults.stall(false);
        let mut heads = Vec::new();
        for (_, events) in &streams {
            heads.push((0..5).map(|_| token(events)).collect::<Vec<u32>>());
        }
        group.ranks[victim].faults.cut();
        for ((prompt, head), (_submission, events)) in prompts.iter().zip(heads).zip(&streams) {
            let (tail, reason) = rest(events);
            assert_eq!(reason, FinishReason::Length);
            assert_eq!(
                [head, tail].concat(),
                reference(prompt, &SamplingParams::greedy(), 50),
                "victim {victim}"
            );
        }
        for rank in &group.ranks {
            let state = rank.wait_for(|state| state.era.epoch > 1 && state.phase == Phase::Serving);
            assert_eq!(state.era.generation, 1, "no help from outside was needed");
            assert_eq!(rank.faults.loads(), 1, "weights are kept");
        }
    }
}

#[test]
fn a_replaced_member_joins_in_the_next_generation() {
    let mut group = Group::start(3);
    let (_submission, events) = in_step(&group.leader().engine, greedy(&[6, 7], 60));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let head: Vec<u32> = (0..5).map(|_| token(&events)).collect();

    let lost = group.ranks.pop().unwrap();
    lost.control.stop();
    lost.outcome();
    let reading = read_on(events);
    let missing = |message: &str| message.contains("rank 2") && message.contains("cannot be reached");
    group
        .leader()
        .wait_for(|state| state.phase == Phase::Connecting && missing(&state.message));

    group.ranks.push(Rank::start(2, 3, LONG));
    group.form();
    let (tail, _) = reading.join().unwrap();
    assert_eq!(
        [head, tail].concat(),
        reference(&[6, 7], &SamplingParams::greedy(), 60)
    );
    for rank in &group.ranks {
        rank.wait_for(|state| state.era.generation == 2 && state.phase == Phase::Serving);
        assert_eq!(rank.faults.loads(), 1);
    }
}

#[test]
fn members_outlive_a_leader_that_is_told_to_stop() {
    let mut group = Group::start(3);
    let (_submission, events) = in_step(&group.leader().engine, greedy(&[6, 7], 60));
    group.leader().control.drain(Duration::ZERO);
    assert_eq!(
        rest(&events).0,
        reference(&[6, 7], &SamplingParams::greedy(), 60),
        "what runs is finished"
    );
    assert_eq!(group.ranks.remove(0).outcome(), Outcome::Drained);
    for rank in &group.ranks {
        rank.wait_for(|state| state.phase == Phase::Connecting && state.message.contains("told to stop"));
    }
    group.ranks.insert(0, Rank::start(0, 3, LONG));
    group.form();
    for rank in &group.ranks {
        rank.wait_for(|state| state.era.generation == 2 && state.phase == Phase::Serving);
        assert_eq!(rank.faults.loads(), 1, "weights are kept");
    }
    // A member that is told to stop after its leader has left has nothing to wait for.
    group.leader().control.drain(Duration::ZERO);
    assert_eq!(group.ranks.remove(0).outcome(), Outcome::Drained);
    for rank in group.ranks {
        rank.control.drain(Duration::ZERO);
        assert_eq!(rank.outcome(), Outcome::Left);
    }
}

#[test]
fn a_replaced_leader_that_is_told_to_stop_hands_its_requests_back() {
    let mut group = Group::start(2);
    let (_submission, events) = in_step(&group.leader().engine, greedy(&[6, 7], 80));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    token(&events);
    let old = group.ranks.remove(0);
    old.control.drain(Duration::ZERO);
    group.ranks.insert(0, Rank::start(0, 2, LONG));
    group.form();
    let last = events.iter().last();
    assert!(
        matches!(&last, Some(Event::Failed { kind: FailureKind::Unavailable, message }) if message.contains("replaced")),
        "{last:?}"
    );
    assert_eq!(old.outcome(), Outcome::Drained);
    group.leader().wait_for(|state| state.phase == Phase::Serving);
}

#[test]
fn a_restarted_leader_finds_a_later_epoch() {
    let mut group = Group::start(2);
    group.leader().wait_for(|state| state.phase == Phase::Serving);
    group.ranks[1].faults.cut();
    group
        .leader()
        .wait_for(|state| state.era.epoch > 1 && state.phase == Phase::Serving);
    let before = group.leader().control.state().era;
    let address = group.ranks[0].address;
    drop(std::mem::replace(&mut group.ranks[0], Rank::start(0, 2, LONG)));
    // The old leader's address is of no account: nobody dials rank 0.
    assert_ne!(group.ranks[0].address, address);
    assert_eq!(group.ranks[0].control.form(group.membership()), Ok(true));
    let state = group.leader().wait_for(|state| state.phase == Phase::Serving);
    assert!(state.era > before, "{:?} after {before:?}", state.era);
    assert_eq!(group.ranks[1].faults.loads(), 1);
}

#[test]
fn a_stalled_rank_is_named_by_everybody_and_has_computed_least() {
    // Long enough that a rank which a busy machine runs late is not taken for the stalled one.
    let group = Group::with_stall(3, Duration::from_secs(4));
    let (_submission, events) = in_step(&group.leader().engine, greedy(&[3], 60));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let head: Vec<u32> = (0..3).map(|_| token(&events)).collect();
    group.ranks[2].faults.stall(true);
    let reading = read_on(events);
    let late = "rank 2 did not answer within 4000 ms";
    for rank in &group.ranks[..2] {
        rank.wait_for(|state| state.last_failure == late);
    }
    // All entered that step, and this one computed less of it. Ranks show their layers now and then.
    let two = group.ranks[2].control.state().layers;
    for rank in &group.ranks[..2] {
        rank.wait_for(|state| state.layers > two);
    }
    group.ranks[2].faults.stall(false);
    let (tail, _) = reading.join().unwrap();
    assert_eq!(
        [head, tail].concat(),
        reference(&[3], &SamplingParams::greedy(), 60)
    );
}

#[test]
fn memberships_only_grow() {
    let mut group = Group::start(2);
    let first = group.membership();
    group.form();
    let control = &group.ranks[1].control;
    assert_eq!(
        control.form(group.membership()),
        Ok(false),
        "the same one again changes nothing"
    );
    assert!(
        control
            .form(first.clone())
            .unwrap_err()
            .contains("generation 1 is old")
    );
    let other = crate::mesh::Membership {
        group_uid: "other".into(),
        generation: 9,
        ..first.clone()
    };
    assert!(control.form(other).unwrap_err().contains("belongs to group"));
    let small = crate::mesh::Membership {
        generation: 9,
        addresses: first
            .addresses
            .iter()
            .take(1)
            .map(|(rank, at)| (*rank, *at))
            .collect(),
        ..first
    };
    assert!(control.form(small).unwrap_err().contains("1 members were sent"));
}
