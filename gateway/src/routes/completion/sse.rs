//! Answers as server-sent events that every client's parser reads: no comments and no empty events, and in each an
//! object of the API. While nothing comes, pieces that say nothing keep the connection open.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::{Stream, StreamExt};
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep_until};

use super::order::Piece;
use crate::error::ApiError;
use crate::relay::Delta;
use crate::routes::record::Record;
use crate::routes::usage::Usage;

/// Pieces that are ready are sent together, up to about so many bytes.
const FRAME: usize = 16 << 10;

/// Writes the answers to one request: as events, or as a whole.
pub trait Writer: Send + Unpin + 'static {
    /// What comes before the answers.
    fn opening(&mut self, frame: &mut Vec<u8>);

    /// A piece of an answer, which has so many tokens now.
    fn piece(&mut self, frame: &mut Vec<u8>, index: usize, delta: &Delta, usage: Usage);

    /// Something that says nothing and keeps the connection open.
    fn nothing(&mut self, frame: &mut Vec<u8>);

    /// What comes behind the answers.
    fn closing(&mut self, frame: &mut Vec<u8>, total: Usage);

    /// The last event of answers that fail.
    fn failure(&mut self, frame: &mut Vec<u8>, error: &ApiError);

    /// A piece of an answer that is sent as a whole.
    fn add(&mut self, index: usize, delta: Delta, usage: Usage) {
        // The events are thrown away, so that both ways have one body of code.
        self.piece(&mut Vec::new(), index, &delta, usage);
    }

    /// The whole answers.
    fn whole(self, total: Usage) -> Response;
}

/// Stream the pieces. `keep_alive` is the longest silence.
pub fn respond<W: Writer>(
    mut writer: W,
    pieces: impl Stream<Item = Piece> + Send + Unpin + 'static,
    record: Record,
    keep_alive: Duration,
) -> Response {
    let mut opening = Vec::new();
    writer.opening(&mut opening);
    let events = Events {
        pieces,
        open: record.expected(),
        writer,
        record,
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

/// The model's workers sent less than an answer.
#[must_use]
pub fn early() -> ApiError {
    ApiError::internal("The answer ended early; please send the request again.")
}

struct Events<S, W> {
    pieces: S,
    /// Answers that have not ended.
    open: usize,
    writer: W,
    record: Record,
    /// Sent first.
    opening: Vec<u8>,
    keep_alive: Duration,
    /// When something was sent last.
    last: Instant,
    alarm: Pin<Box<Sleep>>,
    ended: bool,
}

impl<S: Stream<Item = Piece> + Unpin, W: Writer> Stream for Events<S, W> {
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

impl<S, W: Writer> Events<S, W> {
    fn take(&mut self, frame: &mut Vec<u8>, piece: Option<Piece>) {
        let (index, delta) = match piece {
            Some((index, Ok(delta))) => (index, delta),
            Some((_, Err(error))) => return self.fail(frame, &error),
            None => return self.fail(frame, &early()),
        };
        self.record.count(index, &delta);
        let usage = self.record.usage_of(index);
        self.writer.piece(frame, index, &delta, usage);
        if delta.end.is_none() {
            return;
        }
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            let total = self.record.usage();
            self.writer.closing(frame, total);
            self.record.answered();
            self.ended = true;
        }
    }

    fn fail(&mut self, frame: &mut Vec<u8>, error: &ApiError) {
        self.record.failed(error);
        self.writer.failure(frame, error);
        self.ended = true;
    }

    /// Whether it is time to say nothing.
    fn silent(&mut self, context: &mut Context<'_>, frame: &mut Vec<u8>) -> bool {
        while self.alarm.as_mut().poll(context).is_ready() {
            let due = self.last + self.keep_alive;
            if due <= Instant::now() {
                self.alarm.as_mut().reset(Instant::now() + self.keep_alive);
                self.writer.nothing(frame);
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

/// An event that is nothing but an object.
pub fn event(frame: &mut Vec<u8>, object: &impl Serialize) {
    write(frame, b"data: ", object);
}

/// An event with a name of its own. Parsers that know no names find the same in the object's `type`.
pub fn named_event(frame: &mut Vec<u8>, name: &str, object: &impl Serialize) {
    write(frame, format!("event: {name}\ndata: ").as_bytes(), object);
}

fn write(frame: &mut Vec<u8>, head: &[u8], object: &impl Serialize) {
    let before = frame.len();
    frame.extend_from_slice(head);
    if let Err(error) = serde_json::to_writer(&mut *frame, object) {
        // Strings and numbers always make JSON; a broken event is worse than none.
        tracing::error!(%error, "an event could not be written");
        frame.truncate(before);
        return;
    }
    frame.extend_from_slice(b"\n\n");
}
