//! One answer: the engine's tokens become text and end where the request says.

use llamero_engine::runtime::{self, EngineHandle, Event, FailureKind, Submission, SubmitError};
use llamero_engine::text::{Finished, GenerationRequest, OutputText};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::model::Model;
use crate::grpc::exhausted;

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// This stop token came.
    StopToken(u32),
    /// This stop string came; it is not part of the text.
    StopString(String),
    /// As many tokens as were allowed.
    Length,
    /// It was aborted.
    Aborted,
}

/// What is new since the chunk before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Whole characters.
    pub text: String,
    /// Tokens, a stop token not included.
    pub token_ids: Vec<u32>,
    /// Output tokens so far, resumed ones and a stop token included.
    pub output_tokens: u32,
    /// Set on the last chunk.
    pub ending: Option<Ending>,
}

/// An answer under way. Dropping it cancels the request, which is how a client's disconnect ends it.
pub struct Answer {
    events: UnboundedReceiver<Event>,
    submission: Option<Submission>,
    text: OutputText,
    prompt_tokens: u32,
    output_tokens: u32,
    abort: CancellationToken,
    /// Set when resumed tokens had ended the answer already.
    over: Option<Ending>,
}

impl Answer {
    /// Queue a request.
    ///
    /// # Errors
    /// UNAVAILABLE while draining.
    pub fn begin(
        engine: &EngineHandle,
        model: &Model,
        request: GenerationRequest,
        abort: CancellationToken,
    ) -> Result<Self, Status> {
        let count = |tokens: &[u32]| u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let mut text = OutputText::new(model.tokenizer.clone(), &request.stop, request.max_tokens);
        let over = text
            .resume(&request.resume_tokens)
            .map(|finished| match finished {
                Finished::Stop(Some(string)) => Ending::StopString(string),
                Finished::Stop(None) => {
                    Ending::StopToken(request.resume_tokens.last().copied().unwrap_or_default())
                }
                Finished::Length => Ending::Length,
            });
        let (sender, events) = unbounded_channel();
        let (prompt_tokens, output_tokens) = (count(&request.prompt), count(&request.resume_tokens));
        let submission = match over {
            Some(_) => None,
            None => {
                let request = runtime::GenerationRequest {
                    prompt: request.prompt,
                    resume: request.resume_tokens,
                    max_tokens: request.max_tokens,
                    stop_tokens: request.stop.tokens,
                    sampling: request.sampling,
                };
                let submitted = engine.submit(request, Box::new(move |event| sender.send(event).is_ok()));
                Some(submitted.map_err(refused)?)
            }
        };
        Ok(Self {
            events,
            submission,
            text,
            prompt_tokens,
            output_tokens,
            abort,
            over,
        })
    }

    /// Tokens of the prompt.
    #[must_use]
    pub fn prompt_tokens(&self) -> u32 {
        self.prompt_tokens
    }

    /// Wait until the request is in the queue. A request that cannot be served is refused here.
    ///
    /// # Errors
    /// As the engine says.
    pub async fn accepted(&mut self) -> Result<(), Status> {
        if self.over.is_some() {
            return Ok(());
        }
        match self.events.recv().await {
            Some(Event::Accepted { .. }) => Ok(()),
            Some(Event::Failed { kind, message }) => Err(failed(kind, message)),
            Some(_) | None => Err(stopped()),
        }
    }

    /// The next chunk: everything that came since the last one. The chunk with an ending is the last.
    ///
    /// # Errors
    /// When the engine cannot finish the answer.
    pub async fn next(&mut self) -> Result<Chunk, Status> {
        let mut chunk = Chunk {
            output_tokens: self.output_tokens,
            ..Chunk::default()
        };
        if let Some(ending) = self.over.take() {
            chunk.ending = Some(ending);
            return Ok(chunk);
        }
        let first = tokio::select! {
            event = self.events.recv() => event,
            () = self.abort.cancelled() => {
                self.submission = None;
                chunk.text = self.text.rest();
                chunk.ending = Some(Ending::Aborted);
                return Ok(chunk);
            }
        };
        let mut event = first.ok_or_else(stopped)?;
        loop {
            self.take(event, &mut chunk)?;
            if chunk.ending.is_some() {
                self.submission = None;
                return Ok(chunk);
            }
            event = match self.events.try_recv() {
                Ok(event) => event,
                Err(_) => return Ok(chunk),
            };
        }
    }

    fn take(&mut self, event: Event, chunk: &mut Chunk) -> Result<(), Status> {
        match event {
            Event::Accepted { .. } => {}
            Event::Token { id, .. } => {
                self.output_tokens += 1;
                let piece = self.text.push(id);
                chunk.text.push_str(&piece.text);
                chunk.token_ids.push(id);
                chunk.output_tokens = self.output_tokens;
                chunk.ending = piece.finished.map(|finished| match finished {
                    Finished::Stop(Some(string)) => Ending::StopString(string),
                    Finished::Stop(None) => Ending::StopToken(id),
                    Finished::Length => Ending::Length,
                });
            }
            Event::Finished {
                reason,
                output_tokens,
            } => {
                chunk.text.push_str(&self.text.rest());
                chunk.output_tokens = output_tokens;
                chunk.ending = Some(match reason {
                    runtime::FinishReason::StopToken(id) => Ending::StopToken(id),
                    runtime::FinishReason::Length => Ending::Length,
                    runtime::FinishReason::Cancelled => Ending::Aborted,
                });
            }
            Event::Failed { kind, message } => return Err(failed(kind, message)),
        }
        Ok(())
    }
}

fn refused(error: SubmitError) -> Status {
    match error {
        SubmitError::Draining | SubmitError::Stopped => Status::unavailable(error.to_string()),
        SubmitError::Full { retry_after, .. } => exhausted(error.to_string(), retry_after),
    }
}

fn failed(kind: FailureKind, message: String) -> Status {
    match kind {
        FailureKind::Invalid => Status::invalid_argument(message),
        FailureKind::TooLong => Status::out_of_range(message),
        FailureKind::Internal => Status::internal(message),
        FailureKind::Unavailable => Status::unavailable(message),
    }
}

fn stopped() -> Status {
    refused(SubmitError::Stopped)
}
