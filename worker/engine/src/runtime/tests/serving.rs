//! What clients get while nothing breaks.

use super::fake::KV_BLOCKS;
use super::group::{Group, LONG, config, greedy, in_step, rest, token};
use super::model::{embedding, logprobs, reference};
use crate::pooling::Pooling;
use crate::runtime::{
    Event, FailureKind, FinishReason, GenerationRequest, Outcome, Phase, Sharing, SubmitError,
};
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
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            ..warm.clone()
        },
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
fn tokens_of_a_prompt_are_scored_once_each_in_every_world_and_batch() {
    let prompt: Vec<u32> = (0..75).map(|at| at * 7 % 512).collect();
    for world in [1, 3] {
        let group = Group::start(world);
        let engine = &group.leader().engine;
        let request = GenerationRequest {
            prompt_logprobs: Some(2),
            ..greedy(&prompt, 5)
        };
        // The second one finds the first one's blocks, but must compute them.
        let asked = [(); 2].map(|()| engine.submit_channel(request.clone()).unwrap());
        let mate = engine.submit_channel(greedy(&prompt, 5)).unwrap();
        for (_submission, events) in asked {
            let (mut scores, mut tokens) = (Vec::new(), Vec::new());
            loop {
                match events.recv_timeout(LONG).unwrap() {
                    Event::Scored(more) => scores.extend(more),
                    Event::Token { id, .. } => tokens.push(id),
                    Event::Finished { .. } => break,
                    Event::Started { cached_tokens } => assert_eq!(cached_tokens, 0),
                    Event::Accepted { .. } => {}
                    other => panic!("{other:?}"),
                }
                assert!(
                    tokens.is_empty() || scores.len() == prompt.len() - 1,
                    "scores come first"
                );
            }
            assert_eq!(tokens, reference(&prompt, &SamplingParams::greedy(), 5));
            assert!(
                scores
                    .iter()
                    .map(|score| score.id)
                    .eq(prompt[1..].iter().copied())
            );
            for (at, score) in scores.iter().enumerate() {
                let expected = logprobs(&prompt[..=at]);
                assert!((f64::from(score.logprob) - expected[score.id as usize]).abs() < 1e-5);
                let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert_eq!(score.top.len(), 2);
                assert!((f64::from(score.top[0].1) - best).abs() < 1e-5);
            }
        }
        assert_eq!(rest(&mate.1).0, reference(&prompt, &SamplingParams::greedy(), 5));
    }
}

#[test]
fn embeddings_are_the_same_in_every_world_and_batch_and_found_prefix() {
    let prompt: Vec<u32> = (0..75).map(|at| at * 7 % 512).collect();
    for world in [1, 3] {
        let group = Group::start(world);
        let engine = &group.leader().engine;
        let peer = engine.submit_channel(greedy(&prompt, 9)).unwrap();
        let inputs = [&prompt[..], &prompt[..64], &prompt[..1], &prompt[..75]];
        let asked: Vec<_> = inputs
            .iter()
            .flat_map(|input| [(*input, Pooling::Last), (*input, Pooling::Mean)])
            .map(|(input, pooling)| {
                let request = GenerationRequest::embedding(input.to_vec(), pooling, Sharing::default(), 0);
                (input, pooling, engine.submit_channel(request).unwrap())
            })
            .collect();
        for (input, pooling, (_submission, events)) in asked {
            let (mut found, mut cached) = (Vec::new(), 0);
            loop {
                match events.recv_timeout(LONG).unwrap() {
                    Event::Embedding(vector) => found.push(vector),
                    Event::Started { cached_tokens } => cached = cached_tokens,
                    Event::Accepted { prompt_tokens } => assert_eq!(prompt_tokens as usize, input.len()),
                    Event::Finished { output_tokens, .. } => {
                        assert_eq!(output_tokens, 0);
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(
                found,
                [embedding(input, pooling)],
                "{world} {pooling:?} {}",
                input.len()
            );
            assert!(
                pooling == Pooling::Last || cached == 0,
                "the mean is of all positions"
            );
        }
        assert_eq!(rest(&peer.1).0, reference(&prompt, &SamplingParams::greedy(), 9));
        assert_eq!(engine.load().running, 0);
    }
}

#[test]
fn the_context_may_be_full_of_a_text_that_is_embedded_and_not_fuller() {
    let group = Group::start(1);
    let engine = &group.leader().engine;
    let context = config(0, 1, LONG).max_context;
    let embed = |tokens: u32| {
        let prompt = (0..tokens).map(|at| at % 512).collect();
        let request = GenerationRequest::embedding(prompt, Pooling::Last, Sharing::Nobody, 0);
        let (_submission, events) = engine.submit_channel(request).unwrap();
        events.iter().last().unwrap()
    };
    assert!(matches!(embed(context), Event::Finished { .. }));
    assert!(matches!(
        embed(context + 1),
        Event::Failed {
            kind: FailureKind::TooLong,
            ..
        }
    ));
    assert!(matches!(
        embed(0),
        Event::Failed {
            kind: FailureKind::Invalid,
            ..
        }
    ));
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
