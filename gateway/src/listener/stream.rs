//! One answer on its way to its client. A client that takes nothing of a streamed or a long answer is cut off after a while, so
//! that it does not keep a place at the model's workers, nor memory.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::connection::Active;
use super::limits::{SHORT_ANSWER, SLICE, SLOWEST};
use crate::budget::{Budget, Share};
use crate::error::ApiError;

/// Room for an answer that is there as a whole and long, until it has been sent. One that is longer than all the room goes alone.
///
/// # Errors
/// 503 when clients that do not read have taken it.
pub fn room(body: &Body, answers: &Budget) -> Result<Option<Share>, ApiError> {
    let long = body
        .size_hint()
        .exact()
        .filter(|&bytes| bytes > SHORT_ANSWER as u64);
    let Some(bytes) = long else { return Ok(None) };
    take(usize::try_from(bytes).unwrap_or(usize::MAX), answers).map(Some)
}

fn take(bytes: usize, answers: &Budget) -> Result<Share, ApiError> {
    answers.take(bytes.min(answers.limit())).ok_or_else(|| {
        ApiError::unavailable(
            "too_many_requests",
            "This gateway holds as many long answers for clients that read slowly as it has memory for; send the request again.",
            1,
        )
    })
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

#[derive(Debug)]
struct Inner {
    /// Absent when cut off.
    body: Option<Body>,
    /// What has come and has not been sent of a long piece, and its room.
    rest: Bytes,
    share: Option<Share>,
    /// When what has a share must have been sent.
    end: Option<Instant>,
    answers: Budget,
    active: Active,
    polled: Instant,
    stall_timeout: Duration,
}

/// A client that reads so slowly keeps others from their answers.
fn latest(bytes: u64, stall_timeout: Duration) -> Instant {
    Instant::now() + stall_timeout + Duration::from_secs(bytes / SLOWEST)
}

impl Guarded {
    /// `share` is what [`room`] gave; long pieces of a stream take theirs from `answers`. `multiplexed` tells that the connection has other
    /// streams, so that only this one is cut off.
    #[must_use]
    pub fn new(
        body: Body,
        active: Active,
        permit: Option<OwnedSemaphorePermit>,
        (share, answers): (Option<Share>, &Budget),
        stall_timeout: Duration,
        multiplexed: bool,
    ) -> Self {
        let body = if share.is_none() && body.size_hint().exact().is_some() {
            Passing::Whole {
                body,
                _active: active,
            }
        } else {
            let whole = body.size_hint().exact().unwrap_or(0);
            let end = share.is_some().then(|| latest(whole, stall_timeout));
            let stream = Arc::new(Stream {
                inner: Mutex::new(Inner {
                    body: Some(body),
                    rest: Bytes::new(),
                    share,
                    end,
                    stall_timeout,
                    answers: answers.clone(),
                    active,
                    polled: Instant::now(),
                }),
            });
            let watched = watch(Arc::downgrade(&stream), stall_timeout, multiplexed);
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
    /// Forget what has not been sent.
    fn cut(&mut self) -> Option<Body> {
        self.rest = Bytes::new();
        (self.share, self.end) = (None, None);
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
            if self.share.is_none() {
                match take(self.rest.len(), &self.answers) {
                    Ok(share) => {
                        self.share = Some(share);
                        self.end = Some(latest(self.rest.len() as u64, self.stall_timeout));
                    }
                    Err(full) => {
                        tracing::warn!(
                            "clients that read slowly have taken the room for long answers, so one is broken off"
                        );
                        drop(self.cut());
                        return Poll::Ready(Some(Err(axum::Error::new(Full(full.message)))));
                    }
                }
            }
        }
        let slice = self.rest.split_to(SLICE.min(self.rest.len()));
        let slice = Bytes::copy_from_slice(&slice);
        if self.rest.is_empty() {
            (self.rest, self.share, self.end) = (Bytes::new(), None, None);
        }
        Poll::Ready(Some(Ok(Frame::data(slice))))
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

async fn watch(stream: Weak<Stream>, stall_timeout: Duration, multiplexed: bool) {
    let mut next = Instant::now() + stall_timeout;
    loop {
        sleep_until(next).await;
        let Some(stream) = stream.upgrade() else { return };
        let cut = stream.with(|inner| {
            next = inner.polled + stall_timeout;
            next = inner.end.map_or(next, |end| end.min(next));
            (next <= Instant::now()).then(|| {
                if !multiplexed {
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
