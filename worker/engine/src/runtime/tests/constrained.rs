//! Answers whose tokens are restricted.

use std::sync::mpsc::{Receiver, channel};

use super::group::{Group, LONG, greedy, rest};
use super::model::{VOCAB, constrained_reference, reference};
use crate::runtime::{
    Constraint, ConstraintError, Event, FailureKind, FinishReason, GenerationRequest, Restriction, Submission,
};
use crate::sampling::SamplingParams;

/// A third of the vocabulary, which one depends on all tokens before.
#[derive(Clone, Default)]
pub(super) struct Thirds {
    sum: u32,
    accepted: usize,
    /// Fails so for the token after so many.
    fails: Option<(usize, ConstraintError)>,
}

impl Thirds {
    pub(super) fn behind(tokens: &[u32]) -> Box<Self> {
        let mut thirds = Box::<Self>::default();
        tokens.iter().for_each(|token| thirds.accept(*token).unwrap());
        thirds
    }
}

impl Constraint for Thirds {
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if token % 3 != self.sum % 3 {
            return Err(ConstraintError::Broken(format!("{token} is not allowed")));
        }
        self.sum = self.sum.wrapping_mul(5).wrapping_add(token);
        self.accepted += 1;
        Ok(())
    }

    fn mask(&mut self) -> Result<Option<Vec<u8>>, ConstraintError> {
        if let Some((at, why)) = &self.fails
            && *at == self.accepted
        {
            return Err(why.clone());
        }
        let mut mask = vec![0; VOCAB / 8];
        for token in (0..VOCAB).filter(|token| token % 3 == self.sum as usize % 3) {
            mask[token / 8] |= 1 << (token % 8);
        }
        Ok(Some(mask))
    }

    fn fork(&self) -> Option<Box<dyn Constraint>> {
        Some(Box::new(self.clone()))
    }
}

fn submit(
    group: &Group,
    request: &GenerationRequest,
    constraint: Option<Box<dyn Constraint>>,
) -> (Submission, Receiver<Event>) {
    let (sender, events) = channel();
    let sink = Box::new(move |event| sender.send(event).is_ok());
    let engine = &group.leader().engine;
    (
        engine
            .submit_constrained(request.clone(), constraint, sink)
            .unwrap(),
        events,
    )
}

fn request(seed: u64, prompt: &[u32], resume: &[u32]) -> GenerationRequest {
    GenerationRequest {
        resume: resume.to_vec(),
        sampling: SamplingParams {
            temperature: 0.9,
            top_p: if seed.is_multiple_of(2) { 1.0 } else { 0.7 },
            presence_penalty: if seed.is_multiple_of(3) { 1.0 } else { 0.0 },
            seed,
            ..SamplingParams::greedy()
        },
        ..greedy(prompt, 24)
    }
}

#[test]
fn masks_are_the_same_in_every_world_and_batch_and_touch_no_other_answer() {
    let mut masks = Vec::new();
    for world in [1, 3] {
        let group = Group::start(world);
        let requests: Vec<_> = (0..8_u32)
            .map(|i| request(i.into(), &vec![i + 1; 1 + 3 * i as usize], &[]))
            .collect();
        // Every other one is free.
        let constraint = |i: usize| {
            i.is_multiple_of(2)
                .then(|| Thirds::behind(&[]) as Box<dyn Constraint>)
        };
        let running: Vec<_> = (0..)
            .zip(&requests)
            .map(|(i, request)| submit(&group, request, constraint(i)))
            .collect();
        for (i, (_submission, events)) in running.into_iter().enumerate() {
            let GenerationRequest { prompt, sampling, .. } = &requests[i];
            let expected = constrained_reference(prompt, sampling, 24, constraint(i));
            assert_eq!(
                rest(&events),
                (expected, FinishReason::Length),
                "world {world}, {i}"
            );
        }
        masks.extend(group.ranks.iter().map(|rank| rank.faults.masks()));
    }
    // One mask for each token of the answers that have a constraint, on one rank and on each of three.
    let [one, three @ ..] = &masks[..] else {
        panic!("no rank")
    };
    assert_eq!((one.len(), three.len()), (4 * 24, 3));
    assert!(three.iter().all(|masks| masks == one));
}

#[test]
fn a_resumed_answer_goes_on_under_its_constraint() {
    let group = Group::start(3);
    let whole = request(4, &[9, 8], &[]);
    let tokens = constrained_reference(&[9, 8], &whole.sampling, 24, Some(Thirds::behind(&[])));
    assert_ne!(tokens, reference(&[9, 8], &whole.sampling, 24));
    for cut in [1, 7, 23] {
        let resumed = request(4, &[9, 8], &tokens[..cut]);
        let (_submission, events) = submit(&group, &resumed, Some(Thirds::behind(&tokens[..cut])));
        assert_eq!(
            rest(&events),
            (tokens[cut..].to_vec(), FinishReason::Length),
            "{cut}"
        );
    }
}

#[test]
fn a_constraint_that_fails_ends_its_answer_only_and_says_whose_fault_it_is() {
    let group = Group::start(2);
    let message = || "too complex".to_owned();
    for (why, kind) in [
        (
            ConstraintError::Unmet(Restriction::Form, message()),
            FailureKind::Unmet(Restriction::Form),
        ),
        (
            ConstraintError::Unmet(Restriction::TokenList, message()),
            FailureKind::Unmet(Restriction::TokenList),
        ),
        (ConstraintError::Broken(message()), FailureKind::Internal),
    ] {
        let failing = Thirds {
            fails: Some((5, why)),
            ..Thirds::default()
        };
        let (_broken, events) = submit(&group, &request(2, &[5], &[]), Some(Box::new(failing)));
        let other = request(3, &[6], &[]);
        let (_submission, others) = submit(&group, &other, None);
        let mut tokens = Vec::new();
        let failed = loop {
            match events.recv_timeout(LONG).unwrap() {
                Event::Token { id, .. } => tokens.push(id),
                Event::Failed { kind, message } => break (kind, message),
                Event::Accepted { .. } | Event::Started { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(failed, (kind, message()));
        assert_eq!(tokens.len(), 5);
        assert_eq!(rest(&others).0, reference(&[6], &other.sampling, 24));
    }
}
