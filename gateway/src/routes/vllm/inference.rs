//! `vllm.Inference`. An answer whose leader is lost ends with UNAVAILABLE: clients of this contract keep their own token
//! ids and go on by themselves.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use llamero_settings::limits::MAX_ANSWER_BYTES;
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use vllm_proto::inference_client::InferenceClient;
use vllm_proto::inference_server::Inference;
use vllm_proto::{GenerateRequest, GenerateResponse, generate_request::Prompt};

use super::{Service, own_id, unanswered};
use crate::error::ApiError;
use crate::routes::leader::{Asked, Question, ask};
use crate::routes::record::Record;
use crate::upstream::{Affinity, Leader};

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
        let (_, extensions, mut request) = request.into_parts();
        let front = self.front(&extensions, request.session_id.as_deref());
        request.request_id = own_id(&front.caller, &request.request_id);
        let prompt = match &request.prompt {
            Some(Prompt::Text(text)) => text.len() / 4,
            Some(Prompt::TokenIds(tokens)) => tokens.ids.len(),
            None => 0,
        };
        let longest = request
            .stopping
            .as_ref()
            .map_or(0, |stopping| stopping.max_new_tokens);
        let answers = request
            .sampling
            .as_ref()
            .map_or(1, |sampling| sampling.num_sequences.max(1));
        let model = std::mem::take(&mut request.model);
        let adapter = request.lora_name.clone();
        let question = Question {
            route: "vllm_generate",
            model: &model,
            bytes: request.encoded_len(),
            tokens: prompt as u64 + u64::from(longest) * u64::from(answers),
            // The contract has a field of its own for the adapter.
            adapters: false,
            adapter: &adapter,
            affinity: affinity(request.prompt.as_ref()),
        };
        let call = |leader: &Leader| {
            let client = InferenceClient::new(leader.channel()).max_decoding_message_size(MAX_ANSWER_BYTES);
            let model = leader.model().to_owned();
            let request = GenerateRequest {
                model,
                ..request.clone()
            };
            call(client, request)
        };
        ask(front, question, call).await.map_err(unanswered)
    }
}

/// Prompts that begin alike go to the same leader, those of the other APIs among them.
fn affinity(prompt: Option<&Prompt>) -> Option<Affinity> {
    match prompt? {
        Prompt::Text(text) => Affinity::of_text(text),
        Prompt::TokenIds(tokens) => Affinity::of_tokens(&tokens.ids),
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
