//! What is sent when: plans ahead, late values in their order, cancels, and clients after the members.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use super::super::group::greedy;
use super::world::{Left, Simulation};
use crate::mesh::{Message, Topology};
use crate::runtime::member::link::Incoming;
use crate::runtime::{Event, GenerationRequest};
use crate::sampling::SamplingParams;
use crate::step::Late;

type Sent = Vec<(u64, Message)>;
type Names = Vec<(u64, &'static str)>;

fn names(sent: &Sent) -> Names {
    let name = |message: &Message| match message {
        Message::Late(Late::Tokens(_)) => "Late Tokens",
        Message::Late(Late::Sampling { .. }) => "Late Sampling",
        Message::Late(Late::Cancel(_)) => "Late Cancel",
        message => message.name(),
    };
    sent.iter()
        .map(|(step, message)| (*step, name(message)))
        .collect()
}

fn taken(incoming: &Receiver<Incoming>) -> Sent {
    incoming.try_iter().map(Result::unwrap).collect()
}

fn penalised() -> SamplingParams {
    SamplingParams {
        presence_penalty: 1.5,
        ..SamplingParams::greedy()
    }
}

#[test]
fn tokens_go_out_before_what_sampling_needs_and_both_before_clients_hear() {
    for (sampling, first, second) in [
        (SamplingParams::greedy(), &[][..], &[][..]),
        (
            penalised(),
            &[(1, "Late Sampling")][..],
            &[(2, "Late Sampling")][..],
        ),
    ] {
        let mut simulation = Simulation::new(1, 2, 4, 16);
        let incoming = std::mem::replace(&mut simulation.members[0].incoming, mpsc::channel().1);
        let incoming = Arc::new(Mutex::new(incoming));
        let at_tokens: Arc<Mutex<Vec<Sent>>> = Arc::default();
        let (noted, sent) = (Arc::clone(&at_tokens), Arc::clone(&incoming));
        let request = GenerationRequest {
            sampling,
            ..greedy(&[1, 2, 3], 5)
        };
        // What the member was sent before its client hears of a token.
        simulation.arrive_listening(request, usize::MAX, false, move |event| {
            if matches!(event, Event::Token { .. }) {
                noted.lock().unwrap().push(taken(&sent.lock().unwrap()));
            }
        });
        simulation.take_inputs(Left::All);
        let both = taken(&incoming.lock().unwrap());
        assert_eq!(
            names(&both),
            [&[(1, "Plan")], first, &[(2, "Plan")]].concat(),
            "two steps are in flight at once"
        );
        for (step, message) in both {
            let member = &mut simulation.members[0];
            member.steps.take(&mut member.backend, step, message).unwrap();
        }
        assert!(simulation.act(0), "the first is computed");
        assert!(!simulation.act(0), "the second waits for its token");
        assert!(simulation.deliver(0));
        let at_tokens: Vec<Names> = at_tokens.lock().unwrap().iter().map(names).collect();
        let wanted = [&[(1, "Release"), (2, "Late Tokens")][..], second].concat();
        assert_eq!(at_tokens, [wanted]);
        assert_eq!(names(&taken(&incoming.lock().unwrap())), [(3, "Plan")]);
    }
}

#[test]
fn a_cancelled_row_is_told_to_the_members() {
    let mut simulation = Simulation::new(1, 2, 4, 16);
    simulation.arrive(greedy(&[1, 2, 3], 5), usize::MAX);
    simulation.take_inputs(Left::All);
    simulation.cancel(0);
    simulation.take_inputs(Left::All);
    let sent = taken(&simulation.members[0].incoming);
    assert_eq!(
        names(&sent),
        [(1, "Plan"), (2, "Plan"), (1, "Late Cancel"), (2, "Late Cancel")]
    );
    for (step, message) in sent {
        if let Message::Late(late) = &message {
            assert_eq!(*late, Late::Cancel(vec![0]));
        }
        let member = &mut simulation.members[0];
        member.steps.take(&mut member.backend, step, message).unwrap();
    }
    for step in [1, 2] {
        while simulation.act(0) {}
        match simulation.members[0].outgoing.front() {
            Some((of, Message::Output(output))) => {
                assert_eq!((*of, &output.candidates), (step, &Vec::new()));
            }
            other => panic!("{other:?}"),
        }
        simulation.deliver(0);
    }
    simulation.check();
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
