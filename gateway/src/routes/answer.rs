//! From a checked request to a whole answer or a stream of server-sent events.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::Peekable;
use futures::{Stream, StreamExt, stream};
use llamero_proto::limits::MAX_REQUEST_BYTES;
use llamero_proto::v1::{CompletionRequest, FinishReason};
use prost::Message;
use serde::Serialize;

use super::record::Record;
use super::usage::Usage;
use crate::Gateway;
use crate::error::ApiError;
use crate::relay::{Delta, Relay, Wishes};

/// Room in a request's message for the tokens of its own answer: it must still be small enough when it goes on at
/// another leader. 131,072 tokens of a vocabulary below 2^21 take 384 KiB.
const RESUME_BYTES: usize = 512 << 10;

/// What all objects of one answer carry.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// `chatcmpl-…` or `cmpl-…`; also the worker's request id.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model.
    pub model: String,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// The text.
    pub text: String,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// Counts of tokens.
    pub usage: Usage,
}

/// How a route writes the chunks of a stream.
pub trait ChunkWriter: Send + 'static {
    /// One chunk.
    type Chunk: Serialize;

    /// Before any text, if the route has such a chunk.
    fn opening(&self) -> Option<Self::Chunk>;
    /// Some text.
    fn text(&self, text: String) -> Self::Chunk;
    /// The end.
    fn finish(&self, reason: &'static str) -> Self::Chunk;
    /// Counts of tokens, if the client asked for them.
    fn usage(&self, usage: Usage) -> Option<Self::Chunk>;
}

type Deltas = Pin<Box<dyn Stream<Item = Result<Delta, ApiError>> + Send>>;

/// An answer that has been ordered.
pub struct Answer {
    deltas: Pin<Box<Peekable<Deltas>>>,
    gateway: Arc<Gateway>,
    record: Record,
}

/// Order the answer to `request` from the deployment that serves its model. Sets id and, when absent, the seed.
///
/// # Errors
/// 404 when no deployment serves the model.
pub fn order(
    gateway: Arc<Gateway>,
    mut record: Record,
    prefix: &str,
    mut request: CompletionRequest,
) -> Result<(Envelope, Answer), ApiError> {
    let snapshot = gateway.directory.snapshot();
    let Some(deployment) = snapshot.by_model(&request.model) else {
        let error = if snapshot.complete {
            ApiError::unknown_model(&request.model)
        } else {
            ApiError::unavailable(
                "gateway_starting",
                "The gateway has not yet read which models there are.",
                2,
            )
        };
        record.failed(&error);
        return Err(error);
    };
    record.model(&deployment.model);
    if request.encoded_len() > MAX_REQUEST_BYTES - RESUME_BYTES {
        let error = ApiError::too_large(MAX_REQUEST_BYTES - RESUME_BYTES);
        record.failed(&error);
        return Err(error);
    }
    let (id, seed) = match (random(), random(), random()) {
        (Ok(high), Ok(low), Ok(seed)) => (format!("{prefix}-{high:016x}{low:016x}"), seed),
        _ => {
            let error = ApiError::internal("The system gave no random numbers.");
            record.failed(&error);
            return Err(error);
        }
    };
    request.request_id.clone_from(&id);
    request.seed.get_or_insert(seed);
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let envelope = Envelope {
        id,
        created,
        model: deployment.model.clone(),
    };
    gateway.demand.arrived(&deployment.key);
    let relay = Relay::new(Arc::clone(&gateway), deployment, request, Wishes::default());
    let deltas: Deltas = Box::pin(relay.into_stream());
    Ok((
        envelope,
        Answer {
            deltas: Box::pin(deltas.peekable()),
            gateway,
            record,
        },
    ))
}

impl Answer {
    /// Wait for all of it.
    ///
    /// # Errors
    /// What the relay reports.
    pub async fn whole(mut self) -> Result<Whole, ApiError> {
        let mut text = String::new();
        while let Some(delta) = self.deltas.next().await {
            let delta = delta.inspect_err(|error| self.record.failed(error))?;
            self.record.delta(&delta);
            text.push_str(&delta.text);
            if let Some(reason) = delta.finish {
                return Ok(Whole {
                    text,
                    finish_reason: reason_word(reason),
                    usage: Usage::of(&delta),
                });
            }
        }
        Err(ApiError::internal(
            "The answer ended early; please send the request again.",
        ))
    }

    /// Pass it on as it comes. An error within the first moments still has its own HTTP status; later ones come as an
    /// event. While nothing comes (a group is being started), comments keep the connection open.
    pub async fn stream(mut self, writer: impl ChunkWriter) -> Response {
        let settings = &self.gateway.settings;
        let first = tokio::time::timeout(settings.first_chunk_wait, self.deltas.as_mut().peek());
        if let Ok(Some(Err(error))) = first.await {
            let error = error.clone();
            self.record.failed(&error);
            return error.into_response();
        }
        let keep_alive = KeepAlive::new()
            .interval(settings.keep_alive)
            .text("waiting for the model");
        let opening = stream::iter(writer.opening().map(|chunk| event(&chunk)));
        let mut record = self.record;
        let chunks = self.deltas.flat_map(move |delta| {
            match &delta {
                Ok(delta) => record.delta(delta),
                Err(error) => record.failed(error),
            }
            stream::iter(events(&writer, delta))
        });
        Sse::new(opening.chain(chunks))
            .keep_alive(keep_alive)
            .into_response()
    }
}

fn events<W: ChunkWriter>(writer: &W, delta: Result<Delta, ApiError>) -> Vec<Result<Event, axum::Error>> {
    let delta = match delta {
        Ok(delta) => delta,
        Err(error) => return vec![event(&error.body())],
    };
    let usage = Usage::of(&delta);
    let mut events = Vec::new();
    if !delta.text.is_empty() {
        events.push(event(&writer.text(delta.text)));
    }
    if let Some(reason) = delta.finish {
        events.push(event(&writer.finish(reason_word(reason))));
        events.extend(writer.usage(usage).map(|chunk| event(&chunk)));
        events.push(Ok(Event::default().data("[DONE]")));
    }
    events
}

fn event(chunk: &impl Serialize) -> Result<Event, axum::Error> {
    Event::default().json_data(chunk)
}

fn reason_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        // The relay turns the others into errors.
        FinishReason::Stop | FinishReason::Abort | FinishReason::Unspecified => "stop",
    }
}

fn random() -> Result<u64, getrandom::Error> {
    getrandom::u64()
}
