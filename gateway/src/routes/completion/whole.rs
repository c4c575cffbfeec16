//! An answer as a whole.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;

use super::objects::{Choice, Completion, finish_reason};
use super::order::{Envelope, Pieces};
use super::route::Route;
use crate::error::ApiError;
use crate::relay::End;
use crate::routes::record::Record;
use crate::routes::usage::{Counter, Usage};

#[derive(Default)]
struct Answer {
    text: String,
    end: Option<End>,
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
        identity = delta.identity.or(identity);
        if let Some(answer) = answers.get_mut(index) {
            answer.text.push_str(&delta.text);
            answer.end = delta.end.or(answer.end.take());
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
    let choices: Vec<Choice<'_>> = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| Choice {
            finish_reason: answer.end.as_ref().map(|end| finish_reason(end.reason)),
            stop_reason: answer.end.as_ref().and_then(End::stop_string),
            ..Choice::whole(route, index, &answer.text)
        })
        .collect();
    let mut completion = Completion::new(route, false, envelope, &choices);
    completion.system_fingerprint = identity;
    completion.usage = Some(Some(usage));
    Json(completion).into_response()
}
