//! A client of a simulated group, and what it must have heard.

use std::sync::{Arc, Mutex};

use crate::runtime::tests::model::reference;
use crate::runtime::{Event, FailureKind, FinishReason, GenerationRequest};

pub(super) struct Client {
    pub(super) request: GenerationRequest,
    pub(super) events: Arc<Mutex<Vec<Event>>>,
}

impl Client {
    /// `longest` is the longest sequence that the group could hold at all times.
    pub(super) fn check(&self, longest: u32) {
        let mut events = self.events.lock().unwrap().clone();
        let Self { request, .. } = self;
        let wanted = request.prompt.len() as u32 + request.max_tokens;
        if let Some(Event::Failed { kind, .. }) = events.last() {
            assert_eq!(*kind, FailureKind::TooLong, "{events:?}");
            assert!(wanted > longest, "{wanted} tokens fit: {events:?}");
            events.insert(0, Event::Accepted { prompt_tokens: 0 });
        }
        assert!(
            matches!(events.first(), Some(Event::Accepted { .. })),
            "{events:?}"
        );
        let started = events
            .iter()
            .filter(|event| matches!(event, Event::Started { .. }))
            .count();
        assert!(started <= 1, "{events:?}");
        let tokens: Vec<u32> = events
            .iter()
            .filter_map(|event| match event {
                Event::Token { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        let right = reference(&request.prompt, &request.sampling, request.max_tokens as usize);
        let stop = right.iter().position(|token| request.stop_tokens.contains(token));
        assert_eq!(
            tokens,
            right[..tokens.len()],
            "no token lost, repeated or reordered"
        );
        let Some(Event::Finished {
            reason,
            output_tokens,
        }) = events.last()
        else {
            return;
        };
        assert_eq!(events.len(), tokens.len() + 2 + started, "{events:?}");
        match (reason, stop) {
            (FinishReason::Cancelled, _) => assert!(*output_tokens as usize >= tokens.len()),
            (FinishReason::StopToken(token), Some(at)) => {
                assert_eq!(
                    (tokens.len(), *token, *output_tokens as usize),
                    (at, right[at], at + 1)
                );
            }
            (FinishReason::Length, None) => assert_eq!(tokens.len(), right.len()),
            other => panic!("{other:?}"),
        }
    }
}
