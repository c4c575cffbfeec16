//! Answers with and without drafts are the same; what drafts do is seen in the steps.

use std::time::Duration;

use super::super::group::{config, greedy};
use super::super::model::REPEATING;
use super::sampling;
use super::world::{Left, Simulation};
use crate::mesh::Topology;
use crate::runtime::{GenerationRequest, LoadSnapshot, RankConfig};
use crate::schedule::{Drafted, Speculation};

const DRAFTED: Option<Speculation> = Some(Speculation {
    max_drafts: 4,
    drafted: Drafted::All,
});

fn group(topology: Topology, steps_in_flight: u32, speculation: Option<Speculation>) -> Simulation {
    Simulation::with(RankConfig {
        members: topology.into(),
        steps_in_flight,
        max_sequences: 4,
        max_batched_tokens: 40,
        speculation,
        ..config(0, 1, Duration::from_secs(1 << 30))
    })
}

fn repeating(kind: usize, seed: u64) -> GenerationRequest {
    GenerationRequest {
        sampling: sampling(kind, seed),
        ..greedy(&[REPEATING, 3, 9, 40], 44)
    }
}

/// Ask for an answer of each way of sampling, one after the other or all at once, and lose a member now and then.
fn serve(mut simulation: Simulation, at_once: bool, losses: bool) -> (LoadSnapshot, u32) {
    for kind in 0..8 {
        for constrained in [false, true] {
            match constrained {
                true => simulation.arrive_constrained(repeating(kind, 5), usize::MAX),
                false => simulation.arrive(repeating(kind, 5), usize::MAX),
            }
            simulation.take_inputs(Left::All);
            for _ in 0..40 {
                if losses || !at_once {
                    let ranks = simulation.members.len();
                    for rank in 0..ranks {
                        simulation.act(rank);
                        simulation.deliver(rank);
                    }
                }
            }
            if losses {
                simulation.cut(0);
                simulation.take_inputs(if constrained { Left::All } else { Left::ButOne(0) });
            } else if !at_once {
                simulation.settle();
            }
        }
    }
    // Every client has heard what one rank alone, without drafts, would have said.
    simulation.check();
    (simulation.load(), simulation.full_rows())
}

#[test]
fn drafts_change_no_token() {
    for (topology, depth) in [
        (Topology::tensor(1), 1),
        (Topology::tensor(2), 2),
        (
            Topology {
                tensor: 2,
                pipeline: 2,
            },
            3,
        ),
        (Topology::tensor(1), 4),
    ] {
        for (at_once, losses) in [(false, false), (true, false), (true, true)] {
            let (plain, _) = serve(group(topology, depth, None), at_once, losses);
            assert_eq!((plain.drafts, plain.draft_tokens), (0, 0), "off is off");
            let (drafted, full_rows) = serve(group(topology, depth, DRAFTED), at_once, losses);
            let wrong = drafted.draft_tokens - drafted.accepted_tokens;
            assert!(
                drafted.accepted_tokens > 40 && wrong > 10,
                "{topology:?}: {drafted:?}"
            );
            // A member that is exchanged does not tell what it did.
            assert!(losses || full_rows > 0);
            assert!(losses || drafted.output_tokens == plain.output_tokens);
            assert!(
                drafted.steps < plain.steps,
                "{} of {}",
                drafted.steps,
                plain.steps
            );
        }
    }
}

#[test]
fn right_drafts_save_their_steps() {
    let steps = |speculation| {
        let mut simulation = group(Topology::tensor(2), 2, speculation);
        simulation.ask(repeating(0, 0));
        simulation.check();
        simulation.load()
    };
    let (plain, drafted) = (steps(None), steps(DRAFTED));
    assert_eq!(plain.output_tokens, 44);
    assert_eq!(drafted.output_tokens, 44);
    // Greedy answers of that model are a loop of at most eight tokens.
    assert!(
        plain.steps >= 44 && drafted.steps < 30,
        "{} and {}",
        plain.steps,
        drafted.steps
    );
    assert!(drafted.accepted_tokens >= 16, "{drafted:?}");
}

#[test]
fn a_stop_token_among_right_drafts_ends_the_answer_there() {
    let whole = super::answer(&repeating(0, 0), false);
    for token in whole.iter().skip(1) {
        let mut simulation = group(Topology::tensor(1), 2, DRAFTED);
        let request = GenerationRequest {
            stop_tokens: vec![*token],
            ..repeating(0, 0)
        };
        simulation.ask(request);
        simulation.check();
    }
}

#[test]
fn who_leaves_at_one_token_of_a_step_hears_no_more_of_it() {
    for patience in 1..30 {
        let mut simulation = group(Topology::tensor(1), 2, DRAFTED);
        simulation.arrive(repeating(0, 0), patience);
        simulation.take_inputs(Left::All);
        simulation.settle();
        simulation.check();
    }
}

#[test]
fn drafts_that_do_not_pay_are_not_made() {
    // On this clock every step takes as long as any other, so drafts pay once guesses come true.
    let measured = Some(Speculation {
        max_drafts: 4,
        drafted: Drafted::WhatPays,
    });
    let drafts = |request: GenerationRequest| {
        let mut simulation = group(Topology::tensor(1), 2, measured);
        for _ in 0..3 {
            simulation.ask(request.clone());
        }
        simulation.check();
        simulation.load()
    };
    let repeats = drafts(repeating(0, 0));
    assert!(repeats.accepted_tokens > 30, "{repeats:?}");
    assert!(
        repeats.accepted_tokens * 10 > repeats.draft_tokens * 8,
        "{repeats:?}"
    );
    let random = drafts(greedy(&[7, 3, 9, 40], 44));
    assert_eq!(random.draft_tokens, 0);
}
