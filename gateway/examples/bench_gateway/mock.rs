//! Workers that answer at once: over `llamero.v1` for our gateway, over OpenAI's HTTP for others and for asking without any.
//! An answer has as many tokens as `max_tokens` says, each a piece of its own; behind the last one, a stream of
//! [`HELD`] tokens stays open until its client goes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use llamero_proto::v1::completion_server::{Completion, CompletionServer};
use llamero_proto::v1::{
    CompletionChunk, CompletionRequest, Detokenized, EmbedRequest, Embedding, Finish, FinishReason, TokenIds,
    Tokenized,
};
use llamero_settings::limits::MAX_FRAME_BYTES;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Request, Status};

use super::MODEL;

/// Tokens of an answer that does not end.
pub(crate) const HELD: u32 = 7;
/// A usual token.
const TOKEN: &str = " word";
/// Longest body: more than any gateway lets through.
const MAX_BODY: usize = 16 << 20;

/// Serve both until the process ends.
///
/// # Errors
/// A port is taken.
pub(crate) async fn serve(http: SocketAddr, grpc: SocketAddr) -> anyhow::Result<()> {
    let grpc = leader(grpc, None);
    let router = axum::Router::new()
        .route("/v1/chat/completions", post(chat))
        .fallback(any(about))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY));
    let listener = TcpListener::bind(http).await?;
    tokio::select! {
        ended = grpc => ended?,
        ended = axum::serve(listener, router) => ended?,
    }
    Ok(())
}

/// Serve gRPC only until the process ends. With a pace, tokens come one each time, and their texts are their numbers.
///
/// # Errors
/// The port is taken.
pub(crate) async fn leader(address: SocketAddr, pace: Option<Duration>) -> anyhow::Result<()> {
    let worker = CompletionServer::new(Worker { pace }).max_decoding_message_size(MAX_BODY);
    // As a worker's.
    let server = tonic::transport::Server::builder()
        .max_frame_size(MAX_FRAME_BYTES)
        .add_service(worker);
    Ok(server.serve(address).await?)
}

/// The text of the token of this number, from 1, of a leader with a pace.
pub(crate) fn numbered(number: u32) -> String {
    format!(" {number}")
}

/// Health and what a router asks a worker about itself.
async fn about() -> Json<Value> {
    Json(
        json!({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}],
        "model_path": MODEL, "served_model_name": MODEL, "is_generation": true, "status": "ok"}),
    )
}

async fn chat(body: Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else {
        return (hyper::StatusCode::BAD_REQUEST, "not JSON").into_response();
    };
    let tokens = u32::try_from(request["max_tokens"].as_u64().unwrap_or(1)).unwrap_or(1);
    if request["stream"] != true {
        let text = TOKEN.repeat(tokens as usize);
        return Json(json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}}))
        .into_response();
    }
    let event = |delta: Value, finish: Value| {
        let chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
        Bytes::from(format!("data: {chunk}\n\n"))
    };
    let pieces = (0..tokens).map(move |_| event(json!({"content": TOKEN}), Value::Null));
    let pieces = one_by_one(pieces.collect());
    let end = [event(json!({}), json!("length")), Bytes::from("data: [DONE]\n\n")];
    let stream = match tokens {
        HELD => pieces.chain(stream::pending()).boxed(),
        _ => pieces.chain(stream::iter(end)).boxed(),
    };
    let body = Body::from_stream(stream.map(Ok::<_, Infallible>));
    ([("content-type", "text/event-stream")], body).into_response()
}

/// Each in a turn of its own, as tokens come.
fn one_by_one<T: Send + 'static>(pieces: Vec<T>) -> impl Stream<Item = T> + Send {
    stream::iter(pieces).then(|piece| async move {
        tokio::task::yield_now().await;
        piece
    })
}

/// One each time.
fn paced<T: Send + 'static>(
    pieces: impl Iterator<Item = T> + Send + 'static,
    pace: Duration,
) -> impl Stream<Item = T> + Send {
    stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pace).await;
        piece
    })
}

struct Worker {
    pace: Option<Duration>,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<CompletionChunk, Status>> + Send>>;

#[tonic::async_trait]
impl Completion for Worker {
    type CompleteStream = Chunks;

    async fn complete(&self, request: Request<CompletionRequest>) -> Result<tonic::Response<Chunks>, Status> {
        let request = request.into_inner();
        let (tokens, pace) = (request.max_tokens.unwrap_or(1), self.pace);
        let resumed = u32::try_from(request.resume_token_ids.len()).unwrap_or(u32::MAX);
        let held = pace.is_none() && tokens == HELD;
        let chunk = move |number: u32| CompletionChunk {
            prompt_tokens: 5,
            output_tokens: number,
            text: match pace {
                _ if number == resumed => String::new(),
                Some(_) => numbered(number),
                None => TOKEN.to_owned(),
            },
            token_ids: if number > resumed {
                vec![number]
            } else {
                Vec::new()
            },
            content_identity: "mock".to_owned(),
            finish: (number == tokens && !held).then(|| Finish {
                reason: FinishReason::Length.into(),
                ..Finish::default()
            }),
            ..CompletionChunk::default()
        };
        let pieces = (resumed..=tokens).map(move |number| Ok(chunk(number)));
        let stream = match pace {
            Some(pace) => paced(pieces, pace).boxed(),
            None if held => one_by_one(pieces.collect()).chain(stream::pending()).boxed(),
            None => one_by_one(pieces.collect()).boxed(),
        };
        Ok(tonic::Response::new(stream))
    }

    async fn tokenize(&self, _: Request<CompletionRequest>) -> Result<tonic::Response<Tokenized>, Status> {
        Err(Status::unimplemented("only answers are measured"))
    }

    type EmbedStream = stream::Empty<Result<Embedding, Status>>;

    async fn embed(&self, _: Request<EmbedRequest>) -> Result<tonic::Response<Self::EmbedStream>, Status> {
        Err(Status::unimplemented("only answers are measured"))
    }

    async fn detokenize(&self, _: Request<TokenIds>) -> Result<tonic::Response<Detokenized>, Status> {
        Err(Status::unimplemented("only answers are measured"))
    }
}
