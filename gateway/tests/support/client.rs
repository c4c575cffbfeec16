//! HTTP/1.1 over a connection of its own for each request, as `curl` does it.

use std::net::SocketAddr;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;

use super::soon;

/// An answer whose body has not been read yet. Dropping it closes the connection.
pub struct Reply {
    response: Response<Incoming>,
    connection: Option<tokio::task::JoinHandle<()>>,
    buffer: String,
}

pub async fn send(address: SocketAddr, method: Method, path: &str, body: impl Into<Bytes>) -> Reply {
    send_with(address, method, path, &[], body).await
}

/// With headers.
pub async fn send_with(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(async move { drop(connection.await) });
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "gateway")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    Reply {
        response,
        connection: Some(connection),
        buffer: String::new(),
    }
}

pub async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, Method::GET, path, "").await
}

pub async fn post(address: SocketAddr, path: &str, body: Value) -> Reply {
    send(address, Method::POST, path, body.to_string()).await
}

/// One HTTP/2 connection without TLS, for many requests.
pub struct Http2 {
    sender: hyper::client::conn::http2::SendRequest<Body>,
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { sender }
    }

    /// The gateway has closed the connection.
    pub async fn closed(&self) {
        soon(async {
            while !self.sender.is_closed() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub fn post(&self, path: &str, body: Value) -> impl Future<Output = Reply> + use<> {
        self.post_bytes(path, body.to_string().into())
    }

    pub fn post_bytes(&self, path: &str, body: Bytes) -> impl Future<Output = Reply> + use<> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://gateway{path}"))
            .body(Body::from(body))
            .unwrap();
        let mut sender = self.sender.clone();
        async move {
            Reply {
                response: soon(sender.send_request(request)).await.unwrap(),
                connection: None,
                buffer: String::new(),
            }
        }
    }

    /// Send the frames of a call and give its status, if there is one, and its message.
    pub async fn grpc(&self, path: &str, frames: impl Into<Body>) -> Option<(u32, String)> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://gateway{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(frames.into())
            .unwrap();
        let mut sender = self.sender.clone();
        let response = soon(sender.send_request(request)).await.unwrap();
        let (head, body) = response.into_parts();
        let trailers = soon(body.collect()).await.unwrap().trailers().cloned();
        let of = |headers: &hyper::HeaderMap| {
            let status = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
            let message = headers
                .get("grpc-message")
                .and_then(|message| message.to_str().ok());
            Some((status, message.unwrap_or_default().replace("%20", " ")))
        };
        of(&head.headers).or_else(|| of(&trailers?))
    }
}

impl Reply {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub async fn text(mut self) -> String {
        let body = soon(self.response.body_mut().collect()).await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    pub async fn json(self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// The next server-sent event, or whatever stands in its place; none at the end.
    pub async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                return Some(block);
            }
            let frame = soon(self.response.body_mut().frame()).await?.unwrap();
            let data = frame.into_data().unwrap();
            self.buffer.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// The next event's data. Nothing but data may come: some parsers refuse comments.
    pub async fn event(&mut self) -> Option<String> {
        let block = self.block().await?;
        let data = block.strip_prefix("data: ");
        Some(data.unwrap_or_else(|| panic!("{block}")).to_owned())
    }

    /// The next event with a name, which stands in its object too.
    pub async fn named(&mut self) -> Option<(String, Value)> {
        let block = self.block().await?;
        let (name, data) = block.split_once("\ndata: ").unwrap_or_else(|| panic!("{block}"));
        let name = name.strip_prefix("event: ").unwrap_or_else(|| panic!("{block}"));
        let object: Value = serde_json::from_str(data).unwrap();
        assert_eq!(object["type"], name, "{block}");
        Some((name.to_owned(), object))
    }

    /// All named events to the end.
    pub async fn all_named(&mut self) -> Vec<(String, Value)> {
        let mut events = Vec::new();
        while let Some(event) = self.named().await {
            events.push(event);
        }
        events
    }

    /// Text of the next chunk that has some, of chat or text completion.
    pub async fn piece(&mut self) -> Option<String> {
        loop {
            let event: Value = serde_json::from_str(&self.event().await?).unwrap();
            let choice = &event["choices"][0];
            let text = choice["delta"]["content"]
                .as_str()
                .or(choice["text"].as_str())
                .unwrap_or_default();
            if !text.is_empty() {
                return Some(text.to_owned());
            }
        }
    }

    /// Close the connection.
    pub fn hang_up(self) {
        if let Some(connection) = self.connection {
            connection.abort();
        }
    }
}
