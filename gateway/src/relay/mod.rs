//! One answer, from whichever leaders it takes.
//!
//! The relay passes the request to the least loaded leader. When that one is lost, it asks another to go on behind the
//! tokens that came already, with the same seed, so the client sees one unbroken answer. Dropping the relay drops the
//! gRPC stream, which cancels the request at the leader.
//!
//! | module | what it is |
//! |---|---|
//! | [`wait`] | waiting for a leader, and for how long |

pub mod wait;

use std::sync::Arc;

use futures::{Stream, stream};
use llamero_proto::v1::{CompletionChunk, CompletionRequest, FinishReason};
use tokio::time::Instant;
use tonic::Streaming;

use crate::Gateway;
use crate::demand::Counted;
use crate::discovery::Deployment;
use crate::error::ApiError;
use crate::upstream::{Failure, Running, classify};

/// What is new of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Whole characters; may be empty.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer so far.
    pub output_tokens: u32,
    /// Set on the last one.
    pub finish: Option<FinishReason>,
}

/// One answer in progress.
#[derive(Debug)]
pub struct Relay {
    gateway: Arc<Gateway>,
    waiting: wait::Waiting,
    model: String,
    /// `resume_token_ids` holds all tokens that came so far.
    request: CompletionRequest,
    attempt: Option<Attempt>,
}

/// A stream from one leader.
#[derive(Debug)]
struct Attempt {
    chunks: Streaming<CompletionChunk>,
    running: Running,
    _counted: Counted,
}

/// What a chunk means.
enum Step {
    Deliver(Delta),
    Lost(String),
}

impl Relay {
    /// An answer to `request` from a group of `deployment`. The request must carry a seed, else it could not go on
    /// elsewhere.
    #[must_use]
    pub fn new(gateway: Arc<Gateway>, deployment: &Deployment, request: CompletionRequest) -> Self {
        let waiting = wait::Waiting::new(&gateway, deployment.key.clone());
        Self {
            gateway,
            waiting,
            model: deployment.model.clone(),
            request,
            attempt: None,
        }
    }

    /// The pieces of the answer. Ends after the piece with `finish`, or after an error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Delta, ApiError>> + Send {
        stream::unfold(Some(self), |relay| async move {
            let mut relay = relay?;
            match relay.next().await {
                Ok(delta) if delta.finish.is_none() => Some((Ok(delta), Some(relay))),
                last => Some((last, None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Delta, ApiError> {
        loop {
            let attempt = match &mut self.attempt {
                Some(attempt) => attempt,
                none => none.insert(Self::start(&self.gateway, &mut self.waiting, &self.request).await?),
            };
            let message = attempt.chunks.message().await;
            let leader = Arc::clone(attempt.running.leader());
            let step = match message {
                Ok(Some(chunk)) => self.take(chunk)?,
                Ok(None) => Step::Lost("the stream ended before the answer did".to_owned()),
                Err(status) => match classify(&status) {
                    Failure::Lost(reason) => Step::Lost(reason),
                    Failure::Final(error) => return Err(error),
                },
            };
            match step {
                Step::Deliver(delta) => {
                    leader.succeeded();
                    return Ok(delta);
                }
                Step::Lost(reason) => {
                    let tokens = self.request.resume_token_ids.len();
                    tracing::warn!(
                        request = %self.request.request_id, leader = %leader.address(), tokens, reason,
                        "lost the leader of a request; going on elsewhere"
                    );
                    self.attempt = None;
                    leader.failed(Instant::now());
                    self.waiting.stalled();
                    self.gateway.metrics.continued(&self.model);
                }
            }
        }
    }

    /// Pass the request on to a leader, waiting for one as long as the settings allow.
    async fn start(
        gateway: &Gateway,
        waiting: &mut wait::Waiting,
        request: &CompletionRequest,
    ) -> Result<Attempt, ApiError> {
        loop {
            let leader = waiting
                .leader(gateway, !request.resume_token_ids.is_empty())
                .await?;
            let running = leader.begin();
            let counted = gateway.demand.run(waiting.key());
            match leader.completion().complete(request.clone()).await {
                Ok(response) => {
                    return Ok(Attempt {
                        chunks: response.into_inner(),
                        running,
                        _counted: counted,
                    });
                }
                Err(status) => match classify(&status) {
                    Failure::Final(error) => return Err(error),
                    Failure::Lost(reason) => {
                        tracing::warn!(
                            request = %request.request_id, leader = %leader.address(), reason,
                            "a leader did not take a request"
                        );
                        leader.failed(Instant::now());
                        waiting.stalled();
                    }
                },
            }
        }
    }

    fn take(&mut self, chunk: CompletionChunk) -> Result<Step, ApiError> {
        let finish = chunk.finish.map(|finish| finish.reason());
        if !chunk.token_ids.is_empty() || finish.is_some() {
            self.waiting.progressed();
        }
        self.request.resume_token_ids.extend(&chunk.token_ids);
        let counted = u32::try_from(self.request.resume_token_ids.len()).unwrap_or(u32::MAX);
        if finish.is_none() && counted != chunk.output_tokens {
            // Rather no answer than one with a hole.
            return Err(ApiError::internal(format!(
                "The workers counted {} tokens of this answer, but {counted} arrived; please send the request again.",
                chunk.output_tokens
            )));
        }
        if matches!(finish, Some(FinishReason::Abort | FinishReason::Unspecified)) {
            return Err(ApiError::internal(
                "The request was aborted at the model's workers; please send it again.",
            ));
        }
        Ok(Step::Deliver(Delta {
            text: chunk.text,
            prompt_tokens: chunk.prompt_tokens,
            output_tokens: chunk.output_tokens,
            finish,
        }))
    }
}
