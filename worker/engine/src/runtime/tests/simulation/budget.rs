//! Steps are as long as their measured time allows.

use std::time::Duration;

use super::super::group::{LONG, config, greedy};
use super::world::{Left, Simulation};
use crate::mesh::Message;
use crate::runtime::RankConfig;
use crate::schedule::budget::MIN_CHUNK;

/// Tokens of the steps of a prompt that is computed in chunks, on a clock on which no step takes less than a few milliseconds.
fn chunks(target: Duration) -> Vec<u32> {
    let mut simulation = Simulation::with(RankConfig {
        step_target: target,
        max_batched_tokens: 512,
        block_size: 64,
        max_context: 1500,
        ..config(0, 1, LONG * 1000)
    });
    let prompt: Vec<u32> = (0..1400).map(|at| at * 5 % 512).collect();
    simulation.arrive(greedy(&prompt, 1), usize::MAX);
    simulation.take_inputs(Left::All);
    let mut chunks = Vec::new();
    loop {
        let member = &mut simulation.members[0];
        for (step, message) in member.incoming.try_iter().map(Result::unwrap) {
            if let Message::Plan(plan) = &message {
                let tokens: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
                chunks.push(tokens as u32);
            }
            member.steps.take(&mut member.backend, step, message).unwrap();
        }
        simulation.act(0);
        if !simulation.deliver(0) {
            break;
        }
    }
    assert_eq!(chunks.iter().sum::<u32>(), 1400);
    simulation.check();
    chunks
}

#[test]
fn chunks_fall_to_the_least_where_steps_take_too_long() {
    let chunks = chunks(Duration::from_millis(1));
    assert_eq!(chunks[..2], [64, 64], "planned before anything was measured");
    let last = chunks.len() - 1;
    assert!(
        chunks[2..last].iter().all(|tokens| *tokens == MIN_CHUNK),
        "{chunks:?}"
    );
}

#[test]
fn chunks_grow_while_steps_are_short() {
    let chunks = chunks(Duration::from_secs(10));
    assert_eq!(chunks[..4], [64, 64, 128, 256], "{chunks:?}");
    assert_eq!(chunks[4], 512, "as many as were agreed on: {chunks:?}");
}
