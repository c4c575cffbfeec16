//! One answer on its way to its client. A client that takes nothing of a streamed or a long answer is cut off after a while, so
//! that it does not keep a place at the model's workers, nor memory.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::connection::Active;
use super::limits::{SHORT_ANSWER, SLICE, SLOWEST};
use super::room::{LongAnswers, Room, full};
use crate::routes::form::ErrorForm;

/// How long a client is waited for, and for how much.
#[derive(Debug, Clone)]
pub struct Patience {
    /// Room for long answers, and long pieces of streams.
    pub answers: LongAnswers,
    /// How long it may take nothing.
    pub stall_timeout: Duration,
    /// How long a long piece waits for room.
    pub room_timeout: Duration,
    /// In what form it is told of errors.
    pub form: ErrorForm,
    /// Whether its connection has other streams, so that only this one is cut off.
    pub multiplexed: bool,
}

impl Patience {
    /// When so many bytes must have been sent: a client that reads so slowly keeps others from their answers.
    fn end(&self, bytes: u64) -> Instant {
        Instant::now() + self.stall_timeout + Duration::from_secs(bytes / SLOWEST)
    }
}

/// A response body together with what the request occupies.
#[derive(Debug)]
pub struct Guarded {
    body: Passing,
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Passing {
    /// It is there as a whole, and short.
    Whole { body: Body, _active: Active },
    /// It comes bit by bit. Streams send something every few seconds (a keep-alive at least), and what is there as a whole could be
    /// sent at once, so one that is not asked for more has a client that does not read.
    Streamed { stream: Arc<Stream>, watch: AbortHandle },
}

#[derive(Debug)]
struct Stream {
    inner: Mutex<Inner>,
}

struct Inner {
    /// Absent when cut off, or ended before its end.
    body: Option<Body>,
    /// What has come and has not been sent of a long piece.
    rest: Bytes,
    /// A long piece that waits for room.
    waiting: Option<BoxFuture<'static, Option<OwnedSemaphorePermit>>>,
    /// The room of what is being sent, and when it must have been sent.
    room: Option<(OwnedSemaphorePermit, Instant)>,
    patience: Patience,
    active: Active,
    polled: Instant,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

impl Guarded {
    /// `room` is what [`super::room::room`] gave; long pieces of a stream take theirs by themselves.
    #[must_use]
    pub fn new(
        body: Body,
        active: Active,
        permit: Option<OwnedSemaphorePermit>,
        room: Option<Room>,
        patience: Patience,
    ) -> Self {
        let body = if room.is_none() && body.size_hint().exact().is_some() {
            Passing::Whole {
                body,
                _active: active,
            }
        } else {
            let first = Instant::now() + patience.stall_timeout;
            let stream = Arc::new(Stream {
                inner: Mutex::new(Inner {
                    body: Some(body),
                    rest: Bytes::new(),
                    waiting: None,
                    room: room.map(|Room { permit, bytes }| (permit, patience.end(bytes))),
                    patience,
                    active,
                    polled: Instant::now(),
                }),
            });
            let watched = watch(Arc::downgrade(&stream), first);
            Passing::Streamed {
                stream,
                watch: tokio::spawn(watched).abort_handle(),
            }
        };
        Self {
            body,
            _permit: permit,
        }
    }
}

impl Stream {
    /// Nothing panics while it holds the lock but the body itself, which then ends with its connection.
    fn with<T>(&self, what: impl FnOnce(&mut Inner) -> T) -> T {
        what(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    /// When it is cut off unless it is asked for more.
    fn latest(&self) -> Instant {
        let mut stall = self.patience.stall_timeout;
        if self.waiting.is_some() {
            stall += self.patience.room_timeout;
        }
        let next = self.polled + stall;
        self.room.as_ref().map_or(next, |(_, end)| next.min(*end))
    }

    /// Forget what has not been sent.
    fn cut(&mut self) -> Option<Body> {
        self.rest = Bytes::new();
        (self.waiting, self.room) = (None, None);
        self.body.take()
    }

    /// The next piece. Long ones come in copied slices: what waits in the connection's buffers then keeps no more than itself in memory.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.polled = Instant::now();
        let Some(body) = &mut self.body else {
            return Poll::Ready(Some(Err(axum::Error::new(CutOff))));
        };
        if self.rest.is_empty() {
            let frame = match ready!(Pin::new(body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            if frame.data_ref().is_none_or(|data| data.len() <= SHORT_ANSWER) {
                return Poll::Ready(Some(Ok(frame)));
            }
            self.rest = frame.into_data().unwrap_or_default();
            if self.room.is_none() {
                let (answers, longest) = (self.patience.answers.clone(), self.patience.room_timeout);
                self.waiting = Some(answers.take(self.rest.len(), longest).boxed());
            }
        }
        if let Some(waiting) = &mut self.waiting {
            let permit = ready!(waiting.as_mut().poll(context));
            self.waiting = None;
            let Some(permit) = permit else {
                return Poll::Ready(self.give_up());
            };
            self.room = Some((permit, self.patience.end(self.rest.len() as u64)));
        }
        let slice = self.rest.split_to(SLICE.min(self.rest.len()));
        let slice = Bytes::copy_from_slice(&slice);
        if self.rest.is_empty() {
            (self.rest, self.room) = (Bytes::new(), None);
        }
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    /// End a stream before a piece that there is no room for: with its status on gRPC, else broken off, so that nobody takes it for whole.
    fn give_up(&mut self) -> Option<Result<Frame<Bytes>, axum::Error>> {
        drop(self.cut());
        let error = full();
        let Some(trailers) = self.patience.form.trailers(&error) else {
            return Some(Err(axum::Error::new(Full(error.message))));
        };
        // Frames of gRPC hold whole messages, so this stands behind one.
        self.body = Some(Body::empty());
        Some(Ok(Frame::trailers(trailers)))
    }

    fn is_end(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    /// Bytes that are to come, if that is known.
    fn size(&self) -> SizeHint {
        let known = self.body.as_ref().and_then(|body| body.size_hint().exact());
        known.map_or_else(SizeHint::default, |bytes| {
            SizeHint::with_exact(bytes.saturating_add(self.rest.len() as u64))
        })
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        if let Self::Streamed { watch, .. } = self {
            watch.abort();
        }
    }
}

async fn watch(stream: Weak<Stream>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let Some(stream) = stream.upgrade() else { return };
        let cut = stream.with(|inner| {
            next = inner.latest();
            (next <= Instant::now()).then(|| {
                if !inner.patience.multiplexed {
                    inner.active.hang_up();
                }
                inner.cut()
            })
        });
        if cut.is_some() {
            tracing::info!("a client took nothing of its answer for too long and is cut off");
            return;
        }
    }
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut self.body {
            Passing::Whole { body, .. } => Pin::new(body).poll_frame(context),
            Passing::Streamed { stream, .. } => stream.with(|inner| inner.poll(context)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Passing::Whole { body, .. } => body.is_end_stream(),
            Passing::Streamed { stream, .. } => stream.with(|inner| inner.is_end()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Passing::Whole { body, .. } => body.size_hint(),
            Passing::Streamed { stream, .. } => stream.with(|inner| inner.size()),
        }
    }
}

/// The client did not read.
#[derive(Debug, thiserror::Error)]
#[error("the client took nothing of its answer for too long")]
struct CutOff;

/// There is no room for a long piece of a stream.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Full(String);
