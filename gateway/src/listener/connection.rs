//! One connection: HTTP/1 or HTTP/2 by what the client sends first, time-outs, and an orderly end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::service::Front;
use super::{Common, Limits, limits};

/// An idle connection is asked to end; one that has not done so then is dropped.
const FAREWELL: Duration = Duration::from_secs(5);
/// A dead client answers no ping: HTTP/2 connections with long streams are found out by it.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serve one connection to its end.
pub async fn run(stream: TcpStream, common: Arc<Common>) {
    let first = Instant::now() + common.limits.header_timeout;
    let Some(tls) = common.tls.clone() else {
        return converse(stream, common, first).await;
    };
    // A client that does not finish its handshake is as silent as one that sends no request.
    if let Ok(Ok(stream)) = timeout_at(first, tls.acceptor().accept(stream)).await {
        converse(stream, common, first).await;
    }
}

/// `first` is when the first request must have come.
async fn converse<S>(stream: S, common: Arc<Common>, first: Instant)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = common.limits;
    let activity = Arc::new(Activity::new(first));
    let closing = common.closing.clone();
    let service = Front::new(common, Arc::clone(&activity));
    let builder = builder(&limits);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut ending = false;
    let mut alarm = std::pin::pin!(sleep_until(first));
    loop {
        tokio::select! {
            // How a connection ends is the client's business.
            _ = connection.as_mut() => return,
            () = activity.hang_up.notified() => return,
            () = closing.cancelled(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = alarm.as_mut() => match activity.expires(&limits) {
                Some(at) if at <= Instant::now() => {
                    if activity.never_asked() || activity.asked_to_end.swap(true, Ordering::Relaxed) {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                    alarm.as_mut().reset(Instant::now() + FAREWELL.min(limits.idle_timeout));
                }
                Some(at) => alarm.as_mut().reset(at),
                None => alarm.as_mut().reset(Instant::now() + limits.idle_timeout),
            },
        }
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // The alarm above covers headers as well, also before the protocol is known.
        .header_read_timeout(None)
        .max_buf_size(limits::CONNECTION_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_send_buf_size(limits::STREAM_BUFFER)
        .max_header_list_size(limits::HEADER_BYTES);
    builder
}

/// Whether a connection does anything.
#[derive(Debug)]
pub struct Activity {
    state: Mutex<State>,
    asked_to_end: AtomicBool,
    /// Told when the connection must be dropped at once.
    pub hang_up: Notify,
}

#[derive(Debug)]
struct State {
    /// Requests under way.
    active: usize,
    /// When the last one ended; before the first, when it must have come.
    idle: Idle,
}

#[derive(Debug, Clone, Copy)]
enum Idle {
    UntilFirst(Instant),
    Since(Instant),
}

impl Activity {
    fn new(first: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                active: 0,
                idle: Idle::UntilFirst(first),
            }),
            asked_to_end: AtomicBool::new(false),
            hang_up: Notify::new(),
        }
    }

    /// A request is under way until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Active {
        self.change(|state| state.active += 1);
        Active {
            activity: Arc::clone(self),
        }
    }

    /// Whether no request has come yet; such a connection is owed no orderly end.
    fn never_asked(&self) -> bool {
        self.change(|state| matches!((state.active, state.idle), (0, Idle::UntilFirst(_))))
    }

    /// When the connection has been idle for too long; `None` while a request is under way.
    fn expires(&self, limits: &Limits) -> Option<Instant> {
        self.change(|state| match (state.active, state.idle) {
            (0, Idle::UntilFirst(first)) => Some(first),
            (0, Idle::Since(since)) => Some(since + limits.idle_timeout),
            _ => None,
        })
    }

    /// Nothing panics while it holds the lock, and the numbers are valid at every time.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request under way.
#[derive(Debug)]
pub struct Active {
    activity: Arc<Activity>,
}

impl Active {
    /// Drop the whole connection.
    pub fn hang_up(&self) {
        self.activity.hang_up.notify_one();
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.activity.change(|state| {
            state.active -= 1;
            state.idle = Idle::Since(Instant::now());
        });
    }
}
