//! One stream, as an application has it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::answer::{Answer, Lines};
use super::table::{Death, Ending};

/// A connection that does not come about in this time is tried again.
const CONNECT: Duration = Duration::from_secs(5);
/// Nothing for so long is a hang: no fault lasts as long, and none of their consequences may.
const SILENCE: Duration = Duration::from_secs(300);
/// Port of a gateway's health.
const HEALTH_PORT: u16 = 8081;

/// Asks a gateway and reads to the end. `None`: no connection came about, so no stream has begun.
pub(super) async fn stream(
    gateway: SocketAddr,
    request: &Value,
    tokens: &AtomicU64,
    deaths: watch::Receiver<Vec<Death>>,
) -> Option<(Ending, Answer)> {
    let body = Full::new(Bytes::from(request.to_string()));
    let post = Request::post("/v1/chat/completions")
        .header("host", gateway.to_string())
        .header("content-type", "application/json")
        .body(body);
    let connection = timeout(CONNECT, TcpStream::connect(gateway)).await.ok()?.ok()?;
    let (Ok(post), Ok((mut sender, driver))) = (post, http1::handshake(TokioIo::new(connection)).await)
    else {
        return None;
    };
    let driver = tokio::spawn(driver);
    let mut answer = Answer::default();
    let ending = tokio::select! {
        ending = async {
            match timeout(SILENCE, sender.send_request(post)).await {
                Ok(Ok(response)) => read(response, &mut answer, tokens).await,
                Ok(Err(error)) => Ending::Broken(format!("{error:?}")),
                Err(_) => Ending::Silent,
            }
        } => ending,
        // Nobody says so when a node is gone with all that was on it.
        () = gone(gateway, deaths) => Ending::Broken("its node is gone".to_owned()),
    };
    driver.abort();
    Some((ending, answer))
}

async fn read(response: Response<Incoming>, answer: &mut Answer, tokens: &AtomicU64) -> Ending {
    let status = response.status();
    let mut body = response.into_body();
    let mut lines = Lines::default();
    let mut refusal = Vec::new();
    loop {
        match timeout(SILENCE, body.frame()).await {
            Err(_) => return Ending::Silent,
            Ok(Some(Err(error))) => return Ending::Broken(format!("{error:?}")),
            Ok(None) if status == StatusCode::OK => return Ending::Closed,
            Ok(None) => {
                return Ending::Refused(status.as_u16(), String::from_utf8_lossy(&refusal).into_owned());
            }
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if status != StatusCode::OK {
                    refusal.extend_from_slice(&data);
                    continue;
                }
                let before = answer.count;
                lines.take(&data).iter().for_each(|line| answer.take(line));
                tokens.fetch_add(answer.count.saturating_sub(before), Ordering::Relaxed);
            }
        }
    }
}

/// Returns when a gateway of that address has died since this was called.
async fn gone(gateway: SocketAddr, mut deaths: watch::Receiver<Vec<Death>>) {
    let known = deaths.borrow_and_update().len();
    loop {
        if deaths.changed().await.is_err() {
            return std::future::pending().await;
        }
        if deaths
            .borrow_and_update()
            .iter()
            .skip(known)
            .any(|death| death.gateway == gateway)
        {
            return;
        }
    }
}

/// Whether a gateway says that it is ready.
pub(super) async fn is_ready(gateway: SocketAddr) -> bool {
    let health = SocketAddr::new(gateway.ip(), HEALTH_PORT);
    timeout(CONNECT, get(health, "/readyz"))
        .await
        .is_ok_and(|answer| answer.is_ok_and(|status| status == StatusCode::OK))
}

async fn get(address: SocketAddr, path: &str) -> Result<StatusCode> {
    let connection = TcpStream::connect(address).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await?;
    let driver = tokio::spawn(driver);
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header("host", address.to_string())
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await.context("no answer")?.status();
    driver.abort();
    Ok(status)
}
