//! One answer on its way to its client. A client that takes nothing of a streamed answer is cut off after a while, so
//! that it does not keep a place at the model's workers.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::connection::Active;

/// A response body together with what the request occupies.
#[derive(Debug)]
pub struct Guarded {
    body: Passing,
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Passing {
    /// It is there as a whole.
    Whole { body: Body, _active: Active },
    /// It comes bit by bit. Streams send something every few seconds (a keep-alive at least), so one that is not asked
    /// for more has a client that does not read.
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
    active: Active,
    polled: Instant,
}

impl Guarded {
    /// `multiplexed` tells that the connection has other streams, so that only this one is cut off.
    #[must_use]
    pub fn new(
        body: Body,
        active: Active,
        permit: Option<OwnedSemaphorePermit>,
        stall_timeout: Duration,
        multiplexed: bool,
    ) -> Self {
        let body = if body.size_hint().exact().is_some() {
            Passing::Whole {
                body,
                _active: active,
            }
        } else {
            let stream = Arc::new(Stream {
                inner: Mutex::new(Inner {
                    body: Some(body),
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
            (next <= Instant::now()).then(|| {
                if !multiplexed {
                    inner.active.hang_up();
                }
                inner.body.take()
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
            Passing::Streamed { stream, .. } => stream.with(|inner| {
                inner.polled = Instant::now();
                match &mut inner.body {
                    Some(body) => Pin::new(body).poll_frame(context),
                    None => Poll::Ready(Some(Err(axum::Error::new(CutOff)))),
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Passing::Whole { body, .. } => body.is_end_stream(),
            Passing::Streamed { stream, .. } => {
                stream.with(|inner| inner.body.as_ref().is_some_and(HttpBody::is_end_stream))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Passing::Whole { body, .. } => body.size_hint(),
            Passing::Streamed { .. } => SizeHint::default(),
        }
    }
}

/// The client did not read.
#[derive(Debug, thiserror::Error)]
#[error("the client took nothing of its answer for too long")]
struct CutOff;
