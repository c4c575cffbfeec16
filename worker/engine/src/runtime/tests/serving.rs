//! What clients get while nothing breaks.

use super::fake::KV_BLOCKS;
use super::group::{Group, LONG, greedy, in_step, rest, token};
use super::model::reference;
use crate::runtime::{Event, FailureKind, FinishReason, GenerationRequest, Outcome, Phase, SubmitError};
use crate::sampling::SamplingParams;

fn samplings() -> Vec<SamplingParams> {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams {
        temperature: 0.8,
        seed: 5,
        ..greedy.clone()
    };
    vec![
        warm.clone(),
        SamplingParams {
            top_k: 5,
            ..warm.clone()
        },
        // Wider than the candidates, so that full rows are fetched.
        SamplingParams {
            top_p: 0.9,
            temperature: 3.0,
            seed: 6,
            ..greedy.clone()
        },
        SamplingParams {
            presence_penalty: 2.0,
            frequency_penalty: 1.0,
            logit_bias: vec![(9, 5.0)],
            ..greedy.clone()
        },
        greedy,
    ]
}

#[test]
fn tokens_are_the_same_in_every_world_and_batch() {
    for world in 1..=4 {
        let group = Group::start(world);
        let requests: Vec<GenerationRequest> = (0..10)
            .zip(samplings().into_iter().cycle())
            .map(|(i, sampling)| GenerationRequest {
                sampling,
                ..greedy(&vec![i + 1; 1 + 3 * i as usize], 30)
            })
            .collect();
        let answers: Vec<_> = requests
            .iter()
            .map(|request| group.leader().engine.submit_channel(request.clone()).unwrap())
            .collect();
        for (request, (_submission, events)) in requests.iter().zip(answers) {
            let prompt_tokens = u32::try_from(request.prompt.len()).unwrap();
            assert_eq!(events.recv_timeout(LONG), Ok(Event::Accepted { prompt_tokens }));
            let (tokens, reason) = rest(&events);
            assert_eq!(reason, FinishReason::Length);
            assert_eq!(
                tokens,
                reference(&request.prompt, &request.sampling, 30),
                "world {world}, {request:?}"
            );
        }
        let load = group.leader().engine.load();
        assert_eq!(load.output_tokens, 300);
        assert_eq!(load.time_to_first_token.count, 10);
        assert_eq!(load.inter_token_latency.count, 290);
        assert_eq!(
            load.kv_blocks_total, KV_BLOCKS,
            "the smallest of the ranks' figures"
        );
        assert!(group.ranks.iter().all(|rank| rank.faults.full_rows() > 0));
    }
}

#[test]
fn stop_tokens_end_an_answer() {
    let group = Group::start(2);
    let tokens = reference(&[1, 2, 3], &SamplingParams::greedy(), 12);
    let stop = tokens[9];
    let expected = tokens.iter().position(|token| *token == stop).unwrap();
    let request = GenerationRequest {
        stop_tokens: vec![stop],
        ..greedy(&[1, 2, 3], 12)
    };
    let (_submission, events) = group.leader().engine.submit_channel(request).unwrap();
    assert_eq!(
        rest(&events),
        (tokens[..expected].to_vec(), FinishReason::StopToken(stop))
    );
}

#[test]
fn an_interrupted_answer_goes_on_behind_what_the_client_has() {
    let group = Group::start(2);
    let engine = &group.leader().engine;
    for sampling in samplings() {
        let tokens = reference(&[4, 5], &sampling, 20);
        let request = |resume: &[u32]| GenerationRequest {
            resume: resume.to_vec(),
            sampling: sampling.clone(),
            ..greedy(&[4, 5], 20)
        };
        let (_submission, events) = engine.submit_channel(request(&tokens[..7])).unwrap();
        assert_eq!(rest(&events), (tokens[7..].to_vec(), FinishReason::Length));
        let (_submission, events) = engine.submit_channel(request(&tokens)).unwrap();
        assert_eq!(rest(&events), (vec![], FinishReason::Length));
    }
}

#[test]
fn what_can_never_fit_is_refused_with_a_sentence() {
    let group = Group::start(1);
    for (prompt, max_tokens, kind, words) in [
        (
            vec![1; 80],
            11,
            FailureKind::TooLong,
            "shorten the prompt or lower max_tokens",
        ),
        (vec![], 5, FailureKind::Invalid, "at least one token"),
        (vec![1], 0, FailureKind::Invalid, "max_tokens"),
    ] {
        let (_submission, events) = group
            .leader()
            .engine
            .submit_channel(greedy(&prompt, max_tokens))
            .unwrap();
        match events.recv_timeout(LONG).unwrap() {
            Event::Failed { kind: told, message } => {
                assert!(message.contains(words), "{message}");
                assert_eq!(told, kind, "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn cancelling_frees_blocks() {
    let group = Group::start(2);
    let engine = &group.leader().engine;
    let (submission, events) = in_step(engine, greedy(&[7; 20], 70));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    token(&events);
    submission.cancel();
    assert_eq!(rest(&events).1, FinishReason::Cancelled);

    // Whoever drops the submission or the receiver cancels too.
    let (submission, dropped) = in_step(engine, greedy(&[8; 20], 70));
    drop(submission);
    assert_eq!(rest(&dropped).1, FinishReason::Cancelled);
    let (_submission, unheard) = in_step(engine, greedy(&[9; 20], 70));
    drop(unheard);

    // A request that needs nearly all blocks is served at once.
    let (_submission, events) = engine.submit_channel(greedy(&[7; 80], 5)).unwrap();
    assert_eq!(rest(&events).0, reference(&[7; 80], &SamplingParams::greedy(), 5));
    let load = engine.load();
    assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
}

#[test]
fn idle_groups_step() {
    let group = Group::start(3);
    for rank in &group.ranks {
        let state = rank.wait_for(|state| state.completed >= 3);
        assert_eq!(state.phase, Phase::Serving);
        assert_eq!((state.loaded, state.total), (7, 7));
        assert_eq!(state.message, "");
    }
    assert!(group.leader().engine.idle_for().unwrap() < LONG);
}

#[test]
fn a_drained_group_finishes_and_leaves() {
    let mut group = Group::start(3);
    let engine = group.leader().engine.clone();
    let (_submission, events) = in_step(&engine, greedy(&[1, 2, 3], 40));
    assert!(matches!(events.recv_timeout(LONG), Ok(Event::Accepted { .. })));
    let first = token(&events);
    for rank in &group.ranks {
        rank.control.drain(std::time::Duration::ZERO);
    }
    assert_eq!(
        engine.submit_channel(greedy(&[1], 1)).err(),
        Some(SubmitError::Draining)
    );
    assert!(engine.load().draining);
    let (others, reason) = rest(&events);
    assert_eq!(reason, FinishReason::Length);
    assert_eq!(
        [vec![first], others].concat(),
        reference(&[1, 2, 3], &SamplingParams::greedy(), 40)
    );
    let outcomes: Vec<Outcome> = group.ranks.drain(..).map(super::group::Rank::outcome).collect();
    assert_eq!(outcomes, [Outcome::Drained, Outcome::Left, Outcome::Left]);
    assert_eq!(
        engine.submit_channel(greedy(&[1], 1)).err(),
        Some(SubmitError::Draining)
    );
}
