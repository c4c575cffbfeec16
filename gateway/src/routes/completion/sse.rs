//! An answer as server-sent events that every client's parser reads: nothing but `data:` lines, each with an object of
//! the API. While nothing comes, pieces that say nothing keep the connection open.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::{Stream, StreamExt};
use llamero_proto::v1::ToolCallDelta;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep_until};

use super::check::UsageEvents;
use super::logprobs::logprobs;
use super::objects::{self, Choice, Completion, Function, ToolCall, finish_reason};
use super::order::{Envelope, Piece};
use super::route::Route;
use crate::error::ApiError;
use crate::relay::Delta;
use crate::routes::record::Record;
use crate::routes::usage::{Counter, Usage};

/// Pieces that are ready are sent together, up to about so many bytes.
const FRAME: usize = 16 << 10;

/// What the client asked for.
#[derive(Debug)]
pub struct Writer {
    /// The route.
    pub route: Route,
    /// What all chunks carry.
    pub envelope: Envelope,
    /// When usage is sent.
    pub usage: UsageEvents,
}

/// Stream the pieces. `keep_alive` is the longest silence.
pub fn respond(
    writer: Writer,
    pieces: impl Stream<Item = Piece> + Send + Unpin + 'static,
    record: Record,
    keep_alive: Duration,
) -> Response {
    let counter = Counter::new(&writer.envelope);
    let choices = writer.envelope.choices;
    let mut opening = Vec::new();
    writer.opening(&mut opening);
    let events = Events {
        pieces,
        open: choices,
        writer,
        counter,
        progress: vec![Progress::default(); choices],
        record,
        identity: None,
        opening,
        keep_alive,
        last: Instant::now(),
        alarm: Box::pin(sleep_until(Instant::now() + keep_alive)),
        ended: false,
    };
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, "text/event-stream");
    // Proxies must pass pieces on as they come: the second is nginx's word for it.
    set(header::CACHE_CONTROL, "no-cache, no-transform");
    set(header::HeaderName::from_static("x-accel-buffering"), "no");
    response
}

/// What later pieces of an answer depend on.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// It has tool calls.
    called: bool,
    /// Characters of its tokens so far.
    offset: usize,
}

struct Events<S> {
    pieces: S,
    /// Answers that have not ended.
    open: usize,
    writer: Writer,
    counter: Counter,
    /// Of each answer.
    progress: Vec<Progress>,
    record: Record,
    identity: Option<Arc<str>>,
    /// Sent first.
    opening: Vec<u8>,
    keep_alive: Duration,
    /// When something was sent last.
    last: Instant,
    alarm: Pin<Box<Sleep>>,
    ended: bool,
}

impl<S: Stream<Item = Piece> + Unpin> Stream for Events<S> {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let events = self.get_mut();
        if events.ended {
            return Poll::Ready(None);
        }
        let mut frame = std::mem::take(&mut events.opening);
        while !events.ended && frame.len() < FRAME {
            match events.pieces.poll_next_unpin(context) {
                Poll::Ready(piece) => events.take(&mut frame, piece),
                Poll::Pending => break,
            }
        }
        if frame.is_empty() && !events.ended && !events.silent(context, &mut frame) {
            return Poll::Pending;
        }
        events.last = Instant::now();
        Poll::Ready(Some(Ok(Bytes::from(frame))))
    }
}

impl<S> Events<S> {
    fn take(&mut self, frame: &mut Vec<u8>, piece: Option<Piece>) {
        let early = || ApiError::internal("The answer ended early; please send the request again.");
        let (index, delta) = match piece {
            Some((index, Ok(delta))) => (index, delta),
            Some((_, Err(error))) => return self.fail(frame, &error),
            None => return self.fail(frame, &early()),
        };
        self.record.progress(delta.output_tokens);
        self.counter.count(index, &delta);
        if delta.identity.is_some() {
            self.identity.clone_from(&delta.identity);
        }
        let usage = self.counter.of(index);
        if let Some(progress) = self.progress.get_mut(index) {
            self.writer
                .piece(frame, (index, progress), &delta, usage, self.identity.as_deref());
        }
        if delta.end.is_none() {
            return;
        }
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            let total = self.counter.total();
            self.writer.closing(frame, total, self.identity.as_deref());
            self.record.answered(total);
            self.ended = true;
        }
    }

    fn fail(&mut self, frame: &mut Vec<u8>, error: &ApiError) {
        self.record.failed(error);
        event(frame, &error.body());
        self.ended = true;
    }

    /// Whether it is time to say nothing.
    fn silent(&mut self, context: &mut Context<'_>, frame: &mut Vec<u8>) -> bool {
        while self.alarm.as_mut().poll(context).is_ready() {
            let due = self.last + self.keep_alive;
            if due <= Instant::now() {
                self.alarm.as_mut().reset(Instant::now() + self.keep_alive);
                self.writer.nothing(frame, self.identity.as_deref());
                // The next poll registers the alarm again.
                context.waker().wake_by_ref();
                return true;
            }
            // Something was sent since the alarm was set.
            self.alarm.as_mut().reset(due);
        }
        false
    }
}

impl Writer {
    /// Chat answers begin with their role.
    fn opening(&self, frame: &mut Vec<u8>) {
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
            self.chunk(frame, &[choice], None, None);
        }
    }

    fn piece(
        &self,
        frame: &mut Vec<u8>,
        (index, progress): (usize, &mut Progress),
        delta: &Delta,
        usage: Usage,
        identity: Option<&str>,
    ) {
        let usage = (self.usage == UsageEvents::Always).then_some(usage);
        let logprobs = logprobs(self.route, &delta.logprobs, &mut progress.offset);
        if !delta.text.is_empty() || logprobs.is_some() {
            let choice = Choice {
                logprobs,
                ..Choice::piece(self.route, index, Some(&delta.text))
            };
            self.chunk(frame, &[choice], usage, identity);
        }
        if !delta.tool_calls.is_empty() {
            progress.called = true;
            let mut choice = Choice::piece(self.route, index, None);
            choice.delta = Some(objects::Delta {
                tool_calls: self.calls(index, &delta.tool_calls),
                ..objects::Delta::default()
            });
            self.chunk(frame, &[choice], usage, identity);
        }
        if let Some(end) = &delta.end {
            let choice = Choice {
                finish_reason: Some(finish_reason(end.reason, progress.called)),
                stop_reason: end.stop_reason(),
                ..Choice::piece(self.route, index, None)
            };
            self.chunk(frame, &[choice], usage, identity);
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

    fn nothing(&self, frame: &mut Vec<u8>, identity: Option<&str>) {
        let choice = Choice::piece(self.route, 0, None);
        self.chunk(frame, &[choice], None, identity);
    }

    fn closing(&self, frame: &mut Vec<u8>, total: Usage, identity: Option<&str>) {
        if self.usage != UsageEvents::Never {
            self.chunk(frame, &[], Some(total), identity);
        }
        frame.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn chunk(
        &self,
        frame: &mut Vec<u8>,
        choices: &[Choice<'_>],
        usage: Option<Usage>,
        identity: Option<&str>,
    ) {
        let mut chunk = Completion::new(self.route, true, &self.envelope, choices);
        chunk.system_fingerprint = identity;
        chunk.usage = (self.usage != UsageEvents::Never).then_some(usage);
        event(frame, &chunk);
    }
}

fn event(frame: &mut Vec<u8>, object: &impl Serialize) {
    let before = frame.len();
    frame.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut *frame, object) {
        // Strings and numbers always make JSON; a broken event is worse than none.
        tracing::error!(%error, "an event could not be written");
        frame.truncate(before);
        return;
    }
    frame.extend_from_slice(b"\n\n");
}
