//! A leader that answers as the test tells it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::Stream;
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::completion_server::{Completion, CompletionServer};
use llamero_proto::v1::telemetry_server::{Telemetry, TelemetryServer};
use llamero_proto::v1::{
    CompletionChunk, CompletionRequest, Detokenized, EmbedRequest, Embedding, Finish, FinishReason,
    LoadRequest, LoadSample, TokenIds, Tokenized, ToolCallDelta, embed_input,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use vllm_proto::control_server::ControlServer;
use vllm_proto::inference_server::{Inference, InferenceServer};
use vllm_proto::{
    AbortRequest, AbortResponse, GenerateRequest, GenerateResponse, GetModelInfoRequest,
    GetServerInfoRequest, ListLorasRequest, ListLorasResponse, LoadLoraRequest, LoadLoraResponse, ModelInfo,
    PromptInfo, SequenceOutput, ServerInfo, UnloadLoraRequest, UnloadLoraResponse, generate_request,
};

use super::{MODEL, soon};

type Reply = Result<mpsc::Receiver<Result<CompletionChunk, Status>>, Status>;

/// A worker with a runtime of its own, so that it can die at once with all its connections.
pub struct Worker {
    pub address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    load: watch::Sender<LoadSample>,
    moved: watch::Sender<u64>,
    aborted: mpsc::UnboundedReceiver<String>,
    asked: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

/// A request that waits for what the test does with it.
pub struct Call {
    pub request: CompletionRequest,
    pub metadata: tonic::metadata::MetadataMap,
    moved: watch::Sender<u64>,
    reply: oneshot::Sender<Reply>,
}

/// An accepted request.
pub struct Answering {
    chunks: mpsc::Sender<Result<CompletionChunk, Status>>,
    sent: u32,
    identity: String,
    moved: watch::Sender<u64>,
}

impl Worker {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap())
    }

    pub fn start_at(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (calls_in, calls) = mpsc::channel(64);
        let load = watch::Sender::new(LoadSample::default());
        let moved = watch::Sender::new(0);
        let (aborts, aborted) = mpsc::unbounded_channel();
        let service = Service {
            calls: calls_in,
            aborts,
            load: load.clone(),
            moved: moved.clone(),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&service.asked);
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap());
            tonic::transport::Server::builder()
                .add_service(CompletionServer::new(service.clone()))
                .add_service(TelemetryServer::new(service.clone()))
                .add_service(InferenceServer::new(service.clone()))
                .add_service(ControlServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self {
            address,
            calls,
            load,
            moved,
            aborted,
            asked,
            runtime: Some(runtime),
        }
    }

    /// The next request that the gateway passes on.
    pub async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// The same, however long it takes; none at the end.
    pub async fn next_call(&mut self) -> Option<Call> {
        self.calls.recv().await
    }

    /// How many questions it has answered by itself: those of `vllm.Inference`, and for embeddings.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// The next id of a request that is to be aborted.
    pub async fn aborted(&mut self) -> String {
        soon(self.aborted.recv()).await.unwrap()
    }

    pub fn has_call(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Tell the gateway how loaded this worker is.
    pub fn tell_load(&self, running: u32, waiting: u32) {
        self.load.send_replace(LoadSample {
            running,
            waiting,
            ..LoadSample::default()
        });
    }

    /// Tell the gateway which adapters this worker has.
    pub fn tell_adapters(&self, names: &[&str]) {
        self.load.send_replace(LoadSample {
            adapters: names.iter().map(|name| (*name).to_owned()).collect(),
            ..LoadSample::default()
        });
    }

    /// Wait until nothing that was sent with `try_send` moves any more.
    pub async fn quiet(&self) {
        let mut moved = self.moved.subscribe();
        let still = Duration::from_millis(300);
        soon(async { while tokio::time::timeout(still, moved.changed()).await.is_ok() {} }).await;
    }

    /// Die: all sockets are closed when this returns.
    pub async fn kill(mut self) -> SocketAddr {
        let runtime = self.runtime.take().unwrap();
        let end = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(Duration::from_secs(10)));
        soon(end).await.unwrap();
        self.address
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Call {
    /// Answer with a text in two pieces, then a call of `f` whose arguments come in two.
    pub async fn answer_and_call(self) {
        let mut answering = self.accept().await;
        answering.send("Hel", &[1], None).await;
        answering.send("lo", &[2], None).await;
        for (name, arguments) in [("f", ""), ("", "{\"a\":"), ("", "1}")] {
            let delta = ToolCallDelta {
                index: 0,
                name: name.into(),
                arguments: arguments.into(),
            };
            answering
                .send_as("", |chunk| chunk.tool_calls = vec![delta])
                .await;
        }
        answering.send("", &[9], Some(FinishReason::Stop)).await;
    }

    /// Accept: the first chunk has no text.
    pub async fn accept(self) -> Answering {
        self.accept_as("").await
    }

    /// Accept with weights of this identity.
    pub async fn accept_as(self, identity: &str) -> Answering {
        let (chunks, receiver) = mpsc::channel(64);
        let resumed = self.request.resume_token_ids.len() as u32;
        let mut answering = Answering {
            chunks,
            sent: resumed,
            identity: identity.to_owned(),
            moved: self.moved,
        };
        answering.send("", &[], None).await;
        self.reply.send(Ok(receiver)).ok().unwrap();
        answering
    }

    pub fn refuse(self, status: Status) {
        self.reply.send(Err(status)).ok().unwrap();
    }

    /// Answer with a token per word and stop.
    pub async fn answer(self, words: &[&str]) {
        let mut answering = self.accept().await;
        for (index, word) in words.iter().enumerate() {
            let finish = (index + 1 == words.len()).then_some(FinishReason::Stop);
            answering.send(word, &[index as u32 + 100], finish).await;
        }
    }
}

impl Answering {
    pub async fn send(&mut self, text: &str, tokens: &[u32], finish: Option<FinishReason>) {
        let chunk = self.chunk(text, tokens, finish);
        self.chunks.send(Ok(chunk)).await.unwrap();
    }

    /// False when the gateway has dropped the stream.
    pub async fn try_send(&mut self, text: &str, tokens: &[u32]) -> bool {
        let chunk = self.chunk(text, tokens, None);
        let sent = self.chunks.send(Ok(chunk)).await.is_ok();
        self.moved.send_modify(|count| *count += 1);
        sent
    }

    /// The last piece. Nothing is said of a gateway that has dropped the stream.
    pub async fn try_end(mut self, text: &str, reason: FinishReason) {
        let chunk = self.chunk(text, &[2], Some(reason));
        drop(self.chunks.send(Ok(chunk)).await);
    }

    fn chunk(&mut self, text: &str, tokens: &[u32], finish: Option<FinishReason>) -> CompletionChunk {
        self.sent += tokens.len() as u32;
        CompletionChunk {
            prompt_tokens: 5,
            output_tokens: self.sent,
            text: text.to_owned(),
            token_ids: tokens.to_vec(),
            finish: finish.map(|reason| Finish {
                reason: reason.into(),
                ..Finish::default()
            }),
            content_identity: std::mem::take(&mut self.identity),
            ..CompletionChunk::default()
        }
    }

    /// Send what `change` makes of a chunk with one token.
    pub async fn send_as(&mut self, text: &str, change: impl FnOnce(&mut CompletionChunk)) {
        let mut chunk = self.chunk(text, &[self.sent + 100], None);
        change(&mut chunk);
        self.chunks.send(Ok(chunk)).await.unwrap();
    }

    /// The last chunk had no token after all.
    pub fn uncount(&mut self) {
        self.sent -= 1;
    }

    /// End with a stop string.
    pub async fn stop_at(mut self, stop_string: &str) {
        let mut chunk = self.chunk("", &[], Some(FinishReason::Stop));
        chunk.finish.as_mut().unwrap().stop_string = stop_string.to_owned();
        self.chunks.send(Ok(chunk)).await.unwrap();
    }

    pub async fn fail(self, status: Status) {
        self.chunks.send(Err(status)).await.unwrap();
    }

    /// The gateway has dropped the stream.
    pub async fn cancelled(&self) {
        soon(self.chunks.closed()).await;
    }
}

#[derive(Clone)]
struct Service {
    calls: mpsc::Sender<Call>,
    aborts: mpsc::UnboundedSender<String>,
    load: watch::Sender<LoadSample>,
    moved: watch::Sender<u64>,
    asked: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Completion for Service {
    type CompleteStream = ReceiverStream<Result<CompletionChunk, Status>>;

    async fn complete(
        &self,
        request: Request<CompletionRequest>,
    ) -> Result<Response<Self::CompleteStream>, Status> {
        let (reply, answer) = oneshot::channel();
        let (metadata, _, request) = request.into_parts();
        let call = Call {
            request,
            metadata,
            moved: self.moved.clone(),
            reply,
        };
        self.calls
            .send(call)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        let chunks = answer
            .await
            .map_err(|_| Status::unavailable("the test dropped the call"))??;
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    /// One token for each byte of a text.
    async fn tokenize(&self, request: Request<CompletionRequest>) -> Result<Response<Tokenized>, Status> {
        let text = match request.into_inner().prompt {
            Some(Prompt::Text(text)) => text,
            Some(Prompt::Chat(chat)) => chat.messages.into_iter().map(|message| message.content).collect(),
            other => return Err(Status::invalid_argument(format!("{other:?}"))),
        };
        Ok(Response::new(Tokenized {
            ids: text.bytes().map(u32::from).collect(),
            pieces: text.bytes().map(|byte| vec![byte]).collect(),
            max_context: 100,
        }))
    }

    type EmbedStream = Pin<Box<dyn Stream<Item = Result<Embedding, Status>> + Send>>;

    /// Of each input its length, what pooling it is for, and 0.25. An input `fail` is refused, `break` breaks off the answer.
    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<Self::EmbedStream>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let pooling = request.pooling as f32;
        let embeddings: Vec<_> = request
            .inputs
            .into_iter()
            .map(|input| {
                let length = match input.input.unwrap() {
                    embed_input::Input::Text(text) if text == "fail" => {
                        return Err(Status::out_of_range("an input is too long"));
                    }
                    embed_input::Input::Text(text) if text == "break" => {
                        return Err(Status::unavailable("the group ends"));
                    }
                    embed_input::Input::Text(text) => text.len(),
                    embed_input::Input::TokenIds(tokens) => tokens.ids.len(),
                };
                Ok(Embedding {
                    values: vec![length as f32, pooling, 0.25],
                    prompt_tokens: length as u32,
                })
            })
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(embeddings))))
    }

    async fn detokenize(&self, request: Request<TokenIds>) -> Result<Response<Detokenized>, Status> {
        let bytes = request
            .into_inner()
            .ids
            .into_iter()
            .map(|id| u8::try_from(id).unwrap());
        let text = String::from_utf8(bytes.collect()).unwrap();
        Ok(Response::new(Detokenized { text }))
    }
}

/// Writes the prompt again, in pieces of one letter and token.
#[tonic::async_trait]
impl Inference for Service {
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let text = prompt(request)?;
        let tokens = text.len() as u32;
        Ok(Response::new(generated(&text, tokens, true)))
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let text = prompt(request)?;
        let pieces: Vec<_> = text
            .char_indices()
            .map(|(index, letter)| Ok(generated(&letter.to_string(), 1, index == 0)))
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }
}

/// As a worker does, it knows its model by one name.
fn prompt(request: Request<GenerateRequest>) -> Result<String, Status> {
    let request = request.into_inner();
    if request.model != MODEL {
        return Err(Status::not_found(format!(
            "{:?} is not served here",
            request.model
        )));
    }
    if request.request_id.ends_with("taken") {
        return Err(Status::already_exists("a request with this id is under way"));
    }
    match request.prompt {
        Some(generate_request::Prompt::Text(text)) => Ok(text),
        other => Err(Status::out_of_range(format!("no text, but {other:?}"))),
    }
}

fn generated(text: &str, tokens: u32, first: bool) -> GenerateResponse {
    GenerateResponse {
        prompt_info: first.then(|| PromptInfo {
            num_prompt_tokens: 7,
            ..PromptInfo::default()
        }),
        outputs: Some(SequenceOutput {
            text: text.to_owned(),
            num_tokens: tokens,
            ..SequenceOutput::default()
        }),
    }
}

llamero_proto::vllm_control! { Service {
    async fn get_server_info(&self, _: Request<GetServerInfoRequest>) -> Result<Response<ServerInfo>, Status> {
        Ok(Response::new(ServerInfo { max_model_len: 100, ..ServerInfo::default() }))
    }

    async fn get_model_info(&self, _: Request<GetModelInfoRequest>) -> Result<Response<ModelInfo>, Status> {
        Ok(Response::new(ModelInfo { served_model_name: MODEL.to_owned(), ..ModelInfo::default() }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<AbortResponse>, Status> {
        for id in request.into_inner().request_ids {
            self.aborts.send(id).map_err(|_| Status::unavailable("the test is over"))?;
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn list_loras(&self, _: Request<ListLorasRequest>) -> Result<Response<ListLorasResponse>, Status> {
        Ok(Response::new(ListLorasResponse::default()))
    }

    async fn load_lora(&self, _: Request<LoadLoraRequest>) -> Result<Response<LoadLoraResponse>, Status> {
        Err(Status::unimplemented("no adapter"))
    }

    async fn unload_lora(&self, _: Request<UnloadLoraRequest>) -> Result<Response<UnloadLoraResponse>, Status> {
        Err(Status::unimplemented("no adapter"))
    }
}}

#[tonic::async_trait]
impl Telemetry for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<LoadSample, Status>> + Send>>;

    async fn watch(&self, _request: Request<LoadRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let samples = WatchStream::new(self.load.subscribe());
        Ok(Response::new(Box::pin(futures::StreamExt::map(samples, Ok))))
    }
}
