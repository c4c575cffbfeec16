//! A client of a simulated group, and what it must have heard.

use std::sync::{Arc, Mutex};

use crate::runtime::tests::constrained::Thirds;
use crate::runtime::tests::model::{constrained_reference, logprobs};
use crate::runtime::{Constraint, Event, FailureKind, FinishReason, GenerationRequest, TokenScore};

pub(super) struct Client {
    pub(super) request: GenerationRequest,
    /// Whether its tokens are restricted by [`Thirds`].
    pub(super) constrained: bool,
    /// It goes away when it hears a token and has heard so many events before.
    pub(super) patience: usize,
    /// Whether it was cancelled from outside.
    pub(super) cancelled: bool,
    pub(super) events: Arc<Mutex<Vec<Event>>>,
}

/// What restricts an answer of the simulation, if something does.
pub(super) fn constraint(constrained: bool) -> Option<Box<dyn Constraint>> {
    constrained.then(|| Thirds::behind(&[]) as Box<dyn Constraint>)
}

/// What one rank alone would answer.
pub(super) fn answer(request: &GenerationRequest, constrained: bool) -> Vec<u32> {
    let GenerationRequest {
        prompt,
        sampling,
        max_tokens,
        ..
    } = request;
    constrained_reference(prompt, sampling, *max_tokens as usize, constraint(constrained))
}

impl Client {
    /// `longest` is the longest sequence that the group could hold at all times; it lost its members `losses` times.
    pub(super) fn check(&self, longest: u32, losses: u32) {
        let events = self.events.lock().unwrap();
        let is_refused = self.check_failure(&events, longest, losses);
        if is_refused {
            return;
        }
        assert!(
            matches!(events.first(), Some(Event::Accepted { .. })),
            "{events:?}"
        );
        let count = |what: fn(&Event) -> bool| events.iter().filter(|event| what(event)).count();
        let started = count(|event| matches!(event, Event::Started { .. }));
        assert!(started <= 1, "{events:?}");
        let tokens: Vec<u32> = events
            .iter()
            .filter_map(|event| match event {
                Event::Token { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        let scored = count(|event| matches!(event, Event::Scored(_)));
        assert_eq!(
            events.len(),
            tokens.len() + 2 + started + scored,
            "there is one end, and it is the last: {events:?}"
        );
        let right = answer(&self.request, self.constrained);
        assert_eq!(
            tokens,
            right[..tokens.len()],
            "no token lost, repeated or reordered"
        );
        self.check_scores(&events);
        self.check_end(&events, &tokens, &right);
    }

    /// Whether it was refused when it came. Other failures must have a cause, too.
    fn check_failure(&self, events: &[Event], longest: u32, losses: u32) -> bool {
        let Some(Event::Failed { kind, message }) = events.last() else {
            return false;
        };
        let wanted = self.request.prompt.len() as u32 + self.request.max_tokens;
        match kind {
            FailureKind::TooLong | FailureKind::Unavailable => {
                assert!(wanted > longest, "{wanted} tokens fit: {events:?}");
            }
            FailureKind::Internal => {
                assert!(losses >= 3 && message.contains("were lost"), "{events:?}")
            }
            FailureKind::Invalid | FailureKind::Unmet(_) | FailureKind::NoAdapter => panic!("{events:?}"),
        }
        let is_refused = *kind == FailureKind::TooLong;
        assert!(
            !is_refused || events.len() == 1,
            "refused when it came, or not so: {events:?}"
        );
        is_refused
    }

    /// Tokens of the prompt are scored in order and once each, before the first token comes, and as the model has them.
    fn check_scores(&self, events: &[Event]) {
        let first_token = events
            .iter()
            .position(|event| matches!(event, Event::Token { .. }));
        let mut scores: Vec<&TokenScore> = Vec::new();
        for (at, event) in events.iter().enumerate() {
            if let Event::Scored(more) = event {
                assert!(first_token.is_none_or(|first| at < first), "{events:?}");
                scores.extend(more);
            }
        }
        let prompt = &self.request.prompt;
        let Some(top) = self.request.prompt_logprobs else {
            assert!(scores.is_empty(), "{events:?}");
            return;
        };
        let is_cancelled = |event: &Event| match event {
            Event::Finished { reason, .. } => *reason == FinishReason::Cancelled,
            event => matches!(event, Event::Failed { .. }),
        };
        let may_be_short = first_token.is_none() && events.last().is_some_and(is_cancelled);
        assert!(may_be_short || scores.len() == prompt.len() - 1, "{events:?}");
        for (at, score) in scores.iter().enumerate() {
            assert_eq!(score.id, prompt[at + 1]);
            let right = logprobs(&prompt[..=at]);
            assert!((f64::from(score.logprob) - right[score.id as usize]).abs() < 1e-5);
            assert_eq!(score.top.len(), usize::from(top));
        }
    }

    /// Every request comes to an end, and to the right one.
    fn check_end(&self, events: &[Event], tokens: &[u32], right: &[u32]) {
        let is_token = |event: &Event| matches!(event, Event::Token { .. });
        let left = (0..)
            .zip(events)
            .position(|(at, event)| is_token(event) && at >= self.patience);
        if let Some(left) = left {
            assert!(events.len() <= left + 2, "told on after it had left: {events:?}");
        }
        let stop = right
            .iter()
            .position(|token| self.request.stop_tokens.contains(token));
        match events.last() {
            // Why is checked before.
            Some(Event::Failed { .. }) => {}
            Some(Event::Finished {
                reason,
                output_tokens,
            }) => match (reason, stop) {
                (FinishReason::Cancelled, _) => {
                    assert!(self.cancelled || left.is_some(), "nobody cancelled: {events:?}");
                    assert!(*output_tokens as usize >= tokens.len());
                }
                (FinishReason::StopToken(token), Some(at)) => {
                    assert_eq!(
                        (tokens.len(), *token, *output_tokens as usize),
                        (at, right[at], at + 1)
                    );
                }
                (FinishReason::Length, None) => assert_eq!(tokens.len(), right.len()),
                other => panic!("{other:?}"),
            },
            _ => panic!("never told how it ended: {events:?}"),
        }
    }
}
