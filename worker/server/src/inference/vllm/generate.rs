//! `vllm.Inference`.

use std::pin::Pin;
use std::sync::Arc;

use futures::stream::select_all;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use llamero_engine::runtime::AdapterChoice;
use llamero_engine::text::RequestDraft;
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

/// The field with the form of an answer.
const FORM: &str = "structured_output";

/// All answers to a request.
struct Generation {
    prompt: PromptInfo,
    sequences: Vec<Sequence>,
    /// Keeps the request's id taken.
    entry: Entry,
}

/// An answer under way and what it is to contain.
struct Sequence {
    index: u32,
    answer: Answer,
    selection: OutputSelection,
    /// A chunk that came already.
    first: Option<Chunk>,
    eos_tokens: Vec<u32>,
}

/// Render, compile and check everything: an opening for each answer.
fn prepare(
    model: &Model,
    mut request: GenerateRequest,
    adapter: Option<&AdapterChoice>,
) -> Result<(Vec<Opening>, OutputSelection), Status> {
    let sharing = request::sharing(&mut request);
    let Asked {
        draft,
        sequences,
        selection,
        form,
    } = request::draft(model, request)?;
    if form.is_some() && draft.ignore_eos {
        let message = "stopping.ignore_eos cannot be true beside decoding.structured_output: the answer would have to go on behind its form";
        return Err(blame("ignore_eos", message));
    }
    let opening = |index: u32| {
        let request = model.validate(RequestDraft {
            // As over HTTP, so that the answers differ.
            seed: draft.seed.map(|seed| seed.wrapping_add(index.into())),
            // What is said of the prompt is said once.
            prompt_logprobs: draft.prompt_logprobs.filter(|_| index == 0),
            ..draft.clone()
        })?;
        let form = form.as_ref();
        let constraint = form.map(|form| model.constraint(form, &[], FORM));
        let wishes = Wishes {
            sharing: sharing.clone(),
            adapter: adapter.cloned(),
            constraint: constraint.transpose()?.map(|form| (form, FORM.into())),
            ..Wishes::default()
        };
        Opening::new(model, request, wishes)
    };
    let openings: Result<_, Status> = (0..sequences).map(opening).collect();
    Ok((openings?, selection))
}

impl Generation {
    async fn begin(services: &Services, request: GenerateRequest) -> Result<Self, Status> {
        services.model.check_name(&request.model)?;
        let entry = services.running.enter(&request.request_id)?;
        let bytes = request.encoded_len();
        let adapter = adapters::choose(&services.engine, &request.lora_name)?;
        let work = {
            let model = Arc::clone(&services.model);
            move || prepare(&model, request, adapter.as_ref())
        };
        let (openings, selection) = services.text_workers.run(bytes, work).await?;
        let (mut prompt, mut sequences) = (PromptInfo::default(), Vec::new());
        for (index, opening) in (0..).zip(openings) {
            let request = opening.request();
            let scored = request.prompt_logprobs.is_some();
            if index == 0 && selection.prompt_token_ids {
                prompt.token_ids.clone_from(&request.prompt);
            }
            let answer = Answer::begin(&services.engine, opening, entry.abort.clone())?;
            sequences.push((scored, Sequence::new(services, index, selection, answer)));
        }
        for (scored, sequence) in &mut sequences {
            sequence.answer.accepted().await?;
            prompt.num_prompt_tokens = sequence.answer.prompt_tokens();
            if *scored {
                // The contract has all that is said of the prompt in the first message.
                sequence.first = Some(scores(&mut sequence.answer, selection, &mut prompt).await?);
            }
        }
        Ok(Self {
            prompt,
            sequences: sequences.into_iter().map(|(_, sequence)| sequence).collect(),
            entry,
        })
    }

    /// What comes of all answers, in the order in which it comes.
    fn responses(self) -> impl Stream<Item = Result<GenerateResponse, Status>> {
        let entry = Arc::new(self.entry);
        let pieces = self.sequences.into_iter().map(|sequence| {
            // An answer lives as long as the stream: a client that goes away drops, and so cancels, it.
            let state = Some((sequence, Arc::clone(&entry)));
            futures::stream::unfold(state, |state| async move {
                let (mut sequence, entry) = state?;
                match sequence.next().await {
                    Ok((output, last)) => Some((Ok(output), (!last).then_some((sequence, entry)))),
                    Err(status) => Some((Err(status), None)),
                }
            })
            .boxed()
        });
        let mut prompt = Some(self.prompt);
        select_all(pieces).map(move |piece| {
            piece.map(|output| GenerateResponse {
                prompt_info: prompt.take(),
                outputs: Some(output),
            })
        })
    }
}

impl Sequence {
    fn new(services: &Services, index: u32, selection: OutputSelection, answer: Answer) -> Self {
        Self {
            index,
            answer,
            selection,
            first: None,
            eos_tokens: services.model.defaults.eos_token_ids.clone(),
        }
    }

    /// What comes next, and whether it is the last.
    async fn next(&mut self) -> Result<(SequenceOutput, bool), Status> {
        let chunk = match self.first.take() {
            Some(chunk) => chunk,
            None => self.answer.next().await?,
        };
        let last = chunk.ending.is_some();
        Ok((self.output(chunk), last))
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
        } = Listed::of(
            &logprobs,
            self.selection.logprobs,
            self.selection.candidates,
            self.selection.by_id,
        );
        // In this contract a stop token is a token of the answer, without text.
        if let Some(Ending::StopToken(id)) = ending {
            token_ids.push(id);
        }
        SequenceOutput {
            index: self.index,
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
    /// `by_id`: the candidates are those of a list, not the likeliest ones.
    fn of(tokens: &[Logprob], wanted: bool, candidates: bool, by_id: bool) -> Self {
        let mut listed = Self::default();
        for token in tokens {
            let rank = (1..)
                .zip(&token.top)
                .find(|(_, (id, _))| *id == token.id && !by_id);
            if wanted {
                listed.logprobs.push(token.logprob);
                listed.ranks.push(rank.map_or(0, |(rank, _)| rank));
            }
            if candidates {
                let infos = (1..).zip(&token.top).map(|(rank, (id, logprob))| TokenInfo {
                    id: *id,
                    logprob: *logprob,
                    rank: if by_id { 0 } else { rank },
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
    let listed = Listed::of(
        &tokens,
        selection.prompt_logprobs,
        selection.prompt_candidates,
        false,
    );
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
        let request = request.into_inner();
        if request
            .sampling
            .as_ref()
            .is_some_and(|sampling| sampling.num_sequences > 1)
        {
            let message = "sampling.num_sequences is above 1, but an answer of Generate holds one sequence; ask GenerateStream";
            return Err(blame("num_sequences", message));
        }
        let responses = Generation::begin(self, request).await?.responses();
        let whole = responses.try_fold(GenerateResponse::default(), |mut whole, part| async move {
            whole.prompt_info = whole.prompt_info.or(part.prompt_info);
            if let Some(more) = part.outputs {
                let outputs = whole.outputs.get_or_insert_default();
                outputs.text.push_str(&more.text);
                outputs.num_tokens += more.num_tokens;
                outputs.token_ids.extend(more.token_ids);
                outputs.logprobs.extend(more.logprobs);
                outputs.ranks.extend(more.ranks);
                outputs.candidate_tokens.extend(more.candidate_tokens);
                outputs.finish_info = more.finish_info;
            }
            Ok(whole)
        });
        Ok(Response::new(whole.await?))
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let generation = Generation::begin(self, request.into_inner()).await?;
        Ok(Response::new(Box::pin(generation.responses())))
    }
}
