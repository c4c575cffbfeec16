//! The socket that clients reach, made for clients that are slow, silent, greedy or hostile.
//!
//! | module | what it is |
//! |---|---|
//! | [`limits`] | every bound, with its default |
//! | [`accept`] | from the socket to a connection |
//! | [`connection`] | one connection: protocol, time-outs, orderly end |
//! | [`cors`] | pages of other origins |
//! | [`room`] | memory of long answers that are being sent or wait for that |
//! | [`service`] | one request: caps, its id, the routes |
//! | [`stream`] | one streamed or long answer: a client that takes nothing of it is cut off |
//! | [`tls`] | certificates from files, read again when they change |

pub mod accept;
pub mod connection;
pub mod cors;
pub mod limits;
pub mod room;
pub mod service;
pub mod stream;
pub mod tls;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Gateway;

pub use cors::Cors;
pub use limits::Limits;
pub use room::LongAnswers;
pub use tls::Tls;

/// What all connections of a listener have in common.
#[derive(Debug)]
pub struct Common {
    /// The bounds.
    pub limits: Limits,
    /// Absent: plain text.
    pub tls: Option<Arc<Tls>>,
    /// Pages of other origins that are let in; absent: none.
    pub cors: Option<Cors>,
    /// The routes.
    pub router: Router,
    /// Memory of long answers.
    pub answers: LongAnswers,
    /// One permit for each request under way.
    pub requests: Arc<Semaphore>,
    /// Cancelled when running requests are the last ones.
    pub closing: CancellationToken,
}

/// Serve `router` until `stop`, then let the requests under way end.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    gateway: &Gateway,
    tls: Option<Arc<Tls>>,
    stop: impl Future<Output = ()>,
) {
    let limits = gateway.settings.limits;
    let common = Arc::new(Common {
        cors: gateway.settings.cors.clone(),
        answers: gateway.answer_bytes.clone(),
        requests: Arc::new(Semaphore::new(limits.requests)),
        closing: CancellationToken::new(),
        router,
        tls,
        limits,
    });
    let places = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            stream = accept::accept(&listener) => stream,
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let common = Arc::clone(&common);
                connections.spawn(async move {
                    connection::run(stream, common).await;
                    drop(place);
                });
            }
            Err(_) => accept::turn_away(stream, common.tls.is_some()),
        }
    }
    common.closing.cancel();
    connections.close();
    connections.wait().await;
}
