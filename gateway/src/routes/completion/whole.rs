//! An answer as a whole.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::logprobs::{Logprobs, join, logprobs};
use super::objects::{Choice, Completion, Function, ToolCall, finish_reason};
use super::order::{Envelope, Pieces};
use super::route::Route;
use crate::error::ApiError;
use crate::relay::{Delta, End};
use crate::routes::record::Record;
use crate::routes::usage::{Counter, Usage};

#[derive(Default)]
struct Answer {
    text: String,
    /// Name and arguments.
    calls: Vec<(String, String)>,
    logprobs: Option<Logprobs>,
    /// Characters of the tokens so far.
    offset: usize,
    end: Option<End>,
}

impl Answer {
    fn add(&mut self, route: Route, delta: Delta) {
        self.text.push_str(&delta.text);
        join(
            &mut self.logprobs,
            logprobs(route, &delta.logprobs, &mut self.offset),
        );
        for piece in delta.tool_calls {
            if !piece.name.is_empty() {
                self.calls.push((piece.name, String::new()));
            }
            if let Some((_, arguments)) = self.calls.last_mut() {
                arguments.push_str(&piece.arguments);
            }
        }
        self.end = delta.end.or(self.end.take());
    }

    fn calls(&self, envelope: &Envelope, choice: usize) -> Vec<ToolCall<'_>> {
        (0..)
            .zip(&self.calls)
            .map(|(call, (name, arguments))| ToolCall {
                index: None,
                id: Some(envelope.call_id(choice, call)),
                kind: Some("function"),
                function: Function {
                    name: Some(name),
                    arguments,
                },
            })
            .collect()
    }
}

/// Wait for all answers.
///
/// # Errors
/// What the first answer that fails reports; the others are cancelled then.
pub async fn whole(
    route: Route,
    envelope: &Envelope,
    mut pieces: Pieces,
    mut record: Record,
) -> Result<Response, ApiError> {
    let mut answers: Vec<Answer> = Vec::new();
    answers.resize_with(envelope.choices, Answer::default);
    let mut counter = Counter::new(envelope);
    let mut identity: Option<Arc<str>> = None;
    while let Some((index, piece)) = pieces.next().await {
        let delta = piece.inspect_err(|error| record.failed(error))?;
        record.progress(delta.output_tokens);
        counter.count(index, &delta);
        identity = delta.identity.clone().or(identity);
        if let Some(answer) = answers.get_mut(index) {
            answer.add(route, delta);
        }
    }
    if answers.iter().any(|answer| answer.end.is_none()) {
        let error = ApiError::internal("The answer ended early; please send the request again.");
        record.failed(&error);
        return Err(error);
    }
    let usage = counter.total();
    record.answered(usage);
    Ok(respond(route, envelope, &answers, identity.as_deref(), usage))
}

fn respond(
    route: Route,
    envelope: &Envelope,
    answers: &[Answer],
    identity: Option<&str>,
    usage: Usage,
) -> Response {
    let calls: Vec<Vec<ToolCall<'_>>> = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| answer.calls(envelope, index))
        .collect();
    let choices: Vec<Choice<'_>> = answers
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
            ..Choice::whole(route, index, &answer.text, calls)
        })
        .collect();
    let mut completion = Completion::new(route, false, envelope, &choices);
    completion.system_fingerprint = identity;
    completion.usage = Some(Some(usage));
    Json(completion).into_response()
}
