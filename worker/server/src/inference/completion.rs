//! `llamero.v1.Completion`: text, tokens or chat in; whole characters out; goes on behind tokens of another group.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use llamero_engine::text::tool_calls::ToolPiece;
use llamero_proto::v1::completion_server::Completion;
use llamero_proto::v1::{
    CompletionChunk, CompletionRequest, Detokenized, EmbedRequest, Embedding, Finish, FinishReason, TokenIds,
    TokenLogprob, Tokenized, ToolCallDelta,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::Services;
use super::adapters;
use super::answer::{Answer, Chunk, Ending, Logprob};
use super::embed;
use super::model::{Model, check_identity};
use super::prepare::{Prepared, prepare, prompt};

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
        let adapter = adapters::choose(&self.engine, &request.adapter)?;
        let identity = adapters::identity(&self.model.content_identity, adapter.as_ref());
        check_identity(&identity, &request.content_identity)?;
        let entry = self.running.enter(&request.request_id)?;
        let model = Arc::clone(&self.model);
        let stops = request.stop_token_ids.clone();
        let prepare = move || prepare(&model, request, adapter);
        let Prepared { opening, prompt_text } = self.text_workers.run(bytes, prepare).await?;
        let resumed = u32::try_from(opening.request().resume_tokens.len()).unwrap_or(u32::MAX);
        let request = opening.request();
        let begins = request
            .prompt
            .first()
            .filter(|_| request.prompt_logprobs.is_some());
        let prompt_logprobs = begins.map(|id| first_token(&self.model, *id));
        let mut answer = Answer::begin(&self.engine, opening, entry.abort.clone())?;
        answer.accepted().await?;
        let prompt_tokens = answer.prompt_tokens();
        let first = CompletionChunk {
            prompt_tokens,
            output_tokens: resumed,
            content_identity: identity,
            prompt_text,
            prompt_logprobs: prompt_logprobs.into_iter().collect(),
            ..CompletionChunk::default()
        };
        let model = Arc::clone(&self.model);
        // The answer and its entry live as long as the stream: a client that goes away drops both.
        let state = Some((answer, entry, stops, model));
        let rest = futures::stream::unfold(state, move |state| async move {
            let (mut answer, entry, stops, model) = state?;
            match answer.next().await {
                Ok(chunk) => {
                    let last = chunk.ending.is_some();
                    let chunk = message(&model, prompt_tokens, &stops, chunk);
                    Some((Ok(chunk), (!last).then_some((answer, entry, stops, model))))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        let chunks = futures::StreamExt::chain(futures::stream::iter([Ok(first)]), rest);
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn tokenize(&self, request: Request<CompletionRequest>) -> Result<Response<Tokenized>, Status> {
        let mut request = request.into_inner();
        let bytes = request.encoded_len();
        self.model.check_name(&request.model)?;
        let model = Arc::clone(&self.model);
        let work = move || {
            let (ids, _) = prompt(&model, &mut request)?;
            model.check_spelling(&ids)?;
            let pieces = ids.iter().map(|id| model.tokenizer.bytes(*id).to_vec());
            Ok(Tokenized {
                pieces: pieces.collect(),
                ids,
                max_context: model.limits.max_context,
            })
        };
        Ok(Response::new(self.text_workers.run(bytes, work).await?))
    }

    type EmbedStream = Pin<Box<dyn Stream<Item = Result<Embedding, Status>> + Send>>;

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<Self::EmbedStream>, Status> {
        let request = request.into_inner();
        let bytes = request.encoded_len();
        self.model.check_name(&request.model)?;
        let entry = self.running.enter(&request.request_id)?;
        let model = Arc::clone(&self.model);
        let work = move || embed::prepare(&model, request);
        let requests = self.text_workers.run(bytes, work).await?;
        Ok(Response::new(embed::embeddings(
            self.engine.clone(),
            requests,
            entry,
        )))
    }

    async fn detokenize(&self, request: Request<TokenIds>) -> Result<Response<Detokenized>, Status> {
        let tokens = request.into_inner();
        let bytes = tokens.encoded_len();
        let model = Arc::clone(&self.model);
        let work = move || {
            let text = model.text_of(&tokens.ids)?;
            Ok(Detokenized { text })
        };
        Ok(Response::new(self.text_workers.run(bytes, work).await?))
    }
}

fn message(model: &Model, prompt_tokens: u32, asked_stops: &[u32], chunk: Chunk) -> CompletionChunk {
    let finish = chunk.ending.map(|ending| {
        let (reason, stop_string, stop_token) = match ending {
            Ending::StopToken(id) => (FinishReason::Stop, String::new(), Some(id)),
            Ending::StopString(string) => (FinishReason::Stop, string, None),
            Ending::Called => (FinishReason::Stop, String::new(), None),
            Ending::Length => (FinishReason::Length, String::new(), None),
            Ending::Aborted => (FinishReason::Abort, String::new(), None),
        };
        Finish {
            reason: reason.into(),
            stop_string,
            stop_token_id: stop_token.filter(|id| asked_stops.contains(id)),
        }
    });
    CompletionChunk {
        prompt_tokens,
        output_tokens: chunk.output_tokens,
        text: chunk.text,
        token_ids: chunk.token_ids,
        finish,
        content_identity: String::new(),
        prompt_text: String::new(),
        logprobs: chunk
            .logprobs
            .into_iter()
            .map(|logprob| with_logprob(model, logprob))
            .collect(),
        tool_calls: calls(chunk.calls),
        cached_tokens: chunk.cached_tokens,
        prompt_logprobs: chunk
            .prompt_logprobs
            .into_iter()
            .map(|logprob| with_logprob(model, logprob))
            .collect(),
    }
}

/// The first token of a prompt, which has no log-probability.
fn first_token(model: &Model, id: u32) -> TokenLogprob {
    TokenLogprob {
        token_id: id,
        bytes: model.tokenizer.bytes(id).to_vec(),
        begins: true,
        ..TokenLogprob::default()
    }
}

fn with_logprob(model: &Model, Logprob { id, logprob, top }: Logprob) -> TokenLogprob {
    let token = |id: u32, logprob: f32, top| TokenLogprob {
        token_id: id,
        bytes: model.tokenizer.bytes(id).to_vec(),
        logprob,
        top,
        begins: false,
    };
    let top = top
        .into_iter()
        .map(|(id, logprob)| token(id, logprob, Vec::new()));
    token(id, logprob, top.collect())
}

fn calls(pieces: Vec<ToolPiece>) -> Vec<ToolCallDelta> {
    let delta = |piece| match piece {
        ToolPiece::Begin { index, name } => Some(ToolCallDelta {
            index,
            name,
            ..ToolCallDelta::default()
        }),
        ToolPiece::Arguments { index, text } => Some(ToolCallDelta {
            index,
            arguments: text,
            ..ToolCallDelta::default()
        }),
        ToolPiece::Text(_) => None,
    };
    pieces.into_iter().filter_map(delta).collect()
}
