//! Leader, planner, executor and members without threads: every message is delivered on its own, in any order between
//! members, while requests come and go, members fail, links are lost, and groups form again with what is left.
//!
//! | module | what it is |
//! |---|---|
//! | [`world`] | a simulated group, and what may happen to it |
//! | [`member`] | one of its members |
//! | [`client`] | a client, and what it must have heard |

mod client;
mod member;
mod world;

use proptest::prelude::*;
use world::{Left, Simulation};

use super::fake::KV_BLOCKS;
use super::group::{LONG, config, greedy};
use super::model::reference;
use crate::mesh::{Message, Topology};
use crate::runtime::{Event, FinishReason, GenerationRequest, RankConfig, Sharing};
use crate::sampling::SamplingParams;

#[derive(Debug, Clone)]
enum Act {
    Arrive {
        prompt: usize,
        family: u32,
        output: u32,
        sampling: usize,
        stop: Option<usize>,
        patience: usize,
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
        0_u32..3,
        1_u32..20,
        0_usize..6,
        prop::option::weighted(0.3, 0_usize..20),
        prop_oneof![5 => Just(usize::MAX), 1 => 1_usize..10],
    );
    prop_oneof![
        6 => arrive.prop_map(|(prompt, family, output, sampling, stop, patience)| {
            Act::Arrive { prompt, family, output, sampling, stop, patience }
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
            } => {
                let number = self.clients.len() as u32;
                // Prompts of one family begin alike.
                let prompt: Vec<u32> = (0..prompt as u32).map(|at| (at * 7 + family) % 512).collect();
                let sampling = sampling(kind, u64::from(number));
                let answer = reference(&prompt, &sampling, output as usize);
                let request = GenerationRequest {
                    sampling,
                    stop_tokens: stop.map(|at| answer[at % answer.len()]).into_iter().collect(),
                    ..greedy(&prompt, output)
                };
                self.arrive(request, patience);
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
    ) {
        let mut simulation = Simulation::staged(Topology { tensor, pipeline }, depth, max_sequences, max_batched_tokens);
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

#[test]
fn the_next_step_is_sent_while_one_computes_and_clients_hear_after_the_members() {
    let mut simulation = Simulation::new(1, 2, 4, 16);
    simulation.arrive(greedy(&[1, 2, 3], 5), usize::MAX);
    simulation.take_inputs(Left::All);
    let sent = |simulation: &Simulation| -> Vec<(u64, Message)> {
        let incoming = &simulation.members[0].incoming;
        incoming.try_iter().map(Result::unwrap).collect()
    };
    let names = |messages: &[(u64, Message)]| -> Vec<(u64, &'static str)> {
        messages
            .iter()
            .map(|(step, message)| (*step, message.name()))
            .collect()
    };
    let both = sent(&simulation);
    assert_eq!(
        names(&both),
        [(1, "Plan"), (2, "Plan")],
        "two steps are in flight at once"
    );
    for (step, message) in both {
        let member = &mut simulation.members[0];
        member.steps.take(&mut member.backend, step, message).unwrap();
    }
    assert!(simulation.act(0), "the first is computed");
    assert!(!simulation.act(0), "the second waits for its token");
    assert!(simulation.deliver(0));
    assert_eq!(
        names(&sent(&simulation)),
        [(1, "Release"), (2, "Late"), (3, "Plan")]
    );
    assert_eq!(simulation.clients[0].events.lock().unwrap().len(), 3);
}

impl Simulation {
    /// What the leader has sent, which is the same to all members, and which they take now: the plans' rows by their slots.
    fn pass_on(&mut self) -> Vec<(u64, &'static str, Vec<u32>)> {
        let mut sent = Vec::new();
        for member in &mut self.members {
            sent.clear();
            for (step, message) in member.incoming.try_iter().map(Result::unwrap) {
                let slots = match &message {
                    Message::Plan(plan) => plan.rows.iter().map(|row| row.slot).collect(),
                    _ => Vec::new(),
                };
                sent.push((step, message.name(), slots));
                member.steps.take(&mut member.backend, step, message).unwrap();
            }
        }
        sent
    }
}

/// Each of two stages works on its own half of the sequences; the next step of a half may begin while the other half is still on
/// its way.
#[test]
fn the_stages_of_a_pipeline_work_on_different_sequences() {
    let stages = Topology {
        tensor: 1,
        pipeline: 2,
    };
    let mut simulation = Simulation::staged(stages, 3, 4, 16);
    for prompt in [3, 5, 7, 9] {
        simulation.arrive(greedy(&[prompt], 8), usize::MAX);
    }
    simulation.take_inputs(Left::All);
    let plan = |step, slots: &[u32]| (step, "Plan", slots.to_vec());
    let other = |step, name| (step, name, Vec::new());
    assert_eq!(
        simulation.pass_on(),
        [plan(1, &[0, 1, 2, 3]), plan(2, &[0, 1]), plan(3, &[2, 3])],
        "what began together is dealt out over the stages"
    );
    for rank in [0, 1] {
        simulation.act(rank);
        simulation.deliver(rank);
    }
    assert_eq!(
        simulation.pass_on(),
        [
            other(1, "Release"),
            other(2, "Late"),
            other(3, "Late"),
            plan(4, &[0, 1])
        ],
        "both halves can go on"
    );
    // The first stage is ahead by a step.
    assert!(simulation.act(0) && simulation.act(0) && !simulation.act(0));
    assert!(simulation.act(1));
    while simulation.deliver(0) {}
    simulation.deliver(1);
    assert_eq!(
        simulation.pass_on(),
        [other(2, "Release"), other(4, "Late"), plan(5, &[2, 3])],
        "the first half goes on while the last stage has the second"
    );
    simulation.check();
}
