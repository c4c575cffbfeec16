//! `vllm.Inference` over gRPC on the port of the API, so that clients of gRPC need one address too: passed through to a
//! leader of the model that the request names. An answer whose leader is lost ends with UNAVAILABLE: clients of this
//! contract keep their own token ids and go on by themselves.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use llamero_settings::limits::{MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::inference_server::{Inference, InferenceServer};
use vllm_proto::{GenerateRequest, GenerateResponse, generate_request::Prompt};

use super::completion::api::Front;
use super::leader::{Asked, Question, Unanswered, ask};
use super::record::Record;
use crate::Gateway;
use crate::error::ApiError;
use crate::keys::Caller;
use crate::listener::service::RequestId;
use crate::relay::Wishes;
use crate::upstream::Affinity;

/// The service, as routes.
pub fn router(gateway: Arc<Gateway>) -> axum::Router<Arc<Gateway>> {
    let server = InferenceServer::new(Service { gateway }).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let routes = tonic::service::Routes::new(server).prepare();
    routes.into_axum_router().reset_fallback().with_state(())
}

#[derive(Debug)]
struct Service {
    gateway: Arc<Gateway>,
}

/// Counts the tokens of an answer while it passes.
#[derive(Debug, Default)]
struct Tokens {
    prompt: u32,
    output: u32,
}

impl Service {
    async fn pass<T: 'static>(
        &self,
        request: Request<GenerateRequest>,
        call: fn(InferenceClient<Channel>, GenerateRequest) -> BoxFuture<'static, Result<T, Status>>,
    ) -> Result<Asked<T>, Status> {
        let (_, extensions, request) = request.into_parts();
        let caller = extensions.get::<Caller>().cloned().unwrap_or_default();
        let front = Front {
            gateway: Arc::clone(&self.gateway),
            caller,
            wishes: Wishes {
                patience: None,
                request_id: extensions.get::<RequestId>().map(|RequestId(id)| id.clone()),
                session: request.session_id.as_deref().map(Affinity::of_session),
            },
        };
        let prompt = match &request.prompt {
            Some(Prompt::Text(text)) => text.len() / 4,
            Some(Prompt::TokenIds(tokens)) => tokens.ids.len(),
            None => 0,
        };
        let longest = request
            .stopping
            .as_ref()
            .map_or(0, |stopping| stopping.max_new_tokens);
        let question = Question {
            route: "vllm_generate",
            model: &request.model,
            bytes: request.encoded_len(),
            tokens: prompt as u64 + u64::from(longest),
        };
        let call = |channel| {
            let client = InferenceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
            call(client, request.clone())
        };
        ask(front, question, call).await.map_err(status)
    }
}

#[tonic::async_trait]
impl Inference for Service {
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateResponse>, Status> {
        let mut asked = self
            .pass(request, |mut client, request| {
                Box::pin(async move { client.generate(request).await.map(Response::into_inner) })
            })
            .await?;
        Tokens::default().count(&asked.answer, &mut asked.record);
        asked.record.finished();
        Ok(Response::new(asked.answer))
    }

    type GenerateStreamStream = BoxStream<'static, Result<GenerateResponse, Status>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let asked = self
            .pass(request, |mut client, request| {
                Box::pin(async move { client.generate_stream(request).await.map(Response::into_inner) })
            })
            .await?;
        Ok(Response::new(passing(asked).boxed()))
    }
}

/// The pieces of an answer; what was asked counts as under way until the last one, or until the client goes.
fn passing(
    asked: Asked<tonic::Streaming<GenerateResponse>>,
) -> impl Stream<Item = Result<GenerateResponse, Status>> {
    let state = Some((asked, Tokens::default()));
    futures::stream::unfold(state, |state| async move {
        let (mut asked, mut tokens) = state?;
        match asked.answer.message().await {
            Ok(Some(piece)) => {
                tokens.count(&piece, &mut asked.record);
                Some((Ok(piece), Some((asked, tokens))))
            }
            Ok(None) => {
                asked.record.finished();
                None
            }
            Err(status) => {
                asked.record.failed(&ApiError::internal(status.message()));
                Some((Err(status), None))
            }
        }
    })
}

impl Tokens {
    fn count(&mut self, piece: &GenerateResponse, record: &mut Record) {
        if let Some(prompt) = &piece.prompt_info {
            self.prompt = prompt.num_prompt_tokens;
        }
        if let Some(output) = &piece.outputs {
            self.output = self.output.saturating_add(output.num_tokens);
        }
        record.used(self.prompt, self.output);
    }
}

/// What the leader itself said is passed on as it is.
fn status(unanswered: Unanswered) -> Status {
    if let Some(status) = unanswered.status {
        return status;
    }
    let error = unanswered.error;
    let code = match error.status.as_u16() {
        404 => Code::NotFound,
        429 => Code::ResourceExhausted,
        503 => Code::Unavailable,
        400..500 => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    if let Some(seconds) = error.retry_after {
        metadata.insert("retry-after-ms", (seconds * 1000).into());
    }
    Status::with_metadata(code, error.message, metadata)
}
