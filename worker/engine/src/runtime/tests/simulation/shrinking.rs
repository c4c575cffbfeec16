//! Answers whose end is that of the context, while that shrinks and grows.

use super::prompt;
use super::world::{Left, Simulation};
use crate::runtime::tests::fake::KV_BLOCKS;
use crate::runtime::tests::group::greedy;
use crate::runtime::tests::model::reference;
use crate::runtime::{Event, FailureKind, FinishReason, GenerationRequest};
use crate::sampling::SamplingParams;

/// The context that the simulated groups have when whole.
const CONTEXT: u32 = 90;

impl Simulation {
    fn tokens(&self) -> Vec<u32> {
        let events = self.clients[0].events.lock().unwrap();
        let tokens = events.iter().filter_map(|event| match event {
            Event::Token { id, .. } => Some(*id),
            _ => None,
        });
        tokens.collect()
    }

    fn end(&self) -> Event {
        self.clients[0].events.lock().unwrap().last().unwrap().clone()
    }

    /// Go on until the only client has at least so many tokens.
    fn answer_until(&mut self, tokens: usize) {
        for _ in 0..10_000 {
            if self.tokens().len() >= tokens {
                return;
            }
            for rank in 0..2 {
                self.act(rank);
                self.deliver(rank);
            }
        }
        panic!("stands still");
    }

    /// The group forms again, with so many blocks of four tokens.
    fn form_again(&mut self, blocks: u32) {
        self.cut(1);
        self.take_inputs(Left::Blocks(blocks));
    }
}

/// A request for as much as the context leaves, of which the client has so many tokens.
fn begun(open_ended: bool, tokens: usize) -> Simulation {
    let mut simulation = Simulation::new(2, 2, 4, 16);
    let request = GenerationRequest {
        open_ended,
        ..greedy(&prompt(13), CONTEXT - 13)
    };
    simulation.arrive(request, usize::MAX);
    simulation.take_inputs(Left::All);
    simulation.answer_until(tokens);
    simulation
}

fn right(tokens: u32) -> Vec<u32> {
    reference(&prompt(13), &SamplingParams::greedy(), tokens as usize)
}

fn ended_by_length(output_tokens: u32) -> Event {
    let reason = FinishReason::Length;
    Event::Finished {
        reason,
        output_tokens,
    }
}

#[test]
fn an_answer_without_an_end_goes_on_to_that_of_a_context_that_has_shrunk() {
    let mut simulation = begun(true, 10);
    simulation.form_again(12);
    simulation.settle();
    // The last token needs no keys and values.
    let left = 12 * 4 + 1 - 13;
    assert_eq!(simulation.tokens(), right(left));
    assert_eq!(simulation.end(), ended_by_length(left));
}

#[test]
fn it_goes_on_further_when_the_context_has_grown_again() {
    let mut simulation = begun(true, 10);
    simulation.form_again(12);
    simulation.answer_until(20);
    simulation.form_again(KV_BLOCKS);
    simulation.settle();
    assert_eq!(simulation.tokens(), right(CONTEXT - 13));
    assert_eq!(simulation.end(), ended_by_length(CONTEXT - 13));
}

#[test]
fn one_that_is_longer_than_the_new_context_is_told_so() {
    for (open_ended, tokens, blocks) in [(true, 30, 8), (false, 10, 12)] {
        let mut simulation = begun(open_ended, tokens);
        simulation.form_again(blocks);
        let longest = blocks * 4 + 1;
        match simulation.end() {
            Event::Failed { kind, message } => {
                assert_eq!(kind, FailureKind::Unavailable, "another group may hold it");
                let why = format!("and this group holds {longest}");
                assert!(
                    message.starts_with("the group formed again with less memory than it had")
                        && message.contains(&why),
                    "{message}"
                );
            }
            other => panic!("{other:?}"),
        }
        let heard = simulation.tokens();
        assert_eq!(heard, right(heard.len() as u32));
    }
}
