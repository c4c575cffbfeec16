//! `llamero.v1.Completion`: text, tokens or chat in; whole characters out; goes on behind tokens of another group.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use llamero_engine::text::{ChatMessage, RequestDraft};
use llamero_proto::v1::completion_request::Prompt;
use llamero_proto::v1::completion_server::Completion;
use llamero_proto::v1::{CompletionChunk, CompletionRequest, Finish, FinishReason};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::Services;
use super::answer::{Answer, Chunk, Ending};
use super::model::Model;

#[tonic::async_trait]
impl Completion for Services {
    type CompleteStream = Pin<Box<dyn Stream<Item = Result<CompletionChunk, Status>> + Send>>;

    async fn complete(
        &self,
        request: Request<CompletionRequest>,
    ) -> Result<Response<Self::CompleteStream>, Status> {
        let request = request.into_inner();
        let bytes = request.encoded_len();
        self.model.check_name(&request.model)?;
        self.model.check_identity(&request.content_identity)?;
        let entry = self.running.enter(&request.request_id)?;
        let model = Arc::clone(&self.model);
        let prepare = move || model.validate(draft(&model, request)?);
        let request = self.text_workers.run(bytes, prepare).await?;
        let resumed = u32::try_from(request.resume_tokens.len()).unwrap_or(u32::MAX);
        let mut answer = Answer::begin(&self.engine, &self.model, request, entry.abort.clone())?;
        answer.accepted().await?;
        let prompt_tokens = answer.prompt_tokens();
        let first = CompletionChunk {
            prompt_tokens,
            output_tokens: resumed,
            content_identity: self.model.content_identity.clone(),
            ..CompletionChunk::default()
        };
        // The answer and its entry live as long as the stream: a client that goes away drops both.
        let rest = futures::stream::unfold(Some((answer, entry)), move |state| async move {
            let (mut answer, entry) = state?;
            match answer.next().await {
                Ok(chunk) => {
                    let last = chunk.ending.is_some();
                    Some((
                        Ok(message(prompt_tokens, chunk)),
                        (!last).then_some((answer, entry)),
                    ))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        let chunks = futures::StreamExt::chain(futures::stream::iter([Ok(first)]), rest);
        Ok(Response::new(Box::pin(chunks)))
    }
}

fn draft(model: &Model, request: CompletionRequest) -> Result<RequestDraft, Status> {
    let prompt = match request.prompt {
        Some(Prompt::Text(text)) => {
            model.check_length(&text)?;
            model.tokens_of_text(&text)?
        }
        Some(Prompt::TokenIds(tokens)) => tokens.ids,
        Some(Prompt::Chat(chat)) => {
            let messages: Vec<ChatMessage> = chat
                .messages
                .into_iter()
                .map(|message| ChatMessage::new(&message.role, &message.content))
                .collect();
            model.tokens_of_chat(&messages, &chat.tools_json)?
        }
        None => {
            return Err(Status::invalid_argument(
                "there is no prompt; send text, token_ids or chat",
            ));
        }
    };
    Ok(RequestDraft {
        prompt,
        max_tokens: request.max_tokens,
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: None,
        presence_penalty: request.presence_penalty,
        frequency_penalty: request.frequency_penalty,
        logit_bias: request.logit_bias.into_iter().collect(),
        seed: request.seed,
        stop: request.stop,
        stop_tokens: request.stop_token_ids,
        ignore_eos: request.ignore_eos,
        logprobs: false,
        resume_tokens: request.resume_token_ids,
    })
}

fn message(prompt_tokens: u32, chunk: Chunk) -> CompletionChunk {
    let finish = chunk.ending.map(|ending| {
        let (reason, stop_string) = match ending {
            Ending::StopToken(_) => (FinishReason::Stop, String::new()),
            Ending::StopString(string) => (FinishReason::Stop, string),
            Ending::Length => (FinishReason::Length, String::new()),
            Ending::Aborted => (FinishReason::Abort, String::new()),
        };
        Finish {
            reason: reason.into(),
            stop_string,
        }
    });
    CompletionChunk {
        prompt_tokens,
        output_tokens: chunk.output_tokens,
        text: chunk.text,
        token_ids: chunk.token_ids,
        finish,
        content_identity: String::new(),
    }
}
