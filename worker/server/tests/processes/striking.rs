//! Doors before leaders, which count the tokens of each answer and kill the leader behind them when so many have passed: no piece more gets
//! through, however fast they come.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use futures::stream::{BoxStream, unfold};
use llamero_proto::v1::completion_client::CompletionClient;
use llamero_proto::v1::completion_server::{Completion, CompletionServer};
use llamero_proto::v1::telemetry_client::TelemetryClient;
use llamero_proto::v1::telemetry_server::{Telemetry, TelemetryServer};
use llamero_proto::v1::{
    CompletionChunk, CompletionRequest, Detokenized, EmbedRequest, Embedding, LoadRequest, LoadSample,
    TokenIds, Tokenized,
};
use rustix::process::Signal;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::harness::{Worker, children, send};

/// What passes through all doors. Requests are known by their `cache_salt`.
#[derive(Default)]
pub(crate) struct Strikes(Mutex<State>);

#[derive(Default)]
struct State {
    tokens: HashMap<String, usize>,
    aim: Option<(String, usize)>,
    struck: Option<usize>,
}

impl Strikes {
    /// Kill the leader that gives a request's token of this number, from 1, over all its answers, behind the piece that has it.
    pub(crate) fn aim(&self, request: &str, token: usize) {
        let mut state = self.0.lock().unwrap();
        (state.aim, state.struck) = (Some((request.to_owned(), token)), None);
    }

    /// Behind which token that came about: those that come together pass together.
    pub(crate) fn struck(&self) -> Option<usize> {
        self.0.lock().unwrap().struck
    }

    /// Tokens that have passed of a request.
    pub(crate) fn tokens(&self, request: &str) -> usize {
        self.0.lock().unwrap().tokens.get(request).copied().unwrap_or(0)
    }

    /// So many more pass. Whether the leader dies of the last of them.
    fn pass(&self, request: &str, more: usize) -> bool {
        let mut state = self.0.lock().unwrap();
        let tokens = state.tokens.entry(request.to_owned()).or_default();
        *tokens += more;
        let passed = *tokens;
        let aim = state.aim.as_ref();
        if aim.is_none_or(|(of, at)| of != request || passed < *at) {
            return false;
        }
        (state.aim, state.struck) = (None, Some(passed));
        true
    }
}

/// The door before one leader.
#[derive(Clone)]
struct Door {
    upstream: Channel,
    supervisor: u32,
    strikes: Arc<Strikes>,
}

/// Open a door before each leader. Their addresses.
pub(crate) async fn doors(workers: &[Worker], strikes: &Arc<Strikes>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for worker in workers {
        let upstream = format!("http://127.0.0.1:{}", worker.ports.inference.unwrap());
        let door = Door {
            upstream: Endpoint::from_shared(upstream).unwrap().connect_lazy(),
            supervisor: worker.pid(),
            strikes: Arc::clone(strikes),
        };
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(socket.local_addr().unwrap());
        let serving = Server::builder()
            .add_service(CompletionServer::new(door.clone()))
            .add_service(TelemetryServer::new(door))
            .serve_with_incoming(TcpIncoming::from(socket));
        tokio::spawn(async move { serving.await.unwrap() });
    }
    addresses
}

/// An answer on its way.
enum Passing {
    Open(Box<Streaming<CompletionChunk>>, Door, String),
    /// Its leader was killed.
    Struck,
    Over,
}

impl Passing {
    async fn next(self) -> Option<(Result<CompletionChunk, Status>, Self)> {
        let (mut answer, door, request) = match self {
            Self::Open(answer, door, request) => (answer, door, request),
            Self::Struck => return Some((Err(Status::unavailable("killed")), Self::Over)),
            Self::Over => return None,
        };
        match answer.message().await.transpose()? {
            Ok(chunk) if door.strikes.pass(&request, chunk.token_ids.len()) => {
                let ranks = children(door.supervisor);
                ranks.iter().for_each(|rank| send(*rank, Signal::KILL));
                Some((Ok(chunk), Self::Struck))
            }
            Ok(chunk) => Some((Ok(chunk), Self::Open(answer, door, request))),
            Err(status) => Some((Err(lost(status)), Self::Over)),
        }
    }
}

/// A connection that breaks is no status of the leader: a gateway that has the connection itself sees UNAVAILABLE.
fn lost(status: Status) -> Status {
    match status.code() {
        Code::Unknown | Code::Internal | Code::Cancelled => Status::unavailable(status.message()),
        _ => status,
    }
}

#[tonic::async_trait]
impl Completion for Door {
    type CompleteStream = BoxStream<'static, Result<CompletionChunk, Status>>;

    async fn complete(
        &self,
        request: Request<CompletionRequest>,
    ) -> Result<Response<Self::CompleteStream>, Status> {
        let request = request.into_inner();
        let name = request.cache_salt.clone();
        let answer = CompletionClient::new(self.upstream.clone())
            .complete(request)
            .await;
        let answer = answer.map_err(lost)?;
        let passing = Passing::Open(Box::new(answer.into_inner()), self.clone(), name);
        Ok(Response::new(unfold(passing, Passing::next).boxed()))
    }

    async fn tokenize(&self, _: Request<CompletionRequest>) -> Result<Response<Tokenized>, Status> {
        Err(Status::unimplemented("only answers pass here"))
    }

    type EmbedStream = BoxStream<'static, Result<Embedding, Status>>;

    async fn embed(&self, _: Request<EmbedRequest>) -> Result<Response<Self::EmbedStream>, Status> {
        Err(Status::unimplemented("only answers pass here"))
    }

    async fn detokenize(&self, _: Request<TokenIds>) -> Result<Response<Detokenized>, Status> {
        Err(Status::unimplemented("only answers pass here"))
    }
}

#[tonic::async_trait]
impl Telemetry for Door {
    type WatchStream = Streaming<LoadSample>;

    async fn watch(&self, request: Request<LoadRequest>) -> Result<Response<Self::WatchStream>, Status> {
        TelemetryClient::new(self.upstream.clone())
            .watch(request.into_inner())
            .await
    }
}
