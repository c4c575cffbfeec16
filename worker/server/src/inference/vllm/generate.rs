//! `vllm.Inference`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use prost::Message as _;
use tonic::{Request, Response, Status};
use vllm_proto::finish_info::{FinishReason, StopReason};
use vllm_proto::inference_server::Inference;
use vllm_proto::{FinishInfo, GenerateRequest, GenerateResponse, PromptInfo, SequenceOutput};

use super::request::{self, OutputSelection};
use crate::inference::Services;
use crate::inference::answer::{Answer, Chunk, Ending, Opening, Wishes};
use crate::inference::model::Model;
use crate::inference::running::Entry;

/// An answer under way and what it is to contain.
struct Generation {
    answer: Answer,
    selection: OutputSelection,
    prompt: Option<PromptInfo>,
    eos_tokens: Vec<u32>,
    /// Keeps the request's id taken.
    _entry: Entry,
}

impl Generation {
    async fn begin(services: &Services, mut request: GenerateRequest) -> Result<Self, Status> {
        let model: &Model = &services.model;
        model.check_name(&request.model)?;
        let entry = services.running.enter(&request.request_id)?;
        let bytes = request.encoded_len();
        let sharing = request::sharing(&mut request);
        let prepare = {
            let model = Arc::clone(&services.model);
            move || {
                let (draft, selection) = request::draft(&model, request)?;
                let request = model.validate(draft)?;
                let wishes = Wishes {
                    sharing,
                    ..Wishes::default()
                };
                Ok((Opening::new(&model, request, wishes), selection))
            }
        };
        let (opening, selection) = services.text_workers.run(bytes, prepare).await?;
        let token_ids = if selection.prompt_token_ids {
            opening.request().prompt.clone()
        } else {
            Vec::new()
        };
        let mut answer = Answer::begin(&services.engine, opening, entry.abort.clone())?;
        answer.accepted().await?;
        let prompt = PromptInfo {
            num_prompt_tokens: answer.prompt_tokens(),
            token_ids,
            ..PromptInfo::default()
        };
        let eos_tokens = model.defaults.eos_token_ids.clone();
        Ok(Self {
            answer,
            selection,
            prompt: Some(prompt),
            eos_tokens,
            _entry: entry,
        })
    }

    /// The next response, and whether it is the last.
    async fn next(&mut self) -> Result<(GenerateResponse, bool), Status> {
        let chunk = self.answer.next().await?;
        let last = chunk.ending.is_some();
        let outputs = Some(self.output(chunk));
        Ok((
            GenerateResponse {
                prompt_info: self.prompt.take(),
                outputs,
            },
            last,
        ))
    }

    fn output(&self, chunk: Chunk) -> SequenceOutput {
        let Chunk {
            text,
            mut token_ids,
            output_tokens,
            cached_tokens,
            ending,
            ..
        } = chunk;
        // In this contract a stop token is a token of the answer, without text.
        if let Some(Ending::StopToken(id)) = ending {
            token_ids.push(id);
        }
        SequenceOutput {
            index: 0,
            text: if self.selection.text { text } else { String::new() },
            num_tokens: u32::try_from(token_ids.len()).unwrap_or(u32::MAX),
            token_ids: if self.selection.token_ids {
                token_ids
            } else {
                Vec::new()
            },
            finish_info: ending.map(|ending| FinishInfo {
                num_cached_tokens: Some(cached_tokens),
                ..self.finish(output_tokens, ending)
            }),
            ..SequenceOutput::default()
        }
    }

    fn finish(&self, num_output_tokens: u32, ending: Ending) -> FinishInfo {
        let (finish_reason, stop_reason) = match ending {
            Ending::StopToken(id) if self.eos_tokens.contains(&id) => {
                (FinishReason::Stop, Some(StopReason::EosTokenId(id)))
            }
            Ending::StopToken(id) => (FinishReason::Stop, Some(StopReason::StopTokenId(id))),
            Ending::StopString(string) => (FinishReason::Stop, Some(StopReason::StopString(string))),
            Ending::Called => (FinishReason::Stop, None),
            Ending::Length => (FinishReason::Length, None),
            Ending::Aborted => (FinishReason::Aborted, None),
        };
        FinishInfo {
            num_output_tokens,
            finish_reason: finish_reason.into(),
            stop_reason,
            ..FinishInfo::default()
        }
    }
}

#[tonic::async_trait]
impl Inference for Services {
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateResponse>, Status> {
        let mut generation = Generation::begin(self, request.into_inner()).await?;
        let (mut whole, mut last) = generation.next().await?;
        while !last {
            let (part, ends) = generation.next().await?;
            last = ends;
            if let (Some(outputs), Some(more)) = (&mut whole.outputs, part.outputs) {
                outputs.text.push_str(&more.text);
                outputs.num_tokens += more.num_tokens;
                outputs.token_ids.extend(more.token_ids);
                outputs.finish_info = more.finish_info;
            }
        }
        Ok(Response::new(whole))
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let generation = Generation::begin(self, request.into_inner()).await?;
        // The generation lives as long as the stream: a client that goes away drops, and so cancels, it.
        let responses = futures::stream::unfold(Some(generation), |state| async move {
            let mut generation = state?;
            match generation.next().await {
                Ok((response, last)) => Some((Ok(response), (!last).then_some(generation))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(responses)))
    }
}
