//! Leader, planner, executor and members without threads: every message is delivered on its own, in any order between
//! members, while requests come and go, members fail, links are lost, and groups form again with what is left.
//!
//! | module | what it is |
//! |---|---|
//! | [`world`] | a simulated group, and what may happen to it |
//! | [`member`] | one of its members |
//! | [`client`] | a client, and what it must have heard |
//! | [`drafts`] | guessed tokens |
//! | [`one_prompt`] | requests with one prompt |
//! | [`order`] | what is sent when |
//! | [`budget`] | how long steps are |
//! | [`shrinking`] | answers without an end in a group that holds less |

mod budget;
mod client;
mod drafts;
mod member;
mod one_prompt;
mod order;
mod shrinking;
mod world;

use std::time::Duration;

use client::answer;
use proptest::prelude::*;
use world::{Left, Simulation};

use super::fake::KV_BLOCKS;
use super::group::{LONG, config, greedy};
use super::model::{REPEATING, reference};
use crate::mesh::Topology;
use crate::runtime::{Event, FinishReason, GenerationRequest, RankConfig, Sharing};
use crate::sampling::SamplingParams;
use crate::schedule::{Drafted, Speculation};

#[derive(Debug, Clone)]
enum Act {
    Arrive {
        prompt: usize,
        family: u32,
        output: u32,
        sampling: usize,
        stop: Option<usize>,
        patience: usize,
        constrained: bool,
        scores: Option<u16>,
    },
    Member(usize),
    Compute(usize),
    Deliver(usize),
    Cancel(usize),
    Heartbeat,
    /// The leader takes what was sent to it; this is left when an era ends by it.
    Take(Left),
    /// A member's answer is sent and not taken yet.
    Answer(usize),
    Fail(usize),
    Cut(usize),
    /// Something of the era before this one comes only now.
    Replay(usize),
}

fn left() -> impl Strategy<Value = Left> {
    prop_oneof![
        3 => Just(Left::All),
        1 => (0_usize..9).prop_map(Left::ButOne),
        1 => (6_u32..=KV_BLOCKS).prop_map(Left::Blocks),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let arrive = (
        1_usize..40,
        prop_oneof![3 => 0_u32..3, 2 => Just(REPEATING)],
        1_u32..20,
        0_usize..8,
        prop::option::weighted(0.3, 0_usize..20),
        prop_oneof![5 => Just(usize::MAX), 1 => 1_usize..10],
        prop::bool::weighted(0.25),
        prop::option::weighted(0.2, 0_u16..4),
    );
    prop_oneof![
        6 => arrive.prop_map(|(prompt, family, output, sampling, stop, patience, constrained, scores)| {
            Act::Arrive { prompt, family, output, sampling, stop, patience, constrained, scores }
        }),
        60 => (0_usize..9).prop_map(Act::Member),
        20 => (0_usize..9).prop_map(Act::Compute),
        40 => (0_usize..9).prop_map(Act::Deliver),
        2 => any::<usize>().prop_map(Act::Cancel),
        2 => Just(Act::Heartbeat),
        10 => left().prop_map(Act::Take),
        10 => (0_usize..9).prop_map(Act::Answer),
        1 => (0_usize..9).prop_map(Act::Fail),
        1 => (0_usize..9).prop_map(Act::Cut),
        5 => any::<usize>().prop_map(Act::Replay),
    ]
}

fn sampling(kind: usize, seed: u64) -> SamplingParams {
    let greedy = SamplingParams::greedy();
    let warm = SamplingParams {
        temperature: 0.9,
        seed,
        ..greedy.clone()
    };
    match kind {
        0 => greedy,
        1 => warm,
        2 => SamplingParams { top_k: 4, ..warm },
        // Wide, so that full rows are fetched.
        3 => SamplingParams {
            top_p: 0.95,
            temperature: 3.0,
            ..warm
        },
        4 => SamplingParams {
            presence_penalty: 1.5,
            frequency_penalty: 0.5,
            ..warm
        },
        // Cool, so that answers repeat; the first of these fetches full rows.
        5 => SamplingParams {
            top_p: 0.999_999,
            temperature: 0.05,
            ..warm
        },
        6 => SamplingParams {
            frequency_penalty: 0.01,
            repetition_penalty: 1.01,
            min_tokens: 9,
            ends: vec![3, 8],
            bad_words: vec![vec![1, 2], vec![5]],
            temperature: 0.02,
            ..warm
        },
        _ => SamplingParams {
            logit_bias: vec![(7, 3.0), (300, -2.0)],
            logprobs: Some(2),
            ..greedy
        },
    }
}

impl Simulation {
    fn take(&mut self, act: Act) {
        let ranks = self.members.len();
        match act {
            Act::Arrive {
                prompt,
                family,
                output,
                sampling: kind,
                stop,
                patience,
                constrained,
                scores,
            } => {
                let number = self.clients.len() as u32;
                // Prompts of one family begin alike.
                let prompt: Vec<u32> = (0..prompt as u32).map(|at| (at * 7 + family) % 512).collect();
                let mut request = GenerationRequest {
                    sampling: sampling(kind, u64::from(number)),
                    prompt_logprobs: scores,
                    ..greedy(&prompt, output)
                };
                let answer = answer(&request, constrained);
                let stop = stop.map(|at| answer[at % answer.len()]);
                request.stop_tokens = stop.into_iter().collect();
                match constrained {
                    true => self.arrive_constrained(request, patience),
                    false => self.arrive(request, patience),
                }
            }
            Act::Member(rank) => {
                self.act(rank % ranks);
            }
            Act::Compute(rank) => {
                let now = self.now();
                self.members[rank % ranks].compute(now);
            }
            Act::Deliver(rank) => {
                self.deliver(rank % ranks);
            }
            Act::Cancel(pick) => self.cancel(pick),
            Act::Heartbeat => self.heartbeat(),
            Act::Take(left) => self.take_inputs(left),
            Act::Answer(rank) => {
                self.answer(rank % ranks);
            }
            Act::Fail(rank) => self.fail(rank % ranks),
            Act::Cut(rank) => self.cut(rank % ranks),
            Act::Replay(pick) => self.replay(pick),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn no_token_is_lost_and_no_block_leaks(
        acts in prop::collection::vec(act(), 1..500),
        (tensor, pipeline) in (1_u32..4, 1_u32..4),
        depth in 1_u32..5,
        max_sequences in 1_u32..6,
        max_batched_tokens in 4_u32..40,
        max_drafts in 0_u32..6,
    ) {
        let mut simulation = Simulation::with(RankConfig {
            members: Topology { tensor, pipeline }.into(),
            steps_in_flight: depth,
            max_sequences,
            max_batched_tokens,
            speculation: (max_drafts > 0).then_some(Speculation { max_drafts, drafted: Drafted::All }),
            ..config(0, 1, Duration::from_secs(1 << 30))
        });
        for act in acts {
            simulation.take(act);
        }
        simulation.check();
    }
}

/// A prompt of 12 tokens is three full blocks, one of 13 has one token more.
fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|at| at * 5 + 3).collect()
}

impl Simulation {
    /// Ask and wait for the answer; tokens of the prompt that were cached.
    fn ask(&mut self, request: GenerationRequest) -> u32 {
        self.arrive(request, usize::MAX);
        self.take_inputs(Left::All);
        self.settle();
        self.cached_tokens(self.clients.len() - 1)
    }
}

#[test]
fn what_was_computed_for_the_beginning_of_a_prompt_is_found() {
    let mut simulation = Simulation::new(2, 2, 4, 16);
    assert_eq!(simulation.ask(greedy(&prompt(13), 6)), 0);
    assert_eq!(simulation.ask(greedy(&prompt(13), 6)), 12);
    assert_eq!(
        simulation.ask(greedy(&prompt(12), 6)),
        11,
        "the last token is computed again"
    );
    assert_eq!(simulation.ask(greedy(&prompt(7), 6)), 4);
    // The answer's blocks are found as well: a conversation goes on behind it.
    let answer = reference(&prompt(13), &SamplingParams::greedy(), 6);
    let longer = [prompt(13), answer, vec![9]].concat();
    assert_eq!(simulation.ask(greedy(&longer, 6)), 16);
    let salted = |salt: Sharing| GenerationRequest {
        sharing: salt,
        ..greedy(&prompt(13), 6)
    };
    assert_eq!(simulation.ask(salted(Sharing::With("a".into()))), 0);
    assert_eq!(simulation.ask(salted(Sharing::With("a".into()))), 12);
    assert_eq!(simulation.ask(salted(Sharing::Nobody)), 0);
    simulation.check();
}

#[test]
fn a_group_without_prefix_cache_finds_nothing() {
    let mut simulation = Simulation::with(RankConfig {
        prefix_cache: false,
        ..config(0, 2, LONG)
    });
    for _ in 0..2 {
        assert_eq!(simulation.ask(greedy(&prompt(13), 6)), 0);
    }
    simulation.check();
}

#[test]
fn blocks_are_found_in_the_next_era_where_all_ranks_have_kept_them() {
    for (left, found) in [
        (Left::All, 12),
        (Left::ButOne(1), 0),
        (Left::Blocks(KV_BLOCKS - 1), 0),
    ] {
        let mut simulation = Simulation::new(2, 2, 4, 16);
        simulation.ask(greedy(&prompt(13), 6));
        simulation.cut(0);
        simulation.take_inputs(left);
        assert_eq!(simulation.losses, 1);
        assert_eq!(simulation.ask(greedy(&prompt(13), 6)), found, "{left:?}");
        simulation.check();
    }
}

#[test]
fn a_request_that_comes_with_a_lost_link_is_not_lost() {
    let mut simulation = Simulation::new(2, 2, 4, 16);
    simulation.arrive(greedy(&prompt(5), 6), usize::MAX);
    simulation.cut(1);
    simulation.arrive(greedy(&prompt(9), 6), usize::MAX);
    simulation.fail(0);
    simulation.take_inputs(Left::Blocks(7));
    assert_eq!(simulation.losses, 1, "both say the same of one era");
    simulation.check();
    for client in &simulation.clients {
        assert!(matches!(
            client.events.lock().unwrap().last(),
            Some(Event::Finished {
                reason: FinishReason::Length,
                ..
            })
        ));
    }
}

/// Wide and hot: the candidates do not hold enough of the mass.
#[test]
fn an_answer_from_full_rows_is_the_same_through_a_loss() {
    let mut simulation = Simulation::new(2, 2, 4, 16);
    for (seed, constrained) in [(1, false), (2, true), (3, false)] {
        let request = GenerationRequest {
            sampling: sampling(3, seed),
            ..greedy(&prompt(7), 12)
        };
        match constrained {
            true => simulation.arrive_constrained(request, usize::MAX),
            false => simulation.arrive(request, usize::MAX),
        }
    }
    simulation.take_inputs(Left::All);
    simulation.settle();
    let asked = simulation.full_rows();
    assert!(asked > 0, "no row is fetched");
    // A member is lost while rows of the next answer are fetched.
    simulation.arrive(
        GenerationRequest {
            sampling: sampling(3, 4),
            ..greedy(&prompt(5), 12)
        },
        usize::MAX,
    );
    simulation.take_inputs(Left::All);
    for _ in 0..10_000 {
        for rank in 0..2 {
            simulation.act(rank);
        }
        if simulation.full_rows() > asked {
            break;
        }
        for rank in 0..2 {
            simulation.deliver(rank);
        }
    }
    assert!(simulation.full_rows() > asked);
    simulation.fail(1);
    simulation.take_inputs(Left::All);
    assert_eq!(simulation.losses, 1);
    simulation.check();
}

#[test]
fn what_comes_of_an_era_that_is_over_changes_nothing() {
    let mut simulation = Simulation::new(2, 2, 4, 16);
    simulation.arrive(greedy(&prompt(9), 12), usize::MAX);
    simulation.take_inputs(Left::All);
    for _ in 0..4 {
        for rank in 0..2 {
            simulation.act(rank);
            simulation.deliver(rank);
        }
    }
    simulation.cut(1);
    simulation.take_inputs(Left::All);
    // Answers to steps whose numbers are in flight again, and the end of a link.
    for pick in 0..20 {
        simulation.replay(pick);
    }
    simulation.take_inputs(Left::All);
    assert_eq!(simulation.losses, 1);
    simulation.check();
}
