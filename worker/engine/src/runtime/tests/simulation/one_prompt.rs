//! Requests with one prompt, as `n` of one request are: it is computed once.

use super::world::{Left, Simulation};
use crate::mesh::Topology;
use crate::runtime::RankConfig;
use crate::runtime::tests::group::{LONG, config, greedy};

/// 12 blocks of 16 tokens, and 8 tokens more.
const PROMPT: usize = 200;
const COUNT: usize = 8;

/// Eight clients with one prompt, in a group whose KV cache holds it once and not twice, with up to `tokens` in a step.
fn asked(topology: Topology, tokens: u32, output: u32) -> Simulation {
    let mut simulation = Simulation::with(
        RankConfig {
            max_sequences: 8,
            max_batched_tokens: tokens,
            block_size: 16,
            max_context: 300,
            ..config(0, 1, LONG)
        }
        .among(topology),
    );
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|at| at * 7 % 512).collect();
    for _ in 0..COUNT {
        simulation.arrive(greedy(&prompt, output), usize::MAX);
    }
    simulation.take_inputs(Left::All);
    simulation
}

impl RankConfig {
    fn among(self, topology: Topology) -> Self {
        Self {
            members: topology.into(),
            steps_in_flight: topology.steps_in_flight(),
            ..self
        }
    }
}

fn shapes() -> [(Topology, u32); 4] {
    let pipeline = Topology {
        tensor: 1,
        pipeline: 3,
    };
    [
        (Topology::tensor(1), 512),
        (Topology::tensor(2), 96),
        (Topology::tensor(2), 512),
        (pipeline, 512),
    ]
}

/// Positions of the first token of every answer: the prompt, and for all but the first what is behind its whole blocks.
const ONCE: usize = PROMPT + (COUNT - 1) * 8;

#[test]
fn eight_answers_to_one_prompt_compute_it_once() {
    for (topology, tokens) in shapes() {
        let mut simulation = asked(topology, tokens, 1);
        simulation.settle();
        for member in &simulation.members {
            assert_eq!(member.backend.faults.computed(), ONCE, "{topology:?}, {tokens}");
        }
        // Everybody is told what was computed for another.
        let cached: Vec<u32> = (0..COUNT)
            .map(|client| simulation.cached_tokens(client))
            .collect();
        assert_eq!(cached, [vec![0], vec![192; COUNT - 1]].concat());
        let load = simulation.load();
        assert_eq!(load.prompt_tokens - load.prefix_hit_tokens, ONCE as u64);
        simulation.check();
    }
}

#[test]
fn the_answers_are_right_when_the_first_client_goes_away_meanwhile() {
    for (topology, tokens) in shapes() {
        let mut simulation = asked(topology, tokens, 6);
        // Its row is in flight.
        simulation.cancel(0);
        simulation.take_inputs(Left::All);
        simulation.settle();
        for member in &simulation.members {
            let answers = (COUNT - 1) * 5;
            let computed = member.backend.faults.computed();
            // A row of its answer may have been on its way.
            assert!(
                computed <= ONCE + answers + 3,
                "{topology:?}, {tokens}: {computed}"
            );
        }
        simulation.check();
    }
}

#[test]
fn the_answers_are_right_when_the_group_forms_again_meanwhile() {
    for (topology, tokens) in shapes() {
        let mut simulation = asked(topology, tokens, 6);
        for rank in 0..simulation.members.len() {
            simulation.act(rank);
        }
        simulation.cut(0);
        simulation.take_inputs(Left::All);
        simulation.check();
        assert_eq!(simulation.losses, 1);
    }
}
