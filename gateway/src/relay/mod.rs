//! One answer, from whichever leaders it takes.
//!
//! The relay passes the request to the leader whose cache fits it, or to the least loaded one ([`crate::upstream`]). When that one is lost, it asks another to go on behind the
//! tokens that came already, with the same seed, so the client sees one unbroken answer. Dropping the relay drops the
//! gRPC stream, which cancels the request at the leader.
//!
//! | module | what it is |
//! |---|---|
//! | `carried` | memory of answers under way |
//! | [`wait`] | waiting for a leader, and for how long |

mod carried;
pub mod wait;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::{HeaderValue, StatusCode};
use carried::Carried;
use futures::{Stream, stream};
use llamero_proto::v1::{CompletionChunk, CompletionRequest, FinishReason, TokenLogprob, ToolCallDelta};
use llamero_settings::losses::Losses;
use prost::Message;
use serde::Serialize;
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status, Streaming};

use crate::Gateway;
use crate::demand::Counted;
use crate::discovery::Deployment;
use crate::error::ApiError;
use crate::upstream::{Affinity, Failure, Leader, Refusal, Running, classify};

/// Metadata with the id that the client gave its request, for the worker's log.
const REQUEST_ID: &str = "x-request-id";
/// Part of the identity of weights that are an adapter's.
const ADAPTED: &str = " lora-";

/// What is new of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Whole characters; may be empty.
    pub text: String,
    /// Of its tokens, when they were asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Of the prompt's tokens, when they were asked for: more of them, all before the first token of the answer.
    pub prompt_logprobs: Vec<TokenLogprob>,
    /// What is new of tool calls, of each at most one piece: clients take the first pieces of a list for as many calls.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, tokens that the group had computed before; 0 until the first token.
    pub cached_tokens: u32,
    /// Tokens of the answer so far.
    pub output_tokens: u32,
    /// Content identity of the weights, if the group tells it.
    pub identity: Option<Arc<str>>,
    /// Set on the last one.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: FinishReason,
    stop_string: String,
    stop_token: Option<u32>,
}

impl End {
    /// What ended it, if it was something that the request asked for.
    #[must_use]
    pub fn stop_reason(&self) -> Option<StopReason<'_>> {
        match self.stop_token {
            Some(token) => Some(StopReason::Token(token)),
            None if self.stop_string.is_empty() => None,
            None => Some(StopReason::String(&self.stop_string)),
        }
    }
}

/// vLLM's `stop_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason<'a> {
    /// This stop string.
    String(&'a str),
    /// This stop token.
    Token(u32),
}

/// What the client wants beside the answer itself.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// How long to wait for a group; the settings bound it.
    pub patience: Option<Duration>,
    /// The client's own id of the request.
    pub request_id: Option<HeaderValue>,
    /// What the client says its request belongs to.
    pub session: Option<Affinity>,
}

/// One answer in progress.
#[derive(Debug)]
pub struct Relay {
    gateway: Arc<Gateway>,
    waiting: wait::Waiting,
    model: String,
    /// `resume_token_ids` holds all tokens that came so far, `content_identity` what the next leader must have.
    request: Arc<CompletionRequest>,
    client_id: Option<HeaderValue>,
    identity: Option<Arc<str>>,
    /// Of the prompt's tokens, how many log-probabilities have come, in all and from the present leader.
    scored: (usize, usize),
    /// What the leader that began the answer had cached of the prompt.
    cached: Option<u32>,
    losses: Losses,
    /// The request's memory, from when it first asked for a leader.
    carried: Option<Carried>,
    attempt: Option<Attempt>,
}

/// A stream from one leader.
#[derive(Debug)]
struct Attempt {
    chunks: Streaming<CompletionChunk>,
    running: Running,
    _counted: Counted,
}

impl Relay {
    /// An answer to `request` from a group of `deployment`. The request must carry a seed, else it could not go on
    /// elsewhere.
    #[must_use]
    pub fn new(
        gateway: Arc<Gateway>,
        deployment: &Deployment,
        request: CompletionRequest,
        wishes: Wishes,
    ) -> Self {
        let key = deployment.key.clone();
        let of_prompt = || request.prompt.as_ref().and_then(Affinity::of_prompt);
        let affinity = wishes.session.or_else(of_prompt);
        let waiting =
            wait::Waiting::new(&gateway, key, request.encoded_len(), wishes.patience).with_affinity(affinity);
        Self {
            gateway,
            waiting,
            model: deployment.model.clone(),
            request: Arc::new(request),
            client_id: wishes.request_id,
            identity: None,
            scored: (0, 0),
            cached: None,
            losses: Losses::default(),
            carried: None,
            attempt: None,
        }
    }

    /// The pieces of the answer. Ends after the piece with `finish`, or after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Delta, ApiError>> + Send {
        stream::unfold(Some(self), |relay| async move {
            let mut relay = relay?;
            match relay.next().await {
                Ok(delta) if delta.end.is_none() => Some((Ok(delta), Some(relay))),
                last => Some((last, None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Delta, ApiError> {
        loop {
            let mut attempt = match self.attempt.take() {
                Some(attempt) => attempt,
                None => self.start().await?,
            };
            let message = attempt.chunks.message().await;
            let leader = Arc::clone(attempt.running.leader());
            let failure = match message {
                Ok(Some(chunk)) => match self.take(chunk) {
                    Ok(delta) => {
                        leader.succeeded();
                        self.attempt = Some(attempt);
                        return Ok(delta);
                    }
                    Err(failure) => failure,
                },
                Ok(None) => Failure::Lost {
                    reason: "the stream ended before the answer did".to_owned(),
                    taken: true,
                },
                Err(status) => self.classify(&status, true),
            };
            drop(attempt);
            self.failed(&leader, true, failure)?;
        }
    }

    /// Pass the request on to a leader, waiting for one as long as the settings allow.
    async fn start(&mut self) -> Result<Attempt, ApiError> {
        loop {
            let begun = !self.request.resume_token_ids.is_empty();
            let leader = self.waiting.leader(&self.gateway, begun).await?;
            if self.carried.is_none() {
                self.carried = Some(Carried::take(&self.gateway, self.request.encoded_len())?);
            }
            self.scored.1 = 0;
            let running = leader.begin();
            let counted = self.gateway.demand.run(self.waiting.key());
            leader.model().clone_into(&mut self.change().model);
            let mut call = tonic::Request::new(Arc::clone(&self.request));
            let client_id = self.client_id.as_ref();
            if let Some(Ok(id)) = client_id.map(|id| MetadataValue::try_from(id.as_bytes())) {
                call.metadata_mut().insert(REQUEST_ID, id);
            }
            match leader.complete(call).await {
                Ok(response) => {
                    self.waiting.accepted();
                    return Ok(Attempt {
                        chunks: response.into_inner(),
                        running,
                        _counted: counted,
                    });
                }
                Err(status) => self.failed(&leader, false, self.classify(&status, false))?,
            }
        }
    }

    /// The request, to change it. It was sent and let go of before anything came of its answer, so that nothing is copied.
    fn change(&mut self) -> &mut CompletionRequest {
        Arc::make_mut(&mut self.request)
    }

    /// What a status of a leader means. One that does not have the adapter of an answer that has begun is as good as one with other
    /// weights: another may still have it. So is one that does not take an answer which another has begun: leaders of two releases may read its
    /// form in different ways. `accepted` tells that the leader had taken the request.
    fn classify(&self, status: &Status, accepted: bool) -> Failure {
        let begun = !self.request.resume_token_ids.is_empty();
        let reads_otherwise = begun && !accepted && status.code() == Code::InvalidArgument;
        let may_lack = self.bound() || !self.request.adapter.is_empty();
        match classify(status, self.bound()) {
            Failure::Final(error) if reads_otherwise || may_lack && error.status == StatusCode::NOT_FOUND => {
                Failure::OtherWeights(error.message)
            }
            failure => failure,
        }
    }

    /// Whether the next leader must have certain weights.
    fn bound(&self) -> bool {
        !self.request.content_identity.is_empty()
    }

    /// Decide whether the request goes on after a failure, and where not. `accepted` tells that the leader had taken it.
    fn failed(&mut self, leader: &Arc<Leader>, accepted: bool, failure: Failure) -> Result<(), ApiError> {
        let tokens = self.request.resume_token_ids.len();
        let (request, address) = (&self.request.request_id, leader.address());
        match failure {
            Failure::Final(error) => return Err(error),
            Failure::Busy { retry_after, .. } => {
                let until = Instant::now() + retry_after;
                self.waiting.refused(leader, Refusal::Busy(until));
            }
            Failure::OtherWeights(reason) => {
                tracing::warn!(%request, leader = %address, reason, "a leader cannot go on with an answer as it began");
                self.waiting.refused(leader, Refusal::OtherWeights);
            }
            Failure::Lost { reason, taken } => {
                tracing::warn!(%request, leader = %address, tokens, accepted, reason, "lost the leader of a request");
                leader.failed(Instant::now());
                self.waiting.stalled();
                if accepted {
                    self.gateway.metrics.continued(&self.model);
                }
                let dialler = self.gateway.settings.dialler.as_ref();
                let is_let_in = dialler.is_none_or(|dialler| dialler.counts(SystemTime::now()));
                if (accepted || taken && is_let_in) && self.losses.add(tokens) {
                    return Err(deadly());
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, chunk: CompletionChunk) -> Result<Delta, Failure> {
        self.same_weights(&chunk.content_identity)?;
        let end = chunk.finish.map(|finish| End {
            reason: finish.reason(),
            stop_string: finish.stop_string,
            stop_token: finish.stop_token_id,
        });
        if !chunk.token_ids.is_empty() || end.is_some() {
            self.waiting.progressed();
        }
        if !chunk.prompt_text.is_empty() {
            // The prompt is given back once, whoever goes on with the answer.
            self.change().echo = false;
        }
        let prompt_logprobs = self.new_scores(chunk.prompt_logprobs);
        if !chunk.token_ids.is_empty() {
            self.cached.get_or_insert(chunk.cached_tokens);
            let request = self.change();
            // The prompt's are complete.
            request.prompt_logprobs = None;
            request.resume_token_ids.extend(&chunk.token_ids);
        }
        if let Some(carried) = &mut self.carried {
            carried.add_tokens(chunk.token_ids.len());
        }
        // From the first token on, only these weights will do.
        if let Some(identity) = &self.identity
            && !self.bound()
            && !chunk.token_ids.is_empty()
        {
            let identity = identity.to_string();
            self.change().content_identity = identity;
        }
        let counted = u32::try_from(self.request.resume_token_ids.len()).unwrap_or(u32::MAX);
        if end.is_none() && counted != chunk.output_tokens {
            // Rather no answer than one with a hole.
            return Err(Failure::Final(ApiError::internal(format!(
                "The workers counted {} tokens of this answer, but {counted} arrived; please send the request again.",
                chunk.output_tokens
            ))));
        }
        let reason = end.as_ref().map(|end| end.reason);
        if matches!(reason, Some(FinishReason::Abort | FinishReason::Unspecified)) {
            return Err(Failure::Final(ApiError::internal(
                "The request was aborted at the model's workers; please send it again.",
            )));
        }
        Ok(Delta {
            text: chunk.prompt_text + &chunk.text,
            logprobs: chunk.logprobs,
            prompt_logprobs,
            tool_calls: joined(chunk.tool_calls),
            prompt_tokens: chunk.prompt_tokens,
            cached_tokens: self.cached.unwrap_or(chunk.cached_tokens),
            output_tokens: chunk.output_tokens,
            identity: self.identity.clone(),
            end,
        })
    }

    /// Log-probabilities of the prompt's tokens that the client has not: another leader begins with the first one again.
    fn new_scores(&mut self, mut scores: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
        let (all, of_leader) = &mut self.scored;
        let known = all.saturating_sub(*of_leader).min(scores.len());
        *of_leader += scores.len();
        *all = (*all).max(*of_leader);
        scores.split_off(known)
    }

    /// Learn the identity of the weights from a first chunk. A leader that should have refused the request, but did not,
    /// is treated as if it had.
    fn same_weights(&mut self, identity: &str) -> Result<(), Failure> {
        if identity.is_empty() {
            return Ok(());
        }
        // A worker of before there were adapters answers with the model as it is.
        if !self.request.adapter.is_empty() && !identity.contains(ADAPTED) {
            return Err(Failure::OtherWeights("it knows no adapters".to_owned()));
        }
        if self.bound() && self.request.content_identity != identity {
            return Err(Failure::OtherWeights(format!("it has {identity}")));
        }
        if self.identity.as_deref() != Some(identity) {
            self.identity = Some(Arc::from(identity));
        }
        Ok(())
    }
}

/// Pieces of calls in order, with those of one call together.
fn joined(pieces: Vec<ToolCallDelta>) -> Vec<ToolCallDelta> {
    let mut joined: Vec<ToolCallDelta> = Vec::new();
    for piece in pieces {
        match joined.last_mut().filter(|last| last.index == piece.index) {
            Some(last) => {
                last.name.push_str(&piece.name);
                last.arguments.push_str(&piece.arguments);
            }
            None => joined.push(piece),
        }
    }
    joined
}

/// The request has brought down several leaders.
pub(crate) fn deadly() -> ApiError {
    ApiError {
        final_answer: true,
        ..ApiError::internal_as(
            "leaders_lost",
            "Three groups in a row were lost while they worked on this request, with fewer than 64 tokens between \
             them. The request itself is the likely cause, so it is not tried again; the workers' logs tell more.",
        )
    }
}
