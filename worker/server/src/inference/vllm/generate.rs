//! `vllm.Inference`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use prost::Message as _;
use tonic::{Request, Response, Status};
use vllm_proto::candidate_token_info::TokenInfo;
use vllm_proto::finish_info::{FinishReason, StopReason};
use vllm_proto::inference_server::Inference;
use vllm_proto::{
    CandidateTokenInfo, FinishInfo, GenerateRequest, GenerateResponse, PromptInfo, SequenceOutput,
};

use super::request::{self, Asked, OutputSelection};
use crate::inference::Services;
use crate::inference::adapters;
use crate::inference::answer::{Answer, Chunk, Ending, Logprob, Opening, Wishes};
use crate::inference::model::{Model, blame};
use crate::inference::running::Entry;

/// An answer under way and what it is to contain.
struct Generation {
    answer: Answer,
    selection: OutputSelection,
    prompt: Option<PromptInfo>,
    /// A chunk that came already.
    first: Option<Chunk>,
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
        let adapter = adapters::choose(&services.engine, &request.lora_name)?;
        let prepare = {
            let model = Arc::clone(&services.model);
            move || {
                let Asked {
                    draft,
                    selection,
                    form,
                } = request::draft(&model, request)?;
                if form.is_some() && draft.ignore_eos {
                    let message = "stopping.ignore_eos cannot be true beside decoding.structured_output: the answer would have to go on behind its form";
                    return Err(blame("ignore_eos", message));
                }
                let request = model.validate(draft)?;
                let constraint = form.map(|form| model.constraint(&form, &[], "structured_output"));
                let wishes = Wishes {
                    sharing,
                    adapter,
                    constraint: constraint.transpose()?,
                    ..Wishes::default()
                };
                Ok((Opening::new(&model, request, wishes), selection))
            }
        };
        let (opening, selection) = services.text_workers.run(bytes, prepare).await?;
        let scored = opening.request().prompt_logprobs.is_some();
        let token_ids = if selection.prompt_token_ids {
            opening.request().prompt.clone()
        } else {
            Vec::new()
        };
        let mut answer = Answer::begin(&services.engine, opening, entry.abort.clone())?;
        answer.accepted().await?;
        let mut prompt = PromptInfo {
            num_prompt_tokens: answer.prompt_tokens(),
            token_ids,
            ..PromptInfo::default()
        };
        let mut first = None;
        if scored {
            // The contract has all that is said of the prompt in the first message.
            first = Some(scores(&mut answer, selection, &mut prompt).await?);
        }
        let eos_tokens = model.defaults.eos_token_ids.clone();
        Ok(Self {
            answer,
            selection,
            prompt: Some(prompt),
            first,
            eos_tokens,
            _entry: entry,
        })
    }

    /// The next response, and whether it is the last.
    async fn next(&mut self) -> Result<(GenerateResponse, bool), Status> {
        let chunk = match self.first.take() {
            Some(chunk) => chunk,
            None => self.answer.next().await?,
        };
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
            logprobs,
            ..
        } = chunk;
        let Listed {
            logprobs,
            ranks,
            candidate_tokens,
        } = Listed::of(&logprobs, self.selection.logprobs, self.selection.candidates);
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
            logprobs,
            ranks,
            candidate_tokens,
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

/// Log-probabilities in the contract's lists.
#[derive(Default)]
struct Listed {
    logprobs: Vec<f32>,
    /// From 1; 0 where the token is not among the candidates, so that its rank is not known.
    ranks: Vec<u32>,
    candidate_tokens: Vec<CandidateTokenInfo>,
}

impl Listed {
    fn of(tokens: &[Logprob], wanted: bool, candidates: bool) -> Self {
        let mut listed = Self::default();
        for token in tokens {
            let rank = (1..).zip(&token.top).find(|(_, (id, _))| *id == token.id);
            if wanted {
                listed.logprobs.push(token.logprob);
                listed.ranks.push(rank.map_or(0, |(rank, _)| rank));
            }
            if candidates {
                let infos = (1..).zip(&token.top).map(|(rank, (id, logprob))| TokenInfo {
                    id: *id,
                    logprob: *logprob,
                    rank,
                });
                listed.candidate_tokens.push(CandidateTokenInfo {
                    tokens: infos.collect(),
                });
            }
        }
        listed
    }
}

/// Wait for the scores of the whole prompt. The first chunk behind them. The prompt's first token has no score:
/// its place holds 0 and no candidates.
async fn scores(
    answer: &mut Answer,
    selection: OutputSelection,
    prompt: &mut PromptInfo,
) -> Result<Chunk, Status> {
    let mut tokens = vec![Logprob {
        id: 0,
        logprob: 0.0,
        top: Vec::new(),
    }];
    let rest = loop {
        let mut chunk = answer.next().await?;
        if chunk.prompt_logprobs.is_empty() {
            break chunk;
        }
        tokens.append(&mut chunk.prompt_logprobs);
    };
    let listed = Listed::of(&tokens, selection.prompt_logprobs, selection.prompt_candidates);
    prompt.logprobs = listed.logprobs;
    prompt.ranks = listed.ranks;
    prompt.candidate_tokens = listed.candidate_tokens;
    Ok(rest)
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
                outputs.logprobs.extend(more.logprobs);
                outputs.ranks.extend(more.ranks);
                outputs.candidate_tokens.extend(more.candidate_tokens);
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
