//! The answers of chat and text completion, in chunks and whole.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use llamero_proto::v1::ToolCallDelta;

use super::answer::Answer;
use super::check::{Form, UsageEvents};
use super::logprobs::{logprobs, prompt_logprobs};
use super::objects::{self, Choice, Completion, Function, ToolCall, finish_reason};
use super::order::Envelope;
use super::route::Route;
use super::sse::{Writer, event};
use crate::error::ApiError;
use crate::relay::{Delta, End};
use crate::routes::usage::Usage;

/// Writes them.
#[derive(Debug)]
pub struct Output {
    route: Route,
    form: Form,
    envelope: Envelope,
    answers: Vec<Answer>,
    identity: Option<Arc<str>>,
}

impl Output {
    /// Nothing written yet.
    #[must_use]
    pub fn new(route: Route, form: Form, envelope: Envelope) -> Self {
        let mut answers = Vec::new();
        answers.resize_with(envelope.choices, Answer::default);
        Self {
            route,
            form,
            envelope,
            answers,
            identity: None,
        }
    }

    fn know(&mut self, identity: Option<&Arc<str>>) {
        if identity.is_some() {
            self.identity = identity.cloned();
        }
    }

    fn calls<'a>(&self, choice: usize, pieces: &'a [ToolCallDelta]) -> Vec<ToolCall<'a>> {
        let call = |piece: &'a ToolCallDelta| {
            let begins = !piece.name.is_empty();
            ToolCall {
                index: Some(piece.index),
                id: begins.then(|| self.envelope.call_id(choice, piece.index)),
                kind: begins.then_some("function"),
                function: Function {
                    name: begins.then_some(&piece.name),
                    arguments: &piece.arguments,
                },
            }
        };
        pieces.iter().map(call).collect()
    }

    fn chunk(&self, frame: &mut Vec<u8>, choices: &[Choice<'_>], usage: Option<Usage>) {
        let mut chunk = Completion::new(self.route, true, &self.envelope, choices);
        chunk.system_fingerprint = self.identity.as_deref();
        chunk.usage = (self.form.usage != UsageEvents::Never).then_some(usage);
        event(frame, &chunk);
    }
}

impl Writer for Output {
    /// Chat answers begin with their role.
    fn opening(&mut self, frame: &mut Vec<u8>) {
        if self.route == Route::Text {
            return;
        }
        for index in 0..self.envelope.choices {
            let mut choice = Choice::piece(self.route, index, None);
            choice.delta = Some(objects::Delta {
                role: Some("assistant"),
                content: Some(""),
                ..objects::Delta::default()
            });
            self.chunk(frame, &[choice], None);
        }
    }

    fn piece(&mut self, frame: &mut Vec<u8>, index: usize, delta: &Delta, usage: Usage) {
        self.know(delta.identity.as_ref());
        let usage = (self.form.usage == UsageEvents::Always).then_some(usage);
        let Some(answer) = self.answers.get_mut(index) else {
            return;
        };
        answer.called |= !delta.tool_calls.is_empty();
        let called = answer.called;
        let prompt = match self.form.echo {
            true => logprobs(self.route, &delta.prompt_logprobs, &mut answer.offset),
            false => None,
        };
        let logprobs = logprobs(self.route, &delta.logprobs, &mut answer.offset);
        if prompt.is_some() {
            let choice = Choice {
                logprobs: prompt,
                ..Choice::piece(self.route, index, None)
            };
            self.chunk(frame, &[choice], usage);
        }
        if !delta.text.is_empty() || logprobs.is_some() {
            let choice = Choice {
                logprobs,
                ..Choice::piece(self.route, index, Some(&delta.text))
            };
            self.chunk(frame, &[choice], usage);
        }
        if !delta.tool_calls.is_empty() {
            let mut choice = Choice::piece(self.route, index, None);
            choice.delta = Some(objects::Delta {
                tool_calls: self.calls(index, &delta.tool_calls),
                ..objects::Delta::default()
            });
            self.chunk(frame, &[choice], usage);
        }
        if let Some(end) = &delta.end {
            let choice = Choice {
                finish_reason: Some(finish_reason(end.reason, called)),
                stop_reason: end.stop_reason(),
                ..Choice::piece(self.route, index, None)
            };
            self.chunk(frame, &[choice], usage);
        }
    }

    /// Not even a name of an event, which some parsers would take for an event of its own.
    fn nothing(&mut self, frame: &mut Vec<u8>) {
        let choice = Choice::piece(self.route, 0, None);
        self.chunk(frame, &[choice], None);
    }

    fn closing(&mut self, frame: &mut Vec<u8>, total: Usage) {
        if self.form.usage != UsageEvents::Never {
            self.chunk(frame, &[], Some(total));
        }
        frame.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn failure(&mut self, frame: &mut Vec<u8>, error: &ApiError) {
        event(frame, &error.body());
    }

    fn add(&mut self, index: usize, delta: Delta, _: Usage) {
        self.know(delta.identity.as_ref());
        if let Some(answer) = self.answers.get_mut(index) {
            answer.add(self.route, self.form.echo, delta);
        }
    }

    fn whole(self, total: Usage) -> Response {
        let calls: Vec<Vec<ToolCall<'_>>> = self
            .answers
            .iter()
            .enumerate()
            .map(|(index, answer)| answer.calls(&self.envelope, index))
            .collect();
        let of_prompt = |answer: &Answer| {
            let wanted = self.form.prompt_logprobs;
            wanted.then(|| prompt_logprobs(&answer.prompt_logprobs))
        };
        let choices: Vec<Choice<'_>> = self
            .answers
            .iter()
            .zip(&calls)
            .enumerate()
            .map(|(index, (answer, calls))| Choice {
                finish_reason: answer
                    .end
                    .as_ref()
                    .map(|end| finish_reason(end.reason, !calls.is_empty())),
                stop_reason: answer.end.as_ref().and_then(End::stop_reason),
                logprobs: answer.logprobs.clone(),
                prompt_logprobs: (self.route == Route::Text).then(|| of_prompt(answer)).flatten(),
                ..Choice::whole(self.route, index, &answer.text, calls)
            })
            .collect();
        let mut completion = Completion::new(self.route, false, &self.envelope, &choices);
        completion.system_fingerprint = self.identity.as_deref();
        if self.route != Route::Text {
            completion.prompt_logprobs = self.answers.first().and_then(of_prompt);
        }
        completion.usage = Some(Some(total));
        Json(completion).into_response()
    }
}
