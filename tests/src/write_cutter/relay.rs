//! Passing requests on: every connection of a client has one of its own to the API server.

use std::sync::Arc;

use anyhow::{Result, bail};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};

use super::tally::{Tally, Verdict};
use super::upstream::Upstream;

/// Accepts connections until it is dropped, which ends those that are open too.
pub(super) async fn serve(
    listener: TcpListener,
    upstream: Upstream,
    tally: Arc<Tally>,
    is_cut: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // While cut, a connection is closed as soon as it is opened.
                if let Ok((client, _)) = accepted && !*is_cut.borrow() {
                    connections.spawn(connection(client, upstream.clone(), Arc::clone(&tally), is_cut.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one client until either side ends it, or everything is cut.
async fn connection(
    client: TcpStream,
    upstream: Upstream,
    tally: Arc<Tally>,
    mut is_cut: watch::Receiver<bool>,
) {
    let relay = async {
        client.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(upstream.connect().await?)).await?;
        // Requests of one connection come one by one.
        let sender = Arc::new(Mutex::new(sender));
        let service = service_fn(|request| pass(request, Arc::clone(&tally), Arc::clone(&sender)));
        let server =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service);
        tokio::select! {
            served = server => served?,
            driven = driver => driven?,
        }
        anyhow::Ok(())
    };
    tokio::select! {
        // The client sees the end of its connection, whatever the reason.
        _ = relay => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}

async fn pass(
    request: Request<Incoming>,
    tally: Arc<Tally>,
    sender: Arc<Mutex<SendRequest<Incoming>>>,
) -> Result<Response<Incoming>> {
    let verdict = tally.judge(request.method(), request.uri().path());
    if verdict == Verdict::Refuse {
        bail!("cut off");
    }
    let response = sender.lock().await.send_request(request).await;
    if verdict == Verdict::PassAndCut {
        // The whole answer, so that the write has certainly been made.
        if let Ok(response) = response {
            let _ = response.into_body().collect().await;
        }
        tally.cut();
        bail!("cut off");
    }
    Ok(response?)
}
