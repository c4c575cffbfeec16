//! What requests are told when the group loses members or room.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::group::{Group, LONG, config, greedy, rest, token};
use super::model::reference;
use crate::mesh::GroupKey;
use crate::runtime::planner::Planner;
use crate::runtime::queue::QueueGauge;
use crate::runtime::{Event, FailureKind, FinishReason, GenerationRequest, Phase};
use crate::sampling::SamplingParams;
use crate::schedule::{Limits, SequenceId};
use crate::step::Era;

#[test]
fn a_request_that_brings_down_members_ends_and_spares_the_others() {
    let group = Group::start(2);
    let engine = &group.leader().engine;
    let prompts: [&[u32]; 3] = [&[1, 2], &[9], &[5, 6]];
    let answers = prompts.map(|prompt| reference(prompt, &SamplingParams::greedy(), 25));
    let harmless = |token: &u32| !answers.iter().any(|answer| answer.contains(token));
    let deadly = (100..512).find(harmless).unwrap();
    group.ranks[1].faults.die_of(deadly);
    let others: Vec<_> = prompts
        .iter()
        .map(|prompt| engine.submit_channel(greedy(prompt, 25)).unwrap())
        .collect();
    let (_deadly, events) = engine.submit_channel(greedy(&[4, deadly, 4], 5)).unwrap();
    match events.iter().last().unwrap() {
        Event::Failed { kind, message } => {
            assert_eq!(kind, FailureKind::Internal, "{message}");
            assert!(
                message.contains("lost 3 times in a row while they worked on this request")
                    && message.contains("fewer than 64 tokens")
                    && message.contains("lost rank 1"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
    for (answer, (_submission, events)) in answers.into_iter().zip(&others) {
        assert_eq!(rest(events), (answer, FinishReason::Length));
    }
    let state = group
        .leader()
        .wait_for(|state| state.phase == Phase::Serving && state.era.epoch > 3);
    assert_eq!(state.era.epoch, 4, "three eras were lost");
}

#[test]
fn a_generation_that_reaches_a_member_first_is_no_loss_of_a_request() {
    let mut group = Group::start(2);
    let (_submission, events) = group.leader().engine.submit_channel(greedy(&[6, 7], 60)).unwrap();
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let head = token(&events);
    group.leader().faults.stall(true);
    for generation in 2..=5 {
        group
            .leader()
            .wait_for(|state| state.era.generation + 1 == generation && state.entered > 0);
        group.generation = generation;
        group.key = GroupKey::random().unwrap();
        assert_eq!(group.ranks[1].control.form(group.membership()), Ok(true));
        group
            .leader()
            .wait_for(|state| state.phase == Phase::Connecting && state.last_failure.contains("rank 1"));
        assert_eq!(group.leader().control.form(group.membership()), Ok(true));
    }
    group.leader().faults.stall(false);
    assert_eq!(
        [vec![head], rest(&events).0].concat(),
        reference(&[6, 7], &SamplingParams::greedy(), 60)
    );
}

fn limits(blocks: u32) -> Limits {
    config(0, 1, LONG).limits(blocks)
}

struct Alone {
    planner: Planner,
    queue: Arc<QueueGauge>,
    next: u64,
}

impl Alone {
    fn new(blocks: u32) -> Self {
        let queue = Arc::new(QueueGauge::new(10, 1000));
        let target = Duration::from_secs(1);
        Self {
            planner: Planner::new(
                limits(blocks),
                2,
                target,
                Arc::default(),
                Arc::clone(&queue),
                config(0, 1, LONG).prefix(),
            ),
            queue,
            next: 0,
        }
    }

    fn submit(&mut self, request: GenerationRequest) -> Receiver<Event> {
        let (sender, events) = channel();
        let sink = Box::new(move |event| sender.send(event).is_ok());
        self.queue.enter(request.queued_tokens()).unwrap();
        let id = SequenceId(self.next);
        self.next += 1;
        self.planner.submit(id, request, None, sink, Instant::now());
        events
    }
}

fn failure(events: &Receiver<Event>) -> FailureKind {
    match events.try_iter().last() {
        Some(Event::Failed { kind, .. }) => kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_smaller_group_cannot_hold_may_go_on_elsewhere() {
    let mut alone = Alone::new(20);
    let long = alone.submit(greedy(&[1; 40], 20));
    let short = alone.submit(greedy(&[1; 10], 10));
    let era = Era {
        generation: 1,
        epoch: 2,
    };
    alone.planner.enter(era, limits(10), None);
    assert_eq!(failure(&long), FailureKind::Unavailable);
    assert!(matches!(short.try_iter().last(), Some(Event::Accepted { .. })));
}

#[test]
fn an_answer_that_was_begun_elsewhere_is_not_the_clients_mistake_here() {
    let mut alone = Alone::new(10);
    let resumed = |max_tokens| GenerationRequest {
        resume: vec![3; 5],
        ..greedy(&[1; 40], max_tokens)
    };
    let events = alone.submit(resumed(20));
    assert_eq!(failure(&events), FailureKind::Unavailable);
    let events = alone.submit(resumed(80));
    assert_eq!(
        failure(&events),
        FailureKind::TooLong,
        "no group of these settings holds it"
    );
    let events = alone.submit(greedy(&[1; 40], 20));
    assert_eq!(failure(&events), FailureKind::TooLong);
    assert_eq!(alone.queue.waiting(), (0, 0));
}
